"""An error on one rank ends all ranks with that error: none waits for a rank that has gone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lit_safe.anchors.reference_mass import ReferenceMass
from lit_safe.execution.ranks import failing_together
from tests.lit_safe.dual_world import Table
from tests.lit_safe.held_out_world import HeldOut

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """How each case ended, by rank."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "failing_two_ranks.py")]
    ranks = [
        subprocess.Popen([*command, str(rank), str(folder / "meeting"), str(folder)], env=environment)
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


@pytest.mark.parametrize(
    ("case", "failing", "expected"),
    [
        ("before_they_meet", 1, "ValueError: row 7 is wrong"),
        ("after_they_met", 0, "FileNotFoundError: no scorer"),
        ("inside_two_blocks", 1, "ValueError: inner"),
        ("rollouts", 1, "OSError: the scorer's file is gone"),
        ("evaluation", 1, "OSError: the scorer's file is gone"),
    ],
)
def test_the_other_rank_ends_with_the_same_error(
    ends: list[dict[str, Any]], case: str, failing: int, expected: str
) -> None:
    assert ends[failing][case] == expected
    assert ends[1 - failing][case] == f"{expected} (on rank {failing})"


def test_a_file_that_only_the_first_rank_writes_fails_on_both(ends: list[dict[str, Any]]) -> None:
    assert "a file" in ends[0]["reference_cache"]
    assert ends[1]["reference_cache"].endswith("(on rank 0)")


@pytest.mark.parametrize("case", ["full_disk", "disk_that_fails_later", "earlier_run_stays"])
def test_a_checkpoint_or_folder_that_the_first_rank_cannot_write_ends_both(
    ends: list[dict[str, Any]], case: str
) -> None:
    assert "no error" not in ends[0][case]
    assert "(on rank" not in ends[0][case]
    assert ends[1][case].endswith("(on rank 0)")


def test_an_error_of_ones_own_kind_is_named_on_the_other_rank(ends: list[dict[str, Any]]) -> None:
    assert ends[0]["a_kind_of_ones_own"] == "NoText: row 3 has no prompt"
    assert ends[1]["a_kind_of_ones_own"] == "RuntimeError: NoText: row 3 has no prompt (on rank 0)"


def test_a_fault_keeps_its_traceback_on_both_ranks_and_a_mistake_is_one_message_on_both(
    ends: list[dict[str, Any]],
) -> None:
    assert [end["mistakes"] for end in ends] == [[False, True], [False, True]]


def test_each_rank_keeps_its_own_error(ends: list[dict[str, Any]]) -> None:
    assert [end["both"] for end in ends] == ["ValueError: mine, 0", "ValueError: mine, 1"]


def test_ranks_still_meet_after_an_error_that_was_caught(ends: list[dict[str, Any]]) -> None:
    assert [end["afterwards"] for end in ends] == ["[0, 1]", "[0, 1]"]


def test_one_process_alone_raises_as_ever() -> None:
    with pytest.raises(KeyError, match="x"), failing_together():
        raise KeyError("x")


def test_ranks_share_an_anchors_samples_and_then_know_all_of_them(ends: list[dict[str, Any]]) -> None:
    alone, data = (
        ReferenceMass(samples_per_prompt=5, samples_per_step=2, prompts_per_step=2, batch_size=3, seed=0),
        HeldOut(),
    )
    data.prompts = lambda split: HeldOut().prompts("val")[:3]
    alone.prepare(SimpleNamespace(pair=Table()), data)
    assert [end["anchor"][0] for end in ends] == [8, 8], "of 15 samples, one of them twice"
    assert ends[0]["anchor"][1:] == ends[1]["anchor"][1:] == [alone._responses, alone._reference_PN.tolist()]
