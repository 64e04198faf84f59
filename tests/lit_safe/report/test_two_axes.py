"""Runs side by side on two axes: unsafe responses, and refusals of safe prompts."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from lit_safe.report.two_axes import Share, axes_markdown, plot_axes, read_axes, write_axes

CERTIFICATE: dict[str, Any] = {
    "findings": {
        "verdict": "HOLDS",
        "unsafe": {"limit": 0.3},
        "unsafe_share": {"mean": 0.2, "lower": 0.15, "upper": 0.27},
    },
    "responses": {"count": 130},
}
REFUSALS: dict[str, Any] = {
    "before": {"mean": 0.5, "low": 0.4, "high": 0.6, "count": 60},
    "after": {"mean": 0.1, "low": 0.04, "high": 0.2, "count": 60},
}


def run(folder: Path, certificate: Any = CERTIFICATE, refusals: Any = REFUSALS) -> Path:
    folder.mkdir(parents=True)
    for name, content in (("certificate.json", certificate), ("refusals.json", refusals)):
        if content is not None:
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_a_run_is_read_with_both_shares_its_verdict_and_its_limit(tmp_path: Path) -> None:
    found = read_axes(run(tmp_path / "a"), "a")
    assert found is not None
    assert found.unsafe == Share(0.2, 0.15, 0.27, 130)
    assert found.refused == Share(0.1, 0.04, 0.2, 60)
    assert (found.verdict, found.limit) == ("HOLDS", 0.3)


def test_a_run_with_one_measurement_alone_has_no_place(tmp_path: Path) -> None:
    assert read_axes(run(tmp_path / "a", refusals=None), "a") is None
    assert read_axes(run(tmp_path / "b", certificate=None), "b") is None


def test_a_certificate_of_the_cost_alone_has_no_limit_of_the_share(tmp_path: Path) -> None:
    findings = {**CERTIFICATE["findings"], "unsafe": None}
    found = read_axes(run(tmp_path / "a", {**CERTIFICATE, "findings": findings}), "a")
    assert found is not None
    assert found.limit is None


@pytest.mark.parametrize(
    ("certificate", "refusals", "said"),
    [
        ([1], REFUSALS, "certificate.json is not a JSON object"),
        ({"findings": {}}, REFUSALS, "is not a certificate"),
        ({**CERTIFICATE, "findings": {"verdict": "HOLDS"}}, REFUSALS, "lacks a share"),
        (CERTIFICATE, {"before": REFUSALS["before"]}, "lacks a share"),
    ],
)
def test_a_file_that_is_no_measurement_is_named(tmp_path: Path, certificate: Any, refusals: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_axes(run(tmp_path / "a", certificate, refusals), "a")


def test_a_file_that_was_cut_is_named(tmp_path: Path) -> None:
    folder = run(tmp_path / "a")
    (folder / "refusals.json").write_text('{"after": {', encoding="utf-8")
    with pytest.raises(ValueError, match=r"refusals\.json is not JSON"):
        read_axes(folder, "a")


def test_table_file_and_picture_hold_every_run(tmp_path: Path) -> None:
    rows = []
    for name in ("c_dpo/seed_0", "c_dpo/seed_1", "dpo/seed_0"):
        row = read_axes(run(tmp_path / name), name)
        assert row is not None
        rows.append(row)
    page = "\n".join(axes_markdown(rows, "axes.png"))
    assert page.count("| 20.0 [15.0, 27.0] | HOLDS | 10.0 [4.0, 20.0] | 130 / 60 |") == 3
    write_axes(rows, tmp_path / "axes.csv")
    with (tmp_path / "axes.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["run"] for row in table] == ["c_dpo/seed_0", "c_dpo/seed_1", "dpo/seed_0"]
    assert (table[0]["unsafe"], table[0]["refused_high"], table[0]["limit"]) == ("0.2", "0.2", "0.3")
    plot_axes(rows, tmp_path / "axes.png")
    assert (tmp_path / "axes.png").stat().st_size > 5000
