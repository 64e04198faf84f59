"""Reachability from sampled responses: against a solved world, before the first step of fit, and what is written."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from torch import Tensor

from lit_safe.constraint.controllers import Controller
from lit_safe.constraint.controllers.fixed import Fixed
from lit_safe.constraint.controllers.log_barrier import LogBarrier
from lit_safe.constraint.controllers.log_space import LogSpace
from lit_safe.constraint.controllers.newton import DiagonalNewton
from lit_safe.constraint.controllers.pid import PIDLagrangian
from lit_safe.constraint.controllers.scheduled import Scheduled
from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.constraint.reachability.callback import Reachability
from lit_safe.constraint.reachability.survey import Survey, survey
from lit_safe.constraint.reachability.words import findings, suggestions
from lit_safe.errors.message import SettingError
from lit_safe.objectives import DPO, ConstrainedDPO
from lit_safe.training.module import PreferenceAlignment
from tests.lit_safe.dual_world import BETA, REWARD, ExactCost, Table, TableCost, Toy, optimal_cost, solve

SIZES = {"prompts": 4, "samples_per_prompt": 512, "max_new_tokens": 1, "batch_size": 1024}


class TableReward:
    """The reward of a response as the table has it."""

    def __call__(self, prompts: list[str], responses: list[str]) -> Tensor:
        at = [(int(p.split()[1]), int(r.split()[1])) for p, r in zip(prompts, responses, strict=True)]
        return torch.stack([REWARD[index] for index in at])


class TwoHarms:
    """The table's cost, and a second one that never exceeds -1."""

    def __call__(self, prompts: list[str], responses: list[str]) -> Tensor:
        cost = TableCost()(prompts, responses)
        return torch.stack([cost, torch.full_like(cost, -1.0)], dim=-1)


def toy(**options: Any) -> Toy:
    data = Toy(**options)
    data.seed = 0
    return data


def module(multiplier: Any = 0.0, objective: Any = None) -> PreferenceAlignment:
    found = PreferenceAlignment(
        Table(), objective or ConstrainedDPO(beta=BETA), multiplier=multiplier, precompute_reference=False
    )
    found.configure_model()
    return found


def asked(limit: float, **options: Any) -> Survey:
    given = {"cost": TableCost(), "reward": TableReward(), "seed": 0, **SIZES, **options}
    return survey(module(), toy(), DualAscent(limit=limit), **given)


def fit(folder: Path, callbacks: list[Callback], policy: PreferenceAlignment, data: Any, **options: Any) -> Trainer:
    trainer = Trainer(
        default_root_dir=folder, max_epochs=1, accelerator="cpu", logger=False, callbacks=callbacks,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        **options,
    )  # fmt: skip
    trainer.fit(policy, datamodule=data)
    return trainer


class Held(Callback):
    """Notes the multiplier of the first step."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == 0:
            self.multiplier = pl_module.multiplier.clone()


def test_the_multiplier_and_the_costs_are_those_of_the_solved_world() -> None:
    found = asked(-0.4).found
    assert found.optimum.multiplier[0] == pytest.approx(solve(-0.4), rel=0.1)
    assert found.verdicts == ("reached",)
    for point in found.grid:
        if point.effective_median > 50:
            assert point.cost[0] == pytest.approx(optimal_cost(point.multiplier[0]), abs=0.06)


def test_a_limit_that_does_not_bind_is_plain_dpo_and_one_out_of_reach_says_what_would_help() -> None:
    loose, tight = asked(1.5), asked(-1.5)
    assert [one.found.verdicts for one in (loose, tight)] == [("does not bind",), ("not reached",)]
    assert findings(loose.found)[0].startswith(
        "The limit 1.5 does not bind: λ* = 0, which is plain DPO. E[c] there is "
    )
    assert findings(tight.found)[0].startswith("Limit -1.5 not reached with λ ≤ 10 on 512 samples: E[c] at λ = 10 is -")
    advice = suggestions(tight.found)
    assert advice[0].startswith("Raise the limit to -0.9")
    assert "No multiplier meets the limit on these samples" in advice[1]


def test_without_a_reward_the_tilt_uses_cost_alone_and_says_so() -> None:
    alone = asked(-0.4, reward=None)
    assert alone.found.optimum.reward == 0
    assert "(r = 0)" in alone.notes[0]
    assert alone.facts["reward"] == "none (r = 0)"
    assert alone.found.optimum.multiplier[0] < asked(-0.4).found.optimum.multiplier[0]  # the reward favours harm here


def test_responses_do_not_depend_on_the_batch_size_and_change_with_the_seed() -> None:
    one, other = asked(-0.4, samples_per_prompt=8), asked(-0.4, samples_per_prompt=8, batch_size=3)
    assert one.found == other.found


def test_the_files_hold_what_was_found_and_no_value_that_json_lacks(tmp_path: Path) -> None:
    found = asked(-1.5, samples_per_prompt=16)
    found.write(tmp_path / "run")
    values = json.loads((tmp_path / "run" / "reach.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert values["multiplier_stderr"] == [None]
    assert values["optimum"]["cost"] == list(found.found.optimum.cost)
    assert values["verdicts"] == ["not reached"]
    text = (tmp_path / "run" / "reach.md").read_text(encoding="utf-8")
    assert "**Limit -1.5 not reached" in text
    assert text.count("\n| ") == len(found.found.grid) + 1  # the heads; the optimum is the last row of the grid
    assert "| **10** |" in text
    assert (tmp_path / "run" / "reach.png").stat().st_size > 10_000


def test_auto_starts_the_multiplier_at_the_estimate_before_the_first_step(tmp_path: Path) -> None:
    check, held = Reachability(reward=TableReward(), cost=TableCost(), **SIZES), Held()
    fit(tmp_path, [check, DualAscent(limit=-0.4), held], module("auto"), toy())
    assert held.multiplier.item() == pytest.approx(check.found.optimum.multiplier[0])
    assert held.multiplier.item() == pytest.approx(solve(-0.4), rel=0.1)
    assert (tmp_path / "reach.md").exists()


def test_a_number_stays_where_it_is_and_only_the_report_is_written(tmp_path: Path) -> None:
    held = Held()
    fit(tmp_path, [Reachability(cost=TableCost(), **SIZES), DualAscent(limit=-0.4), held], module(0.25), toy())
    assert held.multiplier.item() == 0.25
    assert (tmp_path / "reach.json").exists()


@pytest.mark.parametrize("order", [1, -1], ids=["estimated first", "dual step first"])
def test_auto_starts_a_log_space_rule_at_the_estimate_and_not_below_its_minimum(tmp_path: Path, order: int) -> None:
    for limit, start in ((-0.4, None), (1.5, 0.05)):
        rule = LogSpace(minimum=0.05)
        check, held = Reachability(TableReward(), TableCost(), **SIZES), Held()
        dual = DualAscent(limit=limit, controller=rule, estimator=ExactCost())
        fit(tmp_path, [*[check, dual][::order], held], module("auto"), toy())
        found = asked(limit).found.optimum.multiplier[0]
        assert held.multiplier.item() == pytest.approx(found if start is None else start, rel=1e-6)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (LogSpace(init=0.5), "LogSpace starts at its init 0.5: set it to null"),
        (Fixed(1.5), "Fixed keeps its value 1.5: set it to null"),
        (Scheduled(0.25), "Scheduled starts at its first 0.25: give model.multiplier a number"),
    ],
)
def test_auto_beside_a_rule_with_a_start_of_its_own_is_refused(tmp_path: Path, rule: Controller, said: str) -> None:
    check = Reachability(TableReward(), TableCost(), **SIZES)
    dual = DualAscent(limit=-0.4, controller=rule, estimator=ExactCost())
    with pytest.raises(SettingError, match=f"model.multiplier is auto, and dual.controller {said}"):
        fit(tmp_path, [check, dual], module("auto"), toy())
    assert not (tmp_path / "reach.md").exists()


@pytest.mark.parametrize("make", [PIDLagrangian, LogBarrier, DiagonalNewton, Fixed])
def test_auto_starts_every_other_rule_at_the_estimate(tmp_path: Path, make: Callable[[], Controller]) -> None:
    check, held = Reachability(TableReward(), TableCost(), **SIZES), Held()
    dual = DualAscent(limit=-0.4, controller=make(), estimator=ExactCost())
    fit(tmp_path, [check, dual, held], module("auto"), toy())
    assert held.multiplier.item() == pytest.approx(asked(-0.4).found.optimum.multiplier[0], rel=1e-6)


def test_auto_takes_one_multiplier_for_each_constraint(tmp_path: Path) -> None:
    check, held = Reachability(reward=TableReward(), cost=TwoHarms(), **SIZES), Held()
    data = toy(constraints=("harm", "none"), costs_PKC=torch.stack([REWARD, REWARD], -1))
    fit(tmp_path, [check, DualAscent(limit=[-0.4, 0.0]), held], module("auto"), data)
    assert held.multiplier.tolist() == pytest.approx([solve(-0.4), 0.0], rel=0.1, abs=1e-6)


def test_a_limit_out_of_reach_ends_the_run_before_it_trains_unless_told_otherwise(tmp_path: Path) -> None:
    policy = module()
    before = policy.pair.logit_PK.detach().clone()
    check = Reachability(reward=TableReward(), cost=TableCost(), **SIZES)
    with pytest.raises(ValueError, match=r"^Limit -1.5 not reached .* Raise the limit to .* stop: false"):
        fit(tmp_path, [check, DualAscent(limit=-1.5)], policy, toy())
    assert torch.equal(policy.pair.logit_PK, before)
    assert (tmp_path / "reach.md").exists()
    check.stop = False
    fit(tmp_path, [check, DualAscent(limit=-1.5)], policy, toy())
    assert not torch.equal(policy.pair.logit_PK, before)


def test_auto_without_the_callback_and_an_objective_without_multiplier_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"auto needs the callback .* configs/trainer/reach.yaml"):
        fit(tmp_path, [DualAscent(limit=-0.4)], module("auto"), toy())
    with pytest.raises(ValueError, match="DPO does not read it"):
        fit(tmp_path, [Reachability(cost=TableCost()), DualAscent()], module(objective=DPO(beta=BETA)), toy())
    with pytest.raises(ValueError, match="needs a cost function"):
        fit(tmp_path, [Reachability(), DualAscent(limit=-0.4)], module(), toy())


class Broken:
    """A reward that is no number for one response."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __call__(self, prompts: list[str], responses: list[str]) -> Tensor:
        return self.value.expand(len(responses), *self.value.shape[1:])


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (Broken(torch.tensor([math.nan])), r"Broken gave nan for a response to prompt 10\d"),
        (Broken(torch.zeros(1, 2)), "the reward Broken gave rows of 2 numbers: it must give one number"),
    ],
)
def test_a_reward_that_is_no_number_is_named(reward: Broken, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        asked(-0.4, reward=reward)


@pytest.mark.parametrize(
    ("dual", "cost", "message"),
    [
        (DualAscent(limit=[0.0, 0.0]), TableCost(), "dual.limit has 2 numbers, and the data have 1 constraints"),
        (DualAscent(), TwoHarms(), "TwoHarms gave 2 costs per response, and the data have 1 constraints, harm"),
    ],
)
def test_limits_and_costs_of_other_numbers_than_constraints_are_refused(dual, cost, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        survey(module(), toy(), dual, cost=cost, reward=None, seed=0, **{**SIZES, "samples_per_prompt": 4})
