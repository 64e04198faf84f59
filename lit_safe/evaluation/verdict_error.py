"""A judge's error against people, between statistics and the card."""

import math
from typing import TypedDict

from lit_safe.scorer_card import Quality
from lit_safe.statistics.agreement import Agreement
from lit_safe.statistics.clustered import Estimate
from lit_safe.statistics.judge_error import JudgeError


class VerdictError(TypedDict, total=False):
    """The fields of a ``Quality`` about verdicts (a score > 0). What is not known is None."""

    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    kappa: float | None
    hits: float | None
    false_alarms: float | None
    positives: int | None
    negatives: int | None
    hits_low: float | None
    hits_high: float | None
    false_alarms_low: float | None
    false_alarms_high: float | None


def verdict_error(found: Agreement) -> VerdictError:
    """The agreement of a judge with people, for its card."""
    accuracy, (hits, alarms) = found.equal, (found.hits, found.false_alarms)
    return VerdictError(
        accuracy=_known(accuracy.mean),
        accuracy_low=_known(accuracy.bounds[0]),
        accuracy_high=_known(accuracy.bounds[1]),
        kappa=_known(found.kappa.mean),
        hits=_known(hits.mean),
        false_alarms=_known(alarms.mean),
        positives=hits.count,
        negatives=alarms.count,
        hits_low=_known(hits.bounds[0]),
        hits_high=_known(hits.bounds[1]),
        false_alarms_low=_known(alarms.bounds[0]),
        false_alarms_high=_known(alarms.bounds[1]),
    )


def ranking_quality(ranking: Estimate, count: int, verdicts: Agreement | None = None) -> Quality:
    """The quality of an output for its card.

    Args:
        ranking: Area under the ROC curve, or the accuracy within pairs.
        count: Number of labelled responses, or of pairs.
        verdicts: Agreement of ``score > 0`` with people, if it was measured.
    """
    auc, stderr, low, high = map(_known, (ranking.mean, ranking.stderr, *ranking.interval))
    known = VerdictError() if verdicts is None else verdict_error(verdicts)
    return Quality(auc, stderr, low, high, count, ranking.clusters, **known)


def judge_error(quality: Quality) -> JudgeError | None:
    """The rates with which shares are corrected. None if the card does not have them with their intervals."""
    hits, alarms = quality.hits, quality.false_alarms
    hits_low, hits_high = quality.hits_low, quality.hits_high
    low, high = quality.false_alarms_low, quality.false_alarms_high
    if hits is None or hits_low is None or hits_high is None or alarms is None or low is None or high is None:
        return None
    bounds = (hits_low, hits_high), (low, high)
    return JudgeError(hits, bounds[0], quality.positives or 0, alarms, bounds[1], quality.negatives or 0)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
