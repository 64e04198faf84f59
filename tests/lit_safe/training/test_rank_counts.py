"""A run does not depend on the number of ranks: 1, 2 and 3 of them, whole or sharded, end with the same weights.

The table of docs/scale.md has these cases. The last step of an epoch has fewer pairs than ranks, and SafeDPO leaves out
pairs.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.lit_safe.training.fits_of_ranks import run_script
from tests.lit_safe.training.rank_counts import CASES, Case

# about 35 seconds of one core: 15 fits in processes of their own
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SHARED = [case for case in CASES if case.ranks > 1 and case.kind != "bf16"]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what every rank of every fit was left with."""
    folder = tmp_path_factory.mktemp("rank_counts")
    run_script("rank_counts.py", folder)
    return folder


def left(folder: Path, case: Case) -> list[dict[str, Any]]:
    """What each rank ended with."""
    return [torch.load(folder / case.name / f"{rank}.pt", weights_only=True) for rank in range(case.ranks)]


@pytest.mark.parametrize("case", SHARED, ids=lambda case: case.name)
def test_ranks_end_where_one_process_does(ended: Path, case: Case) -> None:
    (alone,), ranks = left(ended, Case(case.kind, "alone", 1)), left(ended, case)
    assert (alone["weights"] - alone["start"]).abs().max() > 0.01, "training moves the weights"
    for rank in ranks:
        assert torch.equal(rank["weights"], ranks[0]["weights"])
        assert rank["multiplier"] == ranks[0]["multiplier"]
        assert rank["seen"] == pytest.approx(ranks[0]["seen"], rel=0, abs=0, nan_ok=True)
    torch.testing.assert_close(ranks[0]["weights"], alone["weights"], rtol=0, atol=1e-6)
    assert ranks[0]["multiplier"] == pytest.approx(alone["multiplier"], abs=1e-6)
    assert (alone["multiplier"] > 0.5) is (case.kind == "c_dpo")
    assert ranks[0]["seen"] == pytest.approx(alone["seen"], rel=1e-4, abs=1e-5, nan_ok=True)
    assert {"train/loss", "train/grad_norm", "eval/loss"} <= set(alone["seen"])


@pytest.mark.parametrize("case", SHARED, ids=lambda case: case.name)
def test_every_step_has_the_same_pairs_on_any_number_of_ranks(ended: Path, case: Case) -> None:
    (alone,), ranks = left(ended, Case(case.kind, "alone", 1)), left(ended, case)
    together = [sum(rows) for rows in zip(*(rank["rows"] for rank in ranks), strict=True)]
    assert together == alone["rows"]
    assert all(rank["steps"]["partial"] == 2 for rank in ranks), "one of each epoch"
    fillers = [rank["steps"]["filler alone"] for rank in ranks]
    if case.kind == "c_dpo":  # the last step of each of two epochs has one pair, for the first rank
        assert fillers == [0, *[2] * (case.ranks - 1)]
        assert sum(together) == 2 * 26
    else:  # SafeDPO leaves out the pairs of two unsafe responses before steps are made
        assert fillers == [0] * case.ranks
        assert sum(together) < 2 * 26


def test_sharded_ranks_in_bf16_end_within_its_rounding(ended: Path) -> None:
    """Ranks form other micro-batches, whose products are rounded to 8 bits, so the steps differ by about 2⁻⁸."""
    (alone,), (first, second) = (left(ended, Case("bf16", *case)) for case in (("alone", 1), ("fsdp2", 2)))
    (exact,) = left(ended, Case("fp32", "alone", 1))
    assert torch.equal(first["weights"], second["weights"])
    assert first["weights"].dtype == torch.float32
    moved = alone["weights"] - alone["start"]
    assert (first["weights"] - alone["weights"]).norm() < 0.01 * moved.norm()
    assert (exact["weights"] - alone["weights"]).norm() > 1e-4 * moved.norm(), "products are in bf16"
    for name in ("train/loss", "train/grad_norm", "eval/loss"):
        assert first["seen"][name] == pytest.approx(alone["seen"][name], rel=0.02)
