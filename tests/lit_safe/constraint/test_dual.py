"""The multiplier: its step, when it is taken, what survives a resume, and where it settles."""

import itertools
import logging
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, EMAWeightAveraging, LambdaCallback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from lit_safe.constraint.costs.rollout import RolloutCost
from lit_safe.constraint.dual_ascent import DualAscent, FrozenPolicyWarning
from lit_safe.objectives import ConstrainedDPO
from lit_safe.training.averaging import IterateAverage
from lit_safe.training.module import PreferenceAlignment
from lit_safe.training.schedules import Cosine, Linear
from tests.lit_safe.dual_world import (
    BETA,
    COST,
    ExactCost,
    P,
    Table,
    TableCost,
    Toy,
    objective_value,
    optimal_cost,
    optimum,
    solve,
)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": 0.1}, "needs an estimator"),
        ({"lr": -1.0}, "lr must be"),
        ({"lr": math.nan}, "lr must be"),
        ({"limit": math.nan}, "limit must be"),
        ({"limit": [0.0, math.inf]}, "limit must be"),
        ({"maximum": 0.0}, "maximum must be"),
        ({"every_n_epochs": 0}, "every_n_epochs"),
        ({"warmup_epochs": -1}, "warmup_epochs"),
        ({"ship": "best"}, "ship must be"),
    ],
)
def test_arguments_outside_their_range_are_refused_at_once(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DualAscent(**options)


# -- in training


class Killed(Exception):
    """Stands for the end of the process."""


class KillAt(Callback):
    """Ends the run after ``step`` optimizer steps, once every other callback has seen the step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Killed

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Killed


def module(multiplier: float | list[float] = 0.0, lr: float = 0.05, **options: Any) -> PreferenceAlignment:
    return PreferenceAlignment(
        Table(),
        ConstrainedDPO(beta=BETA),
        lambda parameters: torch.optim.Adam(parameters, lr=lr),
        multiplier=multiplier,
        gradient_clip_norm=None,
        precompute_reference=False,  # the table has no weights that a stored reference could be named by
        **options,
    )


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 3,
        "logger": CSVLogger(str(folder), name="", version="", flush_logs_every_n_steps=1),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(c, Checkpoint) for c in callbacks),
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "default_root_dir": str(folder),
    }
    return Trainer(**{**defaults, **options}, callbacks=list(callbacks))


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    """(step, value) of every row that has one, in order."""
    header, *rows = [line.split(",") for line in (folder / "metrics.csv").read_text(encoding="utf-8").splitlines()]
    step, column = header.index("step"), header.index(tag)
    return [(int(row[step]), float(row[column])) for row in rows if row[column]]


def state(model: PreferenceAlignment) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in model.state_dict().items() if "means" not in name}


@pytest.mark.parametrize("validation", [{}, {"val_check_interval": 0.5}, {"num_sanity_val_steps": 2}])
def test_the_multiplier_moves_once_at_the_end_of_each_epoch_however_often_validation_runs(
    tmp_path: Path, validation: dict[str, Any]
) -> None:
    estimator, model = ExactCost(), module()
    trainer(tmp_path, DualAscent(lr=0.5, estimator=estimator), **validation).fit(model, datamodule=Toy(4))
    assert estimator.epochs == [0, 1, 2]
    multiplier, cost = curve(tmp_path, "dual/multiplier"), curve(tmp_path, "dual/cost")
    assert [step for step, _ in multiplier] == [0, 4, 8, 12]
    assert [step for step, _ in cost] == [4, 8, 12]
    for (_, before), (_, after), (_, c) in zip(multiplier, multiplier[1:], cost, strict=False):
        assert after == pytest.approx(max(0, before + 0.5 * c), abs=1e-6)


def test_validation_and_testing_alone_move_nothing(tmp_path: Path) -> None:
    estimator, model = ExactCost(), module(0.3)
    trainer(tmp_path, DualAscent(lr=0.5, estimator=estimator)).validate(model, datamodule=Toy())
    assert estimator.epochs == []
    assert model.multiplier.item() == pytest.approx(0.3)


def test_every_n_epochs_warm_up_and_freeze_choose_the_epochs(tmp_path: Path) -> None:
    estimator, model = ExactCost(), module(1.0)
    dual = DualAscent(lr=0.5, estimator=estimator, every_n_epochs=2, warmup_epochs=2, freeze_last_epochs=2)
    trainer(tmp_path, dual, max_epochs=8).fit(model, datamodule=Toy(1))
    assert estimator.epochs == [1, 3, 5, 7]
    values = [value for _, value in curve(tmp_path, "dual/multiplier")]
    moved = [epoch for epoch, (old, new) in enumerate(itertools.pairwise(values)) if old != new]
    assert moved == [3, 5]  # 1 is warm-up, 6 and 7 are frozen


def test_an_epoch_cut_short_takes_no_step_and_one_that_max_steps_ends_exactly_does(tmp_path: Path) -> None:
    for steps, epochs in ((6, [0]), (8, [0, 1])):
        estimator = ExactCost()
        dual = DualAscent(lr=0.5, estimator=estimator)
        trainer(tmp_path / str(steps), dual, max_steps=steps, max_epochs=-1).fit(module(), datamodule=Toy(4))
        assert estimator.epochs == epochs


def test_lr_zero_draws_the_curves_and_training_is_bit_for_bit_the_same_without_an_estimator(tmp_path: Path) -> None:
    """The estimator generates, in eval mode, through a layer with dropout, and draws random numbers on the way."""

    class Gambler(TableCost):
        def __call__(self, prompts: list[str], responses: list[str]) -> Tensor:
            return super().__call__(prompts, responses) + torch.rand(len(prompts)) * 0

    ends = []
    for name, estimator in (("with", RolloutCost(Gambler())), ("without", None)):
        torch.manual_seed(0)
        model = module(2.0)
        trainer(tmp_path / name, DualAscent(lr=0.0, estimator=estimator)).fit(model, datamodule=Toy())
        assert model.pair.training
        assert model.pair.dropout.training
        ends.append((state(model), torch.rand(3).tolist()))
    assert ends[0] == ends[1]
    assert len(curve(tmp_path / "with", "dual/cost")) == 3
    assert {value for _, value in curve(tmp_path / "with", "dual/multiplier")} == {2.0}


def test_two_constraints_have_two_curves_by_their_names(tmp_path: Path) -> None:
    costs = torch.stack((COST, -COST), dim=-1)
    dual = DualAscent(limit=[-1.0, 5.0], lr=0.5, estimator=ExactCost((COST, -COST)))
    model = module([0.0, 1.0])
    trainer(tmp_path, dual, max_epochs=2).fit(model, datamodule=Toy(2, costs, ("harm", "dullness")))
    assert curve(tmp_path, "dual/violation_harm")[0][1] == pytest.approx(1 + curve(tmp_path, "dual/cost_harm")[0][1])
    assert curve(tmp_path, "dual/violation_dullness")[0][1] < -4
    assert model.multiplier[0] > 0
    assert model.multiplier[1] == 0


@pytest.mark.parametrize(
    ("model", "dual", "said"),
    [
        (module([0.0, 0.0]), DualAscent(limit=[0.0], estimator=ExactCost()), "limit has shape"),
        (module([0.0, 0.0]), DualAscent(estimator=ExactCost()), "estimated cost has shape"),
        (module([0.0, 0.0, 0.0]), DualAscent(), "3 multipliers for the data's constraints"),
        (module(11.0), DualAscent(lr=0.1, estimator=ExactCost()), "above its maximum"),
        (
            module(1.0),
            DualAscent(lr=0.1, estimator=RolloutCost(TableCost())),
            r"2 constraints, harm, dullness",
        ),
        (module([1.0, 1.0]), DualAscent(estimator=RolloutCost(TableCost())), r"TableCost gave .* of shape \[1, 2\]"),
    ],
)
def test_shapes_and_starts_that_do_not_fit_are_refused(
    tmp_path: Path, model: PreferenceAlignment, dual: DualAscent, said: str
) -> None:
    two = torch.stack((COST, COST), dim=-1) if model.multiplier.ndim else COST
    with pytest.raises(ValueError, match=said):
        trainer(tmp_path, dual).fit(model, datamodule=Toy(1, two, ("harm", "dullness")))


class Reads:
    """A cost function whose scorer cannot be read."""

    folder = "scorers/mine"

    def __call__(self, prompts: list[str], responses: list[str]) -> Tensor:
        raise FileNotFoundError("scorers/mine/card.json")


class Fits(Callback):
    fit_cost, cost = True, Reads()


class Unmoved(RolloutCost):
    def __call__(self, module: Any, data: Any, *, seed: int, epoch: int) -> Any:
        return ExactCost()(module, data, seed=seed, epoch=epoch)


def test_a_scorer_that_cannot_be_read_stops_the_run_before_its_first_step(tmp_path: Path) -> None:
    estimator = Unmoved(Reads())
    steps: list[int] = []
    counting = LambdaCallback(on_train_batch_end=lambda *_: steps.append(1))
    with pytest.raises(FileNotFoundError, match=r"scorers/mine/card\.json"):
        trainer(tmp_path, DualAscent(estimator=estimator), counting).fit(module(), datamodule=Toy())
    assert not steps
    # unless a callback fits that very scorer first
    trainer(tmp_path, DualAscent(estimator=estimator), counting, Fits()).fit(module(), datamodule=Toy())
    assert steps


def test_a_callback_that_averages_buffers_is_refused_beside_a_moving_multiplier(tmp_path: Path) -> None:
    dual = DualAscent(lr=0.1, estimator=ExactCost())
    with pytest.raises(ValueError, match=r"EMAWeightAveraging averages buffers.*ship average"):
        DualAscent.setup(dual, trainer(tmp_path, dual, EMAWeightAveraging()), module(), "fit")


def test_a_multiplier_that_something_cast_is_refused(tmp_path: Path) -> None:
    cast = LambdaCallback(on_fit_start=lambda _, model: setattr(model, "multiplier", model.multiplier.bfloat16()))
    with pytest.raises(ValueError, match=r"multiplier is in torch\.bfloat16"):
        trainer(tmp_path, DualAscent(lr=0.1, estimator=ExactCost()), cast).fit(module(), datamodule=Toy())


# -- resume


class Save(Checkpoint):
    """Saves at one of Lightning's hooks; being a ``Checkpoint``, it is called after all other callbacks."""

    def __init__(self, folder: Path, hook: str) -> None:
        setattr(self, hook, lambda trainer, *_: trainer.save_checkpoint(folder / f"{trainer.global_step}.ckpt"))


@pytest.mark.parametrize("ship", ["last", "average"])
@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_train_epoch_end", 4),  # after the dual step
        ("on_validation_end", 4),  # before it
        ("on_train_batch_end", 3),
        ("on_train_batch_end", 4),  # after the epoch's last batch: Lightning never ends that epoch again
        ("on_train_batch_end", 5),
    ],
)
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(tmp_path: Path, hook: str, step: int, ship: str) -> None:
    def dual() -> DualAscent:
        return DualAscent(-1.0, lr=0.5, estimator=RolloutCost(TableCost(), samples_per_prompt=3), ship=ship)  # type: ignore[arg-type]

    whole = module()
    trainer(tmp_path / "whole", dual()).fit(whole, datamodule=Toy(4))
    with pytest.raises(Killed):
        trainer(tmp_path / "killed", dual(), KillAt(step), Save(tmp_path, hook)).fit(module(), datamodule=Toy(4))
    resumed = module()
    trainer(tmp_path / "resumed", dual()).fit(
        resumed, datamodule=Toy(4), ckpt_path=tmp_path / f"{step}.ckpt", weights_only=True
    )
    assert state(resumed) == state(whole)
    assert len({value for _, value in curve(tmp_path / "whole", "dual/multiplier")}) == 4  # every step counts
    assert curve(tmp_path / "resumed", "dual/cost") == [
        row for row in curve(tmp_path / "whole", "dual/cost") if row in curve(tmp_path / "resumed", "dual/cost")
    ]


def test_a_checkpoint_of_weights_alone_holds_the_multiplier_after_the_step(tmp_path: Path) -> None:
    model = module()
    saver = ModelCheckpoint(
        tmp_path / "saved", "{step}", save_top_k=-1, save_on_train_epoch_end=True, save_weights_only=True
    )
    trainer(tmp_path, saver, DualAscent(lr=0.5, estimator=ExactCost())).fit(model, datamodule=Toy(4))
    stored = torch.load(tmp_path / "saved" / "step=12.ckpt", weights_only=True)["state_dict"]
    assert stored["multiplier"] == model.multiplier
    assert stored["multiplier"] > 0
    assert stored["dual_epoch"] == 2


def test_an_average_cannot_resume_without_its_past(tmp_path: Path) -> None:
    dual = DualAscent(lr=0.5, estimator=ExactCost())
    trainer(tmp_path, dual, Save(tmp_path, "on_train_epoch_end"), max_epochs=2).fit(module(), datamodule=Toy(4))
    averaging = DualAscent(lr=0.5, estimator=ExactCost(), ship="average")
    with pytest.raises(ValueError, match="without its average"):
        trainer(tmp_path / "again", averaging).fit(
            module(), datamodule=Toy(4), ckpt_path=tmp_path / "8.ckpt", weights_only=True
        )


# -- where it goes: three runs against the closed form


def run(folder: Path, dual: DualAscent, multiplier: float, epochs: int) -> PreferenceAlignment:
    model = module(multiplier)
    trainer(folder, dual, max_epochs=epochs, logger=CSVLogger(str(folder), name="", version="")).fit(
        model, datamodule=Toy(20)
    )
    return model


def test_a_limit_out_of_reach_drives_the_multiplier_to_its_maximum_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    least = float(COST.min(-1).values.mean())
    dual = DualAscent(limit=least - 0.1, lr=2.0, maximum=4.0, estimator=ExactCost())
    model = run(tmp_path, dual, 0.0, 8)
    rising = [value for _, value in curve(tmp_path, "dual/multiplier")]
    assert rising == sorted(rising)
    assert model.multiplier == 4.0
    assert [r.message for r in caplog.records].count(caplog.records[-1].message) == 1
    assert "limit not reached" in caplog.text


def test_a_limit_that_does_not_bind_brings_the_multiplier_back_to_zero_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limit = optimal_cost(0.0) + 0.3
    with caplog.at_level(logging.INFO, "lit_safe.constraint.multiplier"):
        model = run(tmp_path, DualAscent(limit=limit, lr=1.0, estimator=ExactCost()), 2.0, 12)
    falling = [value for _, value in curve(tmp_path, "dual/multiplier")]
    assert falling == sorted(falling, reverse=True)
    assert model.multiplier == 0
    assert "back at 0" in caplog.text


def test_a_limit_that_binds_is_met_at_the_closed_forms_multiplier_and_policy(tmp_path: Path) -> None:
    limit = -0.3
    expected = solve(limit)
    model = run(tmp_path, DualAscent(limit=limit, lr=1.0, estimator=ExactCost()), 0.0, 25)
    assert 0.5 < expected < 5
    assert model.multiplier.item() == pytest.approx(expected, abs=0.01)
    assert model.pair.expected(COST) == pytest.approx(limit, abs=0.01)
    torch.testing.assert_close(
        model.pair.logit_PK.detach().double().log_softmax(-1), optimum(expected), atol=0.05, rtol=0
    )
    assert curve(tmp_path, "dual/violation")[-1][1] == pytest.approx(0, abs=0.01)


def test_with_sampled_costs_it_settles_within_the_error_of_the_estimate(tmp_path: Path) -> None:
    limit = -0.3
    estimator = RolloutCost(TableCost(), prompts=P, samples_per_prompt=64)
    model = run(tmp_path, DualAscent(limit=limit, lr=0.5, estimator=estimator), 0.0, 20)
    assert model.multiplier.item() == pytest.approx(solve(limit), abs=0.3)
    assert model.pair.expected(COST) == pytest.approx(limit, abs=0.15)


def test_cost_falls_with_the_multiplier_at_the_rate_variance_over_beta() -> None:
    """The slope behind the docstring's Newton step: d E[c] / d multiplier = -Var(c) / beta."""
    at = 1.3
    pi_PK = optimum(at).exp()
    mean_P = (pi_PK * COST).sum(-1, keepdim=True)
    variance = float((pi_PK * (COST - mean_P) ** 2).sum(-1).mean())
    slope = (optimal_cost(at + 1e-4) - optimal_cost(at - 1e-4)) / 2e-4
    assert slope == pytest.approx(-variance / BETA, rel=1e-5)


# -- which iterate ships


def regret(folder: Path, ship: str, lr: float, epochs: int, steps: int, limit: float = -0.3) -> tuple[float, float]:
    """(|cost - limit|, how far below the constrained optimum's Lagrangian) of what a run leaves in the module."""
    model = module()
    dual = DualAscent(limit=limit, lr=lr, estimator=ExactCost(), ship=ship)  # type: ignore[arg-type]
    trainer(folder, dual, max_epochs=epochs, logger=False).fit(model, datamodule=Toy(steps))
    logp_PK = model.pair.logit_PK.detach().double().log_softmax(-1)
    star = solve(limit)
    best = objective_value(optimum(star), star)
    return abs(model.pair.expected(COST) - limit), best - objective_value(logp_PK, star)


def test_the_last_iterate_ships_because_the_average_drags_the_way_there_along(tmp_path: Path) -> None:
    """At Newton's step (here about 1) and few epochs, the usual run, the last iterate is on the limit already."""
    assert DualAscent().ship == "last"
    last, average = (regret(tmp_path, ship, lr=1.0, epochs=3, steps=100) for ship in ("last", "average"))
    assert last[0] < 0.05 < average[0]
    assert last[1] < average[1] / 5


def test_the_average_is_there_for_a_multiplier_that_swings(tmp_path: Path) -> None:
    """At four times Newton's step the multiplier never settles; the average is near the solution all the same."""
    last, average = (regret(tmp_path, ship, lr=4.0, epochs=20, steps=20) for ship in ("last", "average"))
    assert average[0] < last[0] / 2
    assert average[1] < last[1] / 5


def test_the_shipped_averages_cost_is_measured(tmp_path: Path) -> None:
    model = module()
    trainer(tmp_path, DualAscent(lr=4.0, estimator=ExactCost(), ship="average")).fit(model, datamodule=Toy(4))
    [(step, cost)] = curve(tmp_path, "dual/shipped_cost")
    assert step == 12
    assert cost == pytest.approx(model.pair.expected(COST), abs=1e-6)
    assert curve(tmp_path, "dual/shipped_multiplier") == [(12, pytest.approx(model.multiplier.item()))]


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=20), st.integers(0, 19))
def test_an_average_continued_from_its_state_is_the_same_average(values: list[float], cut: int) -> None:
    whole, first, second = IterateAverage(), IterateAverage(), IterateAverage()
    for value in values:
        whole.add({"x": torch.tensor(value)})
    for value in values[:cut]:
        first.add({"x": torch.tensor(value)})
    second.load_state_dict(first.state_dict())
    for value in values[cut:]:
        second.add({"x": torch.tensor(value)})
    assert second.state_dict() == whole.state_dict()


def test_eta_zero_is_the_plain_mean_and_eta_three_forgets_the_start() -> None:
    plain, fading = IterateAverage(0), IterateAverage()
    for value in [1.0] * 10 + [0.0] * 10:
        plain.add({"x": torch.tensor(value)})
        fading.add({"x": torch.tensor(value)})
    assert plain.mean["x"] == pytest.approx(0.5)
    assert fading.mean["x"] < 0.1


# -- a schedule that dies first


def test_a_schedule_that_freezes_the_policy_before_the_multiplier_is_warned_about(tmp_path: Path) -> None:
    dual = DualAscent(lr=0.5, estimator=ExactCost())
    with pytest.raises(
        FrozenPolicyWarning, match=r"epoch 18 .*schedule\.final to 0\.1, or dual\.freeze_last_epochs to 3"
    ):
        trainer(tmp_path, dual, max_epochs=20).fit(module(schedule=Cosine()), datamodule=Toy(2))


@pytest.mark.parametrize(
    ("schedule", "freeze"),
    [(Cosine(final=0.1), 0), (Cosine(), 3)],
    ids=["a floor under the rate", "as many epochs frozen as were named"],
)
def test_either_remedy_that_the_warning_names_silences_it(tmp_path: Path, schedule: Cosine, freeze: int) -> None:
    dual = DualAscent(lr=0.5, estimator=ExactCost(), freeze_last_epochs=freeze)
    trainer(tmp_path, dual, max_epochs=20).fit(module(schedule=schedule), datamodule=Toy(2))


# -- a step size that falls


def test_the_steps_follow_the_schedule_between_warm_up_and_freeze(tmp_path: Path) -> None:
    dual = DualAscent(
        lr=0.1, schedule=Linear(final=0.2), estimator=ExactCost(), warmup_epochs=2, freeze_last_epochs=3, limit=-9.0
    )
    run = trainer(tmp_path, dual, max_epochs=9)
    run.fit(module(), datamodule=Toy(2))
    rows = pd.read_csv(next(tmp_path.rglob("metrics.csv"))).dropna(subset="dual/lr").sort_values("step")
    assert rows["dual/lr"].tolist() == pytest.approx([0, 0, 0.1, 0.08, 0.06, 0.04, 0, 0, 0])
    moved = rows["dual/multiplier"].diff().to_numpy()[1:]
    assert moved == pytest.approx((rows["dual/lr"] * rows["dual/violation"]).to_numpy()[1:], rel=1e-5)


def test_a_run_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"set trainer.max_epochs or trainer.max_steps"):
        trainer(tmp_path, max_epochs=-1, max_time="00:00:00:05").fit(module(), datamodule=Toy(2))
