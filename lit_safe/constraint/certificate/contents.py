"""The content of a certificate: findings, and the facts that a reader needs to judge them, as JSON values.

Letters: n responses, C constraints.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lit_safe.constraint.certificate.findings import Floats, find, is_unsafe, to_json
from lit_safe.constraint.certificate.powered import PoweredShare
from lit_safe.constraint.certificate.question import Question
from lit_safe.constraint.certificate.responses import Draws, Response
from lit_safe.constraint.certificate.scorers import ScorerFacts, second_question
from lit_safe.constraint.certificate.share import Share

CERTIFICATE, PAGE, PLOT = "certificate.json", "certificate.md", "certificate.png"
"""Files in the run folder."""

Labels = tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]
"""Numbers of responses, and whether people call them unsafe."""


class Measured(NamedTuple):
    """Responses and their costs.

    ``cost`` and ``second_cost`` are [n, C], each with the C of its scorer.
    """

    responses: Sequence[Response]
    cost: Floats
    names: tuple[str, ...]
    strata: Mapping[str, Sequence[int]] | None
    scorer: ScorerFacts
    second: ScorerFacts | None = None
    second_cost: Floats | None = None
    labels: Labels | None = None


def certificate(
    measured: Measured, question: Question, policy: Mapping[str, Any], draws: Draws, available: int
) -> dict[str, Any]:
    """The content of ``certificate.json``.

    Args:
        measured: Responses and costs.
        question: The limits.
        policy: Name, checkpoint, step and digest of the policy.
        draws: How the responses were drawn.
        available: Number of prompts of the certify split.

    Raises:
        ValueError: If a cost is outside the declared range and ``clip`` is false.
    """
    findings = find(measured.cost, measured.names, question, measured.strata, measured.scorer.name)
    count = len(measured.responses)
    return {
        "version": 1,
        "policy": dict(policy),
        "question": {
            "limit": None if question.limit is None else question.limits(measured.names),
            "cost_range": question.cost_range,
            "units": question.units,
            "unsafe_limit": question.unsafe_limit,
            "delta": question.delta,
            "clip": question.clip,
        },
        "responses": {
            **draws._asdict(),
            "count": count,
            "cut": sum(not response.complete for response in measured.responses),
            "prompts_of_split": available,
        },
        "findings": to_json(findings),
        "scorer": _scorer(measured.scorer),
        "second": _second(measured, question),
        "people": _people(measured, question.delta),
        "other_uses": [],
    }


def _scorer(facts: ScorerFacts) -> dict[str, Any]:
    return {"name": facts.name, "units": facts.in_units, "range": facts.range, "quality": list(facts.quality)}


def _second(measured: Measured, question: Question) -> dict[str, Any] | None:
    """The second scorer's verdict on the limits that its costs share with the first."""
    facts, cost_nC = measured.second, measured.second_cost
    if facts is None or cost_nC is None:
        return None
    count, own = cost_nC.shape[1], measured.cost.shape[1]
    asked, not_compared = second_question(question, facts, count, own)
    names = measured.names if count == own else tuple(f"cost_{k}" for k in range(count))
    found = None if asked is None else to_json(find(cost_nC, names, asked, None, facts.name))
    flag_n, own_n = is_unsafe(cost_nC), is_unsafe(measured.cost)
    share = Share(int(flag_n.sum()), len(flag_n))
    return {
        **_scorer(facts),
        "not_compared": not_compared,
        "agreement": float((flag_n == own_n).mean()),
        "unsafe_share": {
            "mean": share.mean,
            "lower": share.lower(question.delta),
            "upper": share.upper(question.delta),
        },
        "verdict": None if found is None else found["verdict"],
        "findings": found,
    }


def _people(measured: Measured, delta: float) -> dict[str, Any] | None:
    """The share that people call unsafe, and each scorer's errors against their labels."""
    if measured.labels is None:
        return None
    turn_n, label_n = measured.labels
    scorers = [(measured.scorer.name, measured.cost)]
    if measured.second is not None and measured.second_cost is not None:
        name = measured.second.name
        scorers.append((name if name != measured.scorer.name else f"{name} (second)", measured.second_cost))
    powered = {name: PoweredShare(is_unsafe(cost_nC), is_unsafe(cost_nC[turn_n]), label_n) for name, cost_nC in scorers}
    first = powered[measured.scorer.name]
    return {
        "count": first.count,
        "powered": {"mean": first.mean, "lower": first.lower(delta), "upper": first.upper(delta)},
        "labels_alone": {
            "mean": first.labelled.mean,
            "lower": first.labelled.lower(delta),
            "upper": first.labelled.upper(delta),
        },
        "errors": {
            name: {"missed": found.missed.mean, "false_alarms": found.false_alarms.mean}
            for name, found in powered.items()
        },
    }
