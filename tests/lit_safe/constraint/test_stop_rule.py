"""A run of dual ascent ends early when its limit is met or its multiplier has settled, and not before."""

from pathlib import Path

import pytest
import torch

from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.constraint.limits import Standing
from lit_safe.constraint.stop_rule import StopRule
from tests.lit_safe.constraint.test_dual import Save, curve, module, state, trainer
from tests.lit_safe.dual_world import ExactCost, Toy


def at(cost: float, stderr: float = 0.1, limit: float = 0.0) -> Standing:
    return Standing(("harm",), (limit,), (cost,), (stderr,), 1e9, 0)


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def test_a_limit_counts_as_met_if_the_bound_is_within_it_not_if_the_estimate_is() -> None:
    rule = StopRule()
    assert rule.counts(at(-0.2), t(1.0), t(0.5), 10.0, moved=True)  # -0.2 + 1.645 * 0.1 = -0.036
    assert not rule.counts(at(-0.1), t(1.0), t(0.9), 10.0, moved=True)  # -0.1 + 1.645 * 0.1 = 0.064


def test_every_multiplier_must_have_settled_and_none_at_its_maximum_has() -> None:
    rule = StopRule(met=False, settled=0.05)
    over = at(1.0)
    assert rule.counts(over, t(1.0, 2.0), t(1.04, 2.0), t(10.0, 10.0), moved=True)
    assert not rule.counts(over, t(1.0, 2.0), t(1.06, 2.0), t(10.0, 10.0), moved=True)
    assert not rule.counts(over, t(1.0, 10.0), t(1.0, 10.0), t(10.0, 10.0), moved=True)
    assert not rule.counts(over, t(1.0, 2.0), t(1.0, 2.0), t(10.0, 10.0), moved=False)  # nothing moved it


def test_settings_that_never_stop_or_cannot_be_are_refused() -> None:
    for wrong, message in (
        ({"settled": -1.0}, "settled must be at least 0"),
        ({"in_a_row": 0}, "in_a_row must be at least 1"),
        ({"met": False}, "never stops a run"),
    ):
        with pytest.raises(ValueError, match=message):
            StopRule(**wrong)  # type: ignore[arg-type]  # mypy joins the values' types
    with pytest.raises(ValueError, match="stop needs an estimate"):
        DualAscent(0.0, stop=StopRule())


def dual(limit: float, rule: StopRule | None) -> DualAscent:
    return DualAscent(limit, lr=0.3, estimator=ExactCost(), stop=rule)


@pytest.mark.parametrize(
    ("limit", "rule", "epochs"),
    [
        (5.0, StopRule(), 2),  # every estimate is within the limit: the second in a row ends the run
        (5.0, StopRule(in_a_row=1), 1),
        (-5.0, StopRule(), 4),  # none ever is
        (-1.0, StopRule(met=False, settled=100.0, in_a_row=3), 3),
        (5.0, None, 4),
    ],
)
def test_a_run_ends_after_so_many_estimates_in_a_row(
    tmp_path: Path, limit: float, rule: StopRule | None, epochs: int
) -> None:
    fitted = trainer(tmp_path, dual(limit, rule), max_epochs=4)
    fitted.fit(module(), datamodule=Toy(4))
    assert fitted.current_epoch == epochs
    assert len(curve(tmp_path, "dual/cost")) == epochs


def test_a_stopped_run_that_is_resumed_trains_no_further_and_a_killed_one_stops_where_it_would_have(
    tmp_path: Path,
) -> None:
    whole, again, resumed = module(), module(), module()
    trainer(tmp_path / "whole", dual(5.0, StopRule()), Save(tmp_path, "on_train_epoch_end"), max_epochs=4).fit(
        whole, datamodule=Toy(4)
    )
    files = sorted(tmp_path.glob("*.ckpt"), key=lambda path: int(path.stem))
    assert len(files) == 2
    for fitted, file in ((resumed, files[0]), (again, files[1])):
        trainer(tmp_path / f"from {file.stem}", dual(5.0, StopRule()), max_epochs=4).fit(
            fitted, datamodule=Toy(4), ckpt_path=file, weights_only=True
        )
        assert state(fitted) == state(whole)
