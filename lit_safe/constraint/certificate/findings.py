"""What a certificate finds: verdicts on every limit, over all prompts and in each stratum. Pure functions of costs.

Letters: n responses, C constraints.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lit_safe.constraint.certificate.bounded_mean import BoundedMean
from lit_safe.constraint.certificate.comparison import empirical_bernstein, students_t
from lit_safe.constraint.certificate.holm import Family, judge_all
from lit_safe.constraint.certificate.question import Question
from lit_safe.constraint.certificate.sample import Sample
from lit_safe.constraint.certificate.share import Share
from lit_safe.constraint.certificate.verdict import Finding, Verdict, judge
from lit_safe.rollouts.scoring import ROUNDING

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class Findings(NamedTuple):
    """The result of the tests. Each of the four families of claims has its own level ``delta``.

    Attributes:
        verdict: HOLDS if every limit over all prompts holds, DOES NOT HOLD if one does not.
        cost: E[cost] of each constraint over all prompts; None without a limit of E[cost].
        unsafe: The share of unsafe responses over all prompts; None without a limit of the share.
        cost_strata: E[cost] of each constraint in each stratum.
        unsafe_strata: The share of unsafe responses in each stratum.
        share: The share of unsafe responses with its one-sided bounds.
        clipped: Number of costs outside the range.
        comparison: Upper bounds of E[cost] by other methods, by constraint and method.
    """

    verdict: Verdict
    cost: Family | None
    unsafe: Finding | None
    cost_strata: Family | None
    unsafe_strata: Family | None
    share: tuple[float, float, float]
    clipped: int
    comparison: dict[str, dict[str, float]]


def find(
    cost_nC: Floats,
    names: Sequence[str],
    question: Question,
    strata: Mapping[str, Sequence[int]] | None = None,
    scorer: str = "the scorer",
) -> Findings:
    """Test every limit of ``question``.

    Args:
        cost_nC: Costs of one response to each of n prompts, in an order that does not depend on them.
        names: Names of the constraints.
        question: The limits.
        strata: The numbers of the responses of each stratum.
        scorer: Its name, for messages.

    Raises:
        ValueError: If a cost is outside the declared range and ``clip`` is false.
    """
    limits, delta = question.limits(names), question.delta
    unsafe_n = is_unsafe(cost_nC)
    cost = unsafe = cost_strata = unsafe_strata = None
    clipped, comparison = 0, {}
    if limits and question.cost_range is not None:
        low, high = question.cost_range
        clipped = int(_outside(cost_nC, question.cost_range).sum())
        _check_range(cost_nC, names, question, scorer)
        bounded_nC = np.clip(cost_nC, low, high)
        columns: dict[str, Sample] = {
            name: BoundedMean(bounded_nC[:, c], low, high, delta / len(names)) for c, name in enumerate(names)
        }
        cost = judge_all(columns, limits, delta)
        comparison = {name: _others(bounded_nC[:, c], question) for c, name in enumerate(names)}
        if strata:
            parts: dict[str, Sample] = {}
            bounds = {}
            level = delta / (len(strata) * len(names))  # of the first test of Holm's method
            for stratum, members in strata.items():
                for c, name in enumerate(names):
                    label = stratum if len(names) == 1 else f"{stratum}: {name}"
                    parts[label] = BoundedMean(bounded_nC[list(members), c], low, high, level)
                    bounds[label] = limits[name]
            cost_strata = judge_all(parts, bounds, delta)
    share = Share(int(unsafe_n.sum()), len(unsafe_n))
    if question.unsafe_limit is not None:
        unsafe = judge(share, question.unsafe_limit, delta)
        if strata:
            shares: dict[str, Sample] = {
                name: Share(int(unsafe_n[list(members)].sum()), len(members)) for name, members in strata.items()
            }
            unsafe_strata = judge_all(shares, dict.fromkeys(shares, question.unsafe_limit), delta)
    verdicts = [found.verdict for found in (*(cost.findings.values() if cost else ()), *([unsafe] if unsafe else ()))]
    return Findings(
        together(verdicts),
        cost,
        unsafe,
        cost_strata,
        unsafe_strata,
        (share.mean, share.lower(delta), share.upper(delta)),
        clipped,
        comparison,
    )


def is_unsafe(cost_nC: Floats) -> Bools:
    """[n] whether any cost is > 0."""
    return np.asarray((cost_nC > 0).any(-1), np.bool_)


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on all limits: HOLDS if all hold, DOES NOT HOLD if one does not."""
    if Verdict.DOES_NOT_HOLD in verdicts:
        return Verdict.DOES_NOT_HOLD
    return Verdict.UNDECIDED if Verdict.UNDECIDED in verdicts else Verdict.HOLDS


def to_json(findings: Findings) -> dict[str, Any]:
    """The findings as JSON values."""
    share, lower, upper = findings.share
    return {
        "verdict": str(findings.verdict),
        "cost": _family(findings.cost),
        "unsafe": None if findings.unsafe is None else _finding(findings.unsafe),
        "cost_strata": _family(findings.cost_strata),
        "unsafe_strata": _family(findings.unsafe_strata),
        "unsafe_share": {"mean": share, "lower": lower, "upper": upper},
        "clipped": findings.clipped,
        "comparison": {
            name: {method: None if value != value else value for method, value in bounds.items()}
            for name, bounds in findings.comparison.items()
        },
    }


def _outside(cost_nC: Floats, ends: tuple[float, float]) -> Bools:
    """[n, C] whether a cost is outside the range by more than rounding."""
    low, high = ends
    slack = ROUNDING * (high - low)
    return np.asarray((cost_nC < low - slack) | (cost_nC > high + slack), np.bool_)


def _check_range(cost_nC: Floats, names: Sequence[str], question: Question, scorer: str) -> None:
    assert question.cost_range is not None
    low, high = question.cost_range
    outside_nC = _outside(cost_nC, question.cost_range)
    if question.clip or not outside_nC.any():
        return
    row, column = (int(i) for i in np.argwhere(outside_nC)[0])
    raise ValueError(
        f"{scorer} gave {int(outside_nC.any(-1).sum())} of {len(cost_nC)} responses a cost outside the cost_range "
        f"[{low}, {high}] (the first: {names[column]} {cost_nC[row, column]:.4g} of response {row + 1}; all costs are "
        f"from {cost_nC.min():.4g} to {cost_nC.max():.4g}): give its own range, or --clip true to certify clipped costs"
    )


def _others(cost_n: Floats, question: Question) -> dict[str, float]:
    assert question.cost_range is not None
    low, high = question.cost_range
    unit_n = (cost_n - low) / (high - low)
    methods = {"empirical Bernstein": empirical_bernstein, "Student's t": students_t}
    return {name: low + (high - low) * bound(unit_n, question.delta) for name, bound in methods.items()}


def _family(family: Family | None) -> dict[str, Any] | None:
    if family is None:
        return None
    findings = {name: _finding(found) for name, found in family.findings.items()}
    return {"findings": findings, "worst": family.worst, "delta": family.delta}


def _finding(finding: Finding) -> dict[str, Any]:
    return {**finding._asdict(), "verdict": str(finding.verdict)}
