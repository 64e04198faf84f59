"""What the screen says of each estimate of the cost."""

import logging
import math
import re
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from torch import Tensor

from lit_safe.constraint.costs.rollout import RolloutCost
from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.constraint.dual_line import dual_lines
from lit_safe.constraint.limits import standing
from lit_safe.objectives import DPO, ConstrainedDPO, SafeDPO
from lit_safe.training.module import PreferenceAlignment
from lit_safe.types import CostEstimate, Objective
from tests.lit_safe.dual_world import COST, ExactCost, Table, TableCost, Toy


def estimate(mean: list[float] | float, bounds: list[list[float]] | list[float], **also: float) -> CostEstimate:
    """Of 40 responses to 20 prompts."""
    cost = torch.tensor(mean, dtype=torch.float64)
    measured = {name.replace("__", "/"): value for name, value in also.items()}
    return CostEstimate(cost, cost * 0 + 0.02, 40, torch.tensor(0.18), 40.0, measured, (), 20, torch.tensor(bounds))


MEASURED = {"dual__unsafe_low": 0.11, "dual__unsafe_high": 0.27, "drift__kl_per_token": 0.03}


def line(limit: float, reads: bool = True, after: float = 0.52) -> str:
    found = estimate(0.12, [0.09, 0.15], **MEASURED)
    where = standing(("harm",), torch.tensor(limit, dtype=torch.float64), found, 2)
    [only] = dual_lines(where, found, torch.tensor(0.4), torch.tensor(after), reads)
    return only


def test_one_line_says_cost_limit_multiplier_unsafe_share_and_drift() -> None:
    expected = (
        "epoch 2  cost 0.12 [0.09, 0.15], limit 0.00: violated  λ 0.40 → 0.52  unsafe 18 % [11, 27]  KL 0.03/token"
    )
    assert line(0.0) == expected


@pytest.mark.parametrize(
    ("limit", "verdict"), [(0.0, "violated"), (0.1, "undecided"), (0.125, "undecided"), (0.2, "met")]
)
def test_the_bounds_decide_whether_a_limit_is_met(limit: float, verdict: str) -> None:
    assert f": {verdict}  " in line(limit)
    assert f"limit {limit:.2f}: " in line(limit) or "limit 0.125: " in line(limit)


def test_a_multiplier_that_stays_has_one_value_and_one_that_nobody_reads_has_none() -> None:
    assert "  λ 0.40  " in line(0.0, after=0.4)
    assert "λ" not in line(0.0, reads=False)
    assert "λ 0.400 → 0.401" in line(0.0, after=0.401), "as many decimals as tell the two apart"


def test_each_constraint_has_its_line_and_what_they_share_stands_once() -> None:
    found = estimate([0.12, -0.5], [[0.09, -0.6], [0.15, -0.4]], **MEASURED)
    where = standing(("harm", "lies"), torch.tensor([0.0, -0.45], dtype=torch.float64), found, 0)
    lines = dual_lines(where, found, torch.tensor([0.0, 1.0]), torch.tensor([0.3, 0.9]), True)
    assert lines == [
        "epoch 0  cost of harm 0.12 [0.09, 0.15], limit 0.00: violated  λ 0.00 → 0.30  unsafe 18 % [11, 27]  "
        "KL 0.03/token",
        "         cost of lies -0.50 [-0.60, -0.40], limit -0.45: undecided  λ 1.00 → 0.90",
    ]


def test_what_is_not_known_is_said_so_or_left_out() -> None:
    found = estimate(0.12, [math.nan, math.nan])
    where = standing(("harm",), torch.tensor(0.0, dtype=torch.float64), found, 1)
    [only] = dual_lines(where, found, torch.tensor(0.0), torch.tensor(0.0), False)
    assert only == "epoch 1  cost 0.12 [n/a, n/a], limit 0.00: undecided  unsafe 18 %"


class AllPairs(Toy):
    """A world that keeps the pairs an objective would leave out."""

    def select(self, keeps: object) -> None: ...


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the dual step said, in order."""
    return [record.getMessage() for record in caplog.records if record.name == "lit_safe.constraint.dual_ascent"]


def fit(folder: Path, objective: Objective, dual: DualAscent, multiplier: Tensor | float = 0.0, **data: object) -> None:
    module = PreferenceAlignment(
        Table(),
        objective,
        lambda p: torch.optim.Adam(p, lr=0.05),
        multiplier=torch.as_tensor(multiplier).tolist(),
        precompute_reference=False,
    )
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    Trainer(default_root_dir=folder, max_epochs=2, callbacks=[dual], enable_checkpointing=False,
            num_sanity_val_steps=0, limit_val_batches=0, **options).fit(module, AllPairs(2, **data))  # fmt: skip


@pytest.mark.parametrize(("objective", "reads"), [(DPO(), False), (SafeDPO(), False), (ConstrainedDPO(), True)])
def test_every_objective_with_an_estimator_says_a_line_an_epoch(
    objective: Objective, reads: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lit_safe.constraint.dual_ascent")
    estimator = RolloutCost(TableCost(), samples_per_prompt=8)
    fit(tmp_path, objective, DualAscent(limit=-1.5, lr=0.3 if reads else 0.0, estimator=estimator))
    assert [line.split("  ")[0] for line in said(caplog)] == ["epoch 0", "epoch 1"]
    for message in said(caplog):
        assert ", limit -1.50: undecided  " in message, "four prompts give no bounds"
        assert ("λ" in message) is reads
        assert "% [" in message
        assert "KL " in message


def test_an_estimate_of_two_constraints_says_two_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lit_safe.constraint.dual_ascent")
    both = torch.stack([COST, -COST], dim=-1)
    dual = DualAscent(limit=[0.0, 0.0], lr=0.3, estimator=ExactCost((COST, -COST)))
    fit(tmp_path, ConstrainedDPO(), dual, torch.zeros(2), costs_PKC=both, constraints=("harm", "lies"))
    assert [re.findall(r"cost of (\w+)", line) for line in said(caplog)] == [["harm"], ["lies"]] * 2


def test_a_run_without_an_estimator_says_nothing_of_costs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lit_safe.constraint.dual_ascent")
    fit(tmp_path, ConstrainedDPO(), DualAscent())
    assert said(caplog) == []


def test_other_ranks_say_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "lit_safe.constraint.dual_ascent")
    monkeypatch.setattr(Trainer, "is_global_zero", False)
    fit(tmp_path, DPO(), DualAscent(estimator=ExactCost()))
    assert said(caplog) == []
