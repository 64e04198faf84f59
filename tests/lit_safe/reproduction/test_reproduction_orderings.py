"""Verdicts on the papers' orderings."""

import math

import pytest
from scipy.stats import t as student

from lit_safe.reproduction.measured import Seen
from lit_safe.reproduction.orderings import FAILS, HOLDS, ORDERINGS, UNTOLD, Ordering, judge, judged
from lit_safe.reproduction.published import PUBLISHED
from lit_safe.statistics.pooled import Pooled
from tests.lit_safe.reproduction.seen_world import seen


def pooled(mean: float, half: float, of_seeds: float = 0.0, of_prompts: float = 1.0) -> Pooled:
    return Pooled(mean, half / 2, mean - half, mean + half, 2, 100, of_seeds, of_prompts)


@pytest.mark.parametrize(
    ("sign", "mean", "half", "verdict"),
    [
        (1, 2, 1, HOLDS),
        (1, -2, 1, FAILS),
        (-1, -2, 1, HOLDS),
        (-1, 2, 1, FAILS),
        (1, 0.5, 1, UNTOLD),
        (-1, 0.5, 1, UNTOLD),
    ],
)
def test_the_interval_decides(sign: int, mean: float, half: float, verdict: str) -> None:
    claim = Ordering("safe_dpo", "sft", "reward", sign, "paper", "1 and 2")
    assert judge(claim, pooled(mean, half)).verdict == verdict


def test_an_open_claim_says_how_many_prompts_would_do() -> None:
    claim = Ordering("safe_dpo", "sft", "reward", 1, "paper", "")
    found = judge(claim, pooled(0.5, 2.0))  # 100 prompts, variance 1: the least n with t_n 10 / sqrt(n) < 0.5
    assert student.ppf(0.975, 1539) * 10 / math.sqrt(1540) < 0.5 <= student.ppf(0.975, 1538) * 10 / math.sqrt(1539)
    assert found.advice == "about 1,540 prompts would do"
    assert judge(claim, None).advice == "not measured"
    nothing = Pooled(0.0, math.nan, math.nan, math.nan, 2, 100, 0.0, 0.0)
    assert judge(claim, nothing).advice == "no prompt and no seed differs"
    both = pooled(0.1, 9.0, of_seeds=1.0)
    assert judge(claim, both).advice == "more prompts and more seeds are needed"


def test_only_methods_that_were_run_are_judged() -> None:
    found = judged(seen())
    assert {(one.ordering.one, one.ordering.other) for one in found} == {
        ("dpo_helpful", "sft"),
        ("dpo_helpful", "safe_dpo"),
        ("safe_dpo", "sft"),
    }
    verdicts = {(one.ordering.one, one.ordering.other, one.ordering.measure): one.verdict for one in found}
    assert verdicts["dpo_helpful", "sft", "reward"] == HOLDS
    assert verdicts["dpo_helpful", "sft", "cost"] == UNTOLD
    advice = {one.ordering.measure: one.advice for one in found if one.difference is None}
    assert advice["cost"] == "not measured of DPO-HELPFUL, SFT"


def test_methods_that_were_asked_other_prompts_are_not_compared() -> None:
    of = {"c_dpo_1": {"cost": {(0, 1): -9.0}}, "c_dpo_0_4": {"cost": {(0, 2): -1.0}}}
    (found,) = [one for one in judged(Seen(of, {}, {})) if one.ordering.measure == "cost"]
    assert (found.verdict, found.advice) == (UNTOLD, "no prompt in common: asked other prompts")


def published(method: str, measure: str) -> float | None:
    return next((one.value for one in PUBLISHED if (one.method, one.measure) == (method, measure)), None)


@pytest.mark.parametrize("claim", ORDERINGS, ids=lambda claim: claim.text)
def test_a_claim_has_the_order_of_the_published_figures(claim: Ordering) -> None:
    """The direction comes from the figures, so a mistake of ours in one of the two is found."""
    names = {
        "sft": "SFT",
        "dpo_helpful": "DPO-HELPFUL",
        "dpo_harmless": "DPO-HARMLESS",
        "dpo_safebetter": "DPO-SAFEBETTER",
    }
    names |= {"safe_dpo": "SafeDPO", "c_dpo_1": "C-DPO λ = 1", "c_dpo_0_4": "C-DPO λ = 0.4"}
    measures = {
        "unsafe": [("harmless responses, %", -1)],
        "reward": [("helpfulness, 0 to 10", 1), ("reward", 1)],
        "cost": [("cost", 1)],
        "refused": [("refused of XSTest's 250 safe prompts, %", 1)],
    }
    compared = 0
    for measure, sign in measures[claim.measure]:
        titles = [names.get(name, "") for name in (claim.one, claim.other)]
        titles = ["DPO" if title == "DPO-HELPFUL" and measure in ("reward", "cost") else title for title in titles]
        one, other = (published(title, measure) for title in titles)
        if one is not None and other is not None:
            assert claim.sign * sign * (one - other) > 0
            compared += 1
    assert compared or claim.figures.startswith("a ") or "1 to 4" in claim.figures
