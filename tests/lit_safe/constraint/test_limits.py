"""What is said of a limit, of its bounds, and of a multiplier that stays at an end of its interval."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.constraint.limits import Standing, sentence, standing
from lit_safe.constraint.multiplier import BoundWatch
from lit_safe.training.module import PreferenceAlignment
from lit_safe.types import CostEstimate
from tests.lit_safe.constraint.test_dual import curve, module, trainer
from tests.lit_safe.dual_world import COST, ExactCost, Toy

LEAST = float(COST.min(-1).values.mean())  # no policy costs less


def estimate(mean: float, stderr: float, clusters: int | None = None) -> CostEstimate:
    return CostEstimate(torch.tensor(mean), torch.tensor(stderr), 40, torch.tensor(0.5), 40.0, clusters=clusters)


def test_the_bound_is_students_one_sided_one_with_prompts_as_clusters() -> None:
    """0.5 + t_{0.95}(9) * 0.1 = 0.5 + 1.8331 * 0.1."""
    found = standing(["harm"], torch.tensor(0.7, dtype=torch.float64), estimate(0.5, 0.1, clusters=10), 2)
    assert found.upper[0] == pytest.approx(0.5 + stats.t.ppf(0.95, 9) * 0.1, rel=1e-6)
    assert found.upper[0] == pytest.approx(0.68331, abs=1e-5)
    assert found.verdicts == ("met",)
    assert Standing.from_state_dict(found.state_dict()) == found


@pytest.mark.parametrize(("limit", "verdict"), [(0.7, "met"), (0.6, "undecided"), (0.4, "undecided"), (0.3, "not met")])
def test_a_limit_within_the_errors_is_undecided(limit: float, verdict: str) -> None:
    found = standing(["harm"], torch.tensor(limit, dtype=torch.float64), estimate(0.5, 0.1, clusters=10), 2)
    assert found.verdicts == (verdict,)
    assert found.feasible == (verdict == "met")
    said = sentence({"constraints": found.as_json(), "unknown": None})
    assert said == f"**Limit {limit:g}: {verdict}.** E[cost] 0.5, 95 % one-sided bound 0.6833."


def test_an_error_that_is_not_known_decides_nothing() -> None:
    found = standing(["harm"], torch.tensor(9.0, dtype=torch.float64), estimate(0.5, math.nan), 2)
    assert found.verdicts == ("undecided",)
    assert found.as_json()[0]["upper"] is None
    assert "its error is not known" in sentence({"constraints": found.as_json(), "unknown": None})


def test_every_limit_counts() -> None:
    mean, error = torch.tensor([0.0, 1.0]), torch.tensor([0.1, 0.1])
    both = CostEstimate(mean, error, 40, torch.tensor(0.5), 40.0)
    found = standing(["harm", "dullness"], torch.tensor(0.5, dtype=torch.float64), both, 2)
    assert found.verdicts == ("met", "not met")
    assert not found.feasible
    assert "Limit on dullness 0.5: not met" in sentence({"constraints": found.as_json(), "unknown": None})


# -- at an end of the interval


def fit(folder: Path, start: float, maximum: float, limit: float, **options: Any) -> PreferenceAlignment:
    model = module(start)
    dual = DualAscent(limit=limit, lr=2.0, maximum=maximum, estimator=ExactCost())
    trainer(folder, dual, **options).fit(model, datamodule=Toy(2))
    return model


@pytest.mark.parametrize("maximum", [0.7, 3.3, 0.1, 4.0])
@pytest.mark.parametrize("at_maximum", [True, False], ids=["starts there", "comes there"])
def test_a_limit_out_of_reach_is_said_whatever_the_maximum_and_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, maximum: float, at_maximum: bool
) -> None:
    fit(tmp_path, maximum if at_maximum else 0.0, maximum, LEAST - 3.0, max_epochs=5)
    assert [m.partition(":")[0] for m in caplog.messages if "limit not reached" in m] == ["limit not reached so far"]
    [long] = [m for m in caplog.messages if "has been at its maximum" in m]
    assert f"maximum {maximum:g} for 2 epochs" in long


def test_a_run_that_resumes_at_its_maximum_says_so_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watch = BoundWatch()
    see = (torch.tensor(0.7), torch.tensor(0.7), torch.tensor(1.0), torch.tensor(0.0), 0.7)
    watch.see([""], *see)
    watch.see([""], *see)
    resumed = BoundWatch()
    resumed.load_state_dict(watch.state_dict())
    caplog.clear()
    resumed.see([""], *see)
    assert len(caplog.messages) == 1
    assert "for 3 epochs" in caplog.text
    resumed.see([""], *see)
    assert len(caplog.messages) == 1
    assert resumed.notes() == [
        "The multiplier was at its maximum at the ends of the last 4 epochs, and its cost is still over the "
        "limit: the limit cannot be reached with this maximum, or the policy has not trained long enough with it."
    ]


def test_a_limit_that_does_not_bind_is_said_after_two_epochs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lit_safe.constraint.multiplier"):
        fit(tmp_path, 0.0, 4.0, 5.0, max_epochs=4)
    [said] = [m for m in caplog.messages if "multiplier" in m]
    assert "has been at 0 for 2 epochs" in said
    assert "the limit does not bind" in said


@pytest.mark.parametrize("start", [math.inf, math.nan, [0.0, math.inf]])
def test_a_multiplier_that_is_not_finite_is_refused(start: Any) -> None:
    with pytest.raises(ValueError, match="multiplier must be >= 0 and finite"):
        module(start)


# -- one constraint and several


def test_each_constraint_has_its_own_step_and_one_name_everywhere(tmp_path: Path) -> None:
    costs = torch.stack((COST, 10 * COST), dim=-1)
    dual = DualAscent(limit=-2.0, lr=[0.5, 0.005], estimator=ExactCost((COST, 10 * COST)))
    names = ("harm", "dullness")
    trainer(tmp_path, dual, max_epochs=2).fit(module([1.0, 1.0]), datamodule=Toy(2, costs, names))
    for name, lr in zip(names, (0.5, 0.005), strict=True):
        assert [value for _, value in curve(tmp_path, f"dual/lr_{name}")] == [lr, lr]
        moved = [value for _, value in curve(tmp_path, f"dual/multiplier_{name}")]
        violation = [value for _, value in curve(tmp_path, f"dual/violation_{name}")]
        assert moved[1] == pytest.approx(max(0.0, moved[0] + lr * violation[0]), rel=1e-5)
        trained = curve(tmp_path, f"train/multiplier_{name}")
        assert trained[-1][1] == pytest.approx(moved[1], rel=1e-6)  # the last epoch trained under it
    header = (tmp_path / "metrics.csv").read_text(encoding="utf-8").partition("\n")[0].split(",")
    multipliers = {column.partition("/")[2] for column in header if "multiplier" in column}
    assert multipliers == {"multiplier_harm", "multiplier_dullness"}


def test_steps_of_another_number_than_multipliers_are_refused(tmp_path: Path) -> None:
    dual = DualAscent(lr=[0.1, 0.1, 0.1], estimator=ExactCost((COST, COST)))
    costs = torch.stack((COST, COST), dim=-1)
    with pytest.raises(ValueError, match=r"lr has shape \[3\], the module's multiplier \[2\]"):
        trainer(tmp_path, dual).fit(module([0.0, 0.0]), datamodule=Toy(2, costs, ("harm", "dullness")))
