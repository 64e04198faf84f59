"""The published figures: what they say of themselves, and that the document has the same ones."""

from pathlib import Path

import pytest

from lit_safe.reproduction.published import C_DPO, PUBLISHED, SAFE_DPO, published_table

PAGE = Path(__file__).parents[3] / "docs" / "papers.md"


def test_the_document_has_the_table_of_the_code() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## Published figures\n")[2]
    assert [line for line in table.splitlines() if line.startswith("|")] == published_table()


def test_a_figure_stands_once() -> None:
    keys = [one[:4] for one in PUBLISHED]
    assert len(keys) == len(set(keys))


def values(paper: str, measure: str) -> dict[str, float]:
    return {one.method: one.value for one in PUBLISHED if (one.paper, one.measure) == (paper, measure)}


def test_c_dpo_lies_between_sft_and_beaver_in_cost_and_rises_with_less_multiplier() -> None:
    cost = values(C_DPO, "cost")
    assert cost["Beaver-v1"] < cost["C-DPO λ = 1"] < cost["C-DPO λ = 0.4"] < 0 < cost["SFT"] < cost["DPO"]


def test_helpfulness_is_normalised_to_0_and_10() -> None:
    helpfulness = values(SAFE_DPO, "helpfulness, 0 to 10")
    assert (helpfulness["SFT"], helpfulness["DPO-HELPFUL"]) == (0, 10)
    harmless = values(SAFE_DPO, "harmless responses, %")
    assert max(harmless, key=lambda method: harmless[method]) == "SafeDPO"


def test_safe_rlhf_takes_25_times_as_long_as_safe_dpo() -> None:
    seconds = values(SAFE_DPO, "seconds of training")
    assert seconds["SafeRLHF"] / seconds["SafeDPO"] == pytest.approx(25.4, abs=0.05)
