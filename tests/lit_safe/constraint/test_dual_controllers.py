"""Controllers in training: where they start, when they step, what survives a resume, and what is said of them."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_safe.constraint.controllers import Controller
from lit_safe.constraint.controllers.fixed import Fixed
from lit_safe.constraint.controllers.log_barrier import LogBarrier
from lit_safe.constraint.controllers.log_space import LogSpace
from lit_safe.constraint.controllers.newton import DiagonalNewton
from lit_safe.constraint.controllers.pid import PIDLagrangian
from lit_safe.constraint.controllers.scheduled import Scheduled
from lit_safe.constraint.costs.rollout import RolloutCost
from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.screen.opening import limit_in_words, multiplier_in_words
from tests.lit_safe.constraint.controllers_two_ranks import CONTROLLERS, EPOCHS, train_as_rank
from tests.lit_safe.constraint.test_dual import KillAt, Killed, Save, curve, module, state, trainer
from tests.lit_safe.dual_world import COST, ExactCost, TableCost, Toy
from tests.ranks import run_on_two_ranks

STATEFUL: dict[str, Callable[[], Controller]] = {
    "pid": lambda: PIDLagrangian(0.3, 0.4, 0.2, 2, 0.5, 0.5),
    "log space": lambda: LogSpace(init=0.5, lr=0.4, window=2),
    "newton": lambda: DiagonalNewton(0.6),
}


@pytest.mark.parametrize("make", STATEFUL.values(), ids=STATEFUL)
@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_train_epoch_end", 8),  # after the dual step
        ("on_validation_end", 8),  # before it
        ("on_train_batch_end", 8),  # after the epoch's last batch: Lightning never ends that epoch again
        ("on_train_batch_end", 9),
    ],
)
def test_a_resumed_controller_takes_the_steps_of_the_uninterrupted_one(
    tmp_path: Path, hook: str, step: int, make: Callable[[], Controller]
) -> None:
    def dual() -> DualAscent:
        return DualAscent(-1.0, controller=make(), estimator=RolloutCost(TableCost(), samples_per_prompt=3))

    whole, resumed = module(), module()
    trainer(tmp_path / "whole", dual(), max_epochs=4).fit(whole, datamodule=Toy(4))
    killed = trainer(tmp_path / "killed", dual(), KillAt(step), Save(tmp_path, hook), max_epochs=4)
    with pytest.raises(Killed):
        killed.fit(module(), datamodule=Toy(4))
    trainer(tmp_path / "resumed", dual(), max_epochs=4).fit(
        resumed, datamodule=Toy(4), ckpt_path=tmp_path / f"{step}.ckpt", weights_only=True
    )
    assert state(resumed) == state(whole)
    assert len({value for _, value in curve(tmp_path / "whole", "dual/multiplier")}) == 5  # every step counts


def test_two_ranks_have_the_same_state_of_every_controller_and_a_resumed_run_has_it_too(tmp_path: Path) -> None:
    run_on_two_ranks(partial(train_as_rank, tmp_path), tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert set(first) == set(CONTROLLERS)
    for name in CONTROLLERS:
        (whole, resumed), (other, other_resumed) = first[name], second[name]
        assert repr(whole) == repr(resumed) == repr(other) == repr(other_resumed), name  # a bound may be NaN
        assert (whole["controller_state"] is not None) == (name in STATEFUL), name
        assert whole["epoch"] == EPOCHS - 1
    moved = {name: float(first[name][0]["multiplier"]) for name in CONTROLLERS}
    assert len({round(value, 4) for value in moved.values()}) > 4, "the rules differ"


def test_a_controller_with_a_state_does_not_resume_without_it(tmp_path: Path) -> None:
    first = DualAscent(lr=0.5, estimator=ExactCost())
    trainer(tmp_path, first, Save(tmp_path, "on_train_epoch_end"), max_epochs=1).fit(module(), datamodule=Toy(4))
    other = DualAscent(controller=PIDLagrangian(), estimator=ExactCost())
    with pytest.raises(ValueError, match="PIDLagrangian cannot resume from a checkpoint that was written without"):
        trainer(tmp_path / "again", other).fit(
            module(), datamodule=Toy(4), ckpt_path=tmp_path / "4.ckpt", weights_only=True
        )


def test_the_integral_of_a_pid_rule_trains_as_the_default_step_does(tmp_path: Path) -> None:
    ends = []
    for name, options in (("pid", {"controller": PIDLagrangian(0.0, 0.5, 0.0)}), ("lr", {"lr": 0.5})):
        model = module()
        dual = DualAscent(-1.0, estimator=ExactCost(), **options)  # type: ignore[arg-type]
        trainer(tmp_path / name, dual).fit(model, datamodule=Toy(4))
        ends.append(model.multiplier.item())
    assert ends[0] == pytest.approx(ends[1], abs=1e-6)
    assert ends[0] > 0.5


def test_a_controller_sets_the_start_and_follows_warm_up_and_freeze(tmp_path: Path) -> None:
    dual = DualAscent(
        controller=Scheduled(0.5, 2.5), estimator=ExactCost(), warmup_epochs=1, freeze_last_epochs=1, every_n_epochs=1
    )
    trainer(tmp_path, dual, max_epochs=5).fit(module(9.0), datamodule=Toy(1))
    values = [value for _, value in curve(tmp_path, "dual/multiplier")]
    assert values == pytest.approx([0.5, 0.5, 1.5, 2.5, 2.5, 2.5])


def test_what_a_controller_used_is_logged_and_zero_where_it_took_no_step(tmp_path: Path) -> None:
    dual = DualAscent(-1.0, controller=PIDLagrangian(0.5, 0.5, 0.0), estimator=ExactCost(), freeze_last_epochs=1)
    trainer(tmp_path, dual).fit(module(), datamodule=Toy(2))
    terms = [[value for _, value in curve(tmp_path, f"dual/pid_{term}")] for term in "pid"]
    moved = [value for _, value in curve(tmp_path, "dual/multiplier")]
    assert [sum(each) for each in zip(*terms, strict=True)][:2] == pytest.approx(moved[1:3], abs=1e-6)
    assert [term[2] for term in terms] == [0, 0, 0]


@pytest.mark.parametrize("make", STATEFUL.values(), ids=STATEFUL)
def test_an_estimate_that_is_not_finite_stops_the_run(tmp_path: Path, make: Callable[[], Controller]) -> None:
    class Broken(ExactCost):
        def __call__(self, module: Any, data: Any, *, seed: int, epoch: int) -> Any:
            found = super().__call__(module, data, seed=seed, epoch=epoch)
            return found._replace(mean=found.mean * (math.nan if epoch else 1))

    model = module()
    with pytest.raises(FloatingPointError, match="the estimated cost is nan"):
        trainer(tmp_path, DualAscent(controller=make(), estimator=Broken())).fit(model, datamodule=Toy(2))
    assert model.multiplier.isfinite()
    assert int(model.dual_epoch) == 0


def test_a_fixed_multiplier_is_shipped_as_it_started(tmp_path: Path) -> None:
    model = module(0.25)
    trainer(tmp_path, DualAscent(controller=Fixed(1.5), estimator=ExactCost())).fit(model, datamodule=Toy(2))
    assert model.multiplier == 1.5
    assert len(curve(tmp_path, "dual/cost")) == 3


@pytest.mark.parametrize(
    "options",
    [{"lr": 0.1}, {"lr": [0.0, 0.1]}, {"maximum": 5.0}, {"schedule": lambda step, total: 1.0}],
    ids=["lr", "several lr", "maximum", "schedule"],
)
def test_a_controller_beside_the_default_steps_settings_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"PIDLagrangian and dual.{next(iter(options))} are both given"):
        DualAscent(controller=PIDLagrangian(), estimator=ExactCost(), **options)


@pytest.mark.parametrize(
    ("dual", "said"),
    [
        (DualAscent(), "λ stays at 0.5 (dual.lr is 0)"),
        (DualAscent(controller=Fixed()), "λ stays at 0.5 (the controller is Fixed)"),
        (
            DualAscent(controller=PIDLagrangian(0.1, [0.2, 0.3], penalty_max=4.0), estimator=ExactCost()),
            "λ starts at 0.5 and follows a PID rule on cost - limit (kp 0.1, ki 0.2, 0.3, kd 0), between 0 and 4",
        ),
        (
            DualAscent(controller=LogBarrier(0.2), estimator=ExactCost()),
            "λ starts at 0.5 and goes 25 % of the way to 0.2 / (limit - cost - 1 standard errors), and towards 10 over "
            "the limit; at most 10",
        ),
        (
            DualAscent(controller=Scheduled(0.5, 2.0, 0.5), estimator=ExactCost()),
            "λ starts at 0.5 and moves to 2 after 50 % of the steps, whatever the cost",
        ),
    ],
)
def test_the_opening_screen_says_how_the_multiplier_moves(dual: DualAscent, said: str) -> None:
    shown = SimpleNamespace(callbacks=[dual], global_step=0)
    assert multiplier_in_words(shown, module(0.5)) == said  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("margin", "said"),
    [
        (0.0, "by ExactCost"),
        ([0.1, 0.2], "by ExactCost; λ steers 0.1, 0.2 below it (dual.margin)"),
        ("auto", "by ExactCost; λ steers below it by the margin with which 400 prompts certify it at 95 % with power "
                 "80 % by Student's t"),
    ],
)  # fmt: skip
def test_the_opening_screen_says_the_limit_and_the_margin_below_it(margin: Any, said: str) -> None:
    dual = DualAscent(limit=0.5, lr=0.1, margin=margin, estimator=ExactCost((COST, COST)))
    data = SimpleNamespace(constraints=("harm", "dullness"))
    words = limit_in_words(SimpleNamespace(callbacks=[dual], datamodule=data))  # type: ignore[arg-type]
    assert words.startswith("E[cost of harm] <= 0.5, E[cost of dullness] <= 0.5, estimated at the end of each epoch")
    assert words.endswith(said)
