"""The report: our tables by hand, and the published figures apart from them."""

import json
from pathlib import Path

import pytest

from lit_safe.reproduction.measured import Seen
from lit_safe.reproduction.page import write_report
from lit_safe.reproduction.published import published_table
from lit_safe.reproduction.tables import cross_counts, crossed, helpfulness, needs, sweep
from tests.lit_safe.reproduction.seen_world import cells, seen


def test_the_page_has_ours_and_theirs_in_tables_of_their_own(tmp_path: Path) -> None:
    text = write_report(tmp_path, seen(), ["- scale tiny"], -0.5).read_text(encoding="utf-8")
    ours, _, theirs = text.partition("## Published")
    assert "\n".join(published_table()) in theirs
    assert "Liu et al. 2024 | table 1" not in ours
    assert "- scale tiny" in ours
    assert "| DPO-HELPFUL: more reward than SFT | +2.000 [+2.000, +2.000] | 2, 4 | holds |" in ours
    assert (tmp_path / "plane.png").exists()
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["methods"]["safe_dpo"]["unsafe"]["mean"] == 0
    assert "Liu" not in json.dumps(summary)


def test_helpfulness_is_0_for_sft_and_10_for_dpo_helpful_and_5_between() -> None:
    rows = {line.split(" | ")[0].lstrip("| "): line.split(" | ")[1].split()[0] for line in helpfulness(seen())[2:]}
    assert rows == {"SFT": "0.00", "DPO-HELPFUL": "10.00", "SafeDPO": "5.00"}
    assert helpfulness(Seen({"sft": seen().cells["sft"]}, {}, {})) == []


def test_counts_of_safe_and_unsafe_by_hand_and_their_sum_is_the_number_of_prompts() -> None:
    found = crossed(seen(), "sft", "dpo_helpful")  # safe at prompts with 0, 1/2, 1, 1/2 and 0, 0, 1, 0
    assert found == (1.0, 1.0, 0.0, 2.0)
    assert sum(found) == 4
    assert crossed(seen(), "sft", "nothing") is None
    assert len(cross_counts(seen(), "safe_dpo")) == 2 + 2


def test_the_sweep_needs_two_offsets() -> None:
    one = {"unsafe": cells([0.5, 0.25])}
    assert sweep(Seen({"safe_dpo_0": one}, {}, {})) == []
    lines = sweep(Seen({"safe_dpo_10": {"unsafe": cells([0.0, 0.25])}, "safe_dpo_0": one}, {}, {}))
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 0", "| 10"]
    main = Seen({"safe_dpo": {"unsafe": cells([0.0, 0.25])}, "safe_dpo_0": one}, {}, {})
    assert sweep(main) == []
    assert [line.split(" | ")[0] for line in sweep(main, 2.5)[2:]] == ["| 0", "| 2.5"]


def test_time_is_the_mean_over_seeds() -> None:
    (row,) = [line for line in needs(seen()) if "SafeDPO" in line]
    assert row.endswith("| 1 min 1 s |")


def test_nothing_measured_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        write_report(tmp_path, Seen({}, {}, {}), [])
