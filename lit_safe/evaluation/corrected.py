"""The shares that people would find, beside those that judges found.

With labels of some of these responses, a share is corrected by the judge's error on them. Without, it is corrected by
the error on the judge's card, which was measured on other responses.

Letters: n responses.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lit_safe.constraint.certificate.scorers import verdict_quality
from lit_safe.evaluation.findings import COMPLIED, Finding, Group, axis_values, groups
from lit_safe.evaluation.human_labels import HumanLabels
from lit_safe.evaluation.judged import REFUSAL, UNSAFE, Judged, Judges
from lit_safe.evaluation.suites import Question
from lit_safe.evaluation.verdict_error import judge_error
from lit_safe.statistics.clustered import Estimate
from lit_safe.statistics.human_corrected import FEWEST_LABELS, corrected_change, corrected_share
from lit_safe.statistics.judge_error import JudgeError, corrected_by_error, corrected_difference

Floats = npt.NDArray[np.float64]


class Corrected(NamedTuple):
    """A finding with its shares as people would find them. None: not known.

    ``by`` says how: the number of labels, or the judge's card.
    """

    policy: Estimate
    reference: Estimate | None
    difference: Estimate | None
    by: str


class Corrections(NamedTuple):
    """The corrected findings by their keys, and why the others are not: a sentence for each measure."""

    of: Mapping[tuple[Group, str], Corrected]
    why_not: Mapping[str, str]


def corrections(
    asked: Sequence[Question],
    arms: Mapping[str, Judged],
    found: Sequence[Finding],
    judges: Judges,
    labels: HumanLabels | None,
) -> Corrections:
    """Correct the shares of both axes. Single categories are not corrected: they have too few labels.

    Args:
        asked: The question of each of n responses.
        arms: ``policy``, and ``reference`` if there is one: their judged responses [n].
        found: The findings about them.
        judges: Who judged.
        labels: Labels of some of the responses, which must have been chosen at random. None: there are none.
    """
    members = dict(groups(asked))
    prompt_n = np.array([question.prompt.prompt_id for question in asked], np.int64)
    corrected: dict[tuple[Group, str], Corrected] = {}
    why_not: dict[str, str] = {}
    for one in found:
        if one.group.category is not None or not one.is_axis:
            continue
        error, why = _error(one.measure, judges)
        by_people = None
        if labels is not None:
            by_people = _by_labels(one, members[one.group], asked, arms, prompt_n, labels)
        if by_people is not None:
            corrected[one.key] = by_people
        elif error is not None:
            corrected[one.key] = _by_card(one, error)
        else:
            few = "" if labels is None else f"labels of fewer than {FEWEST_LABELS} prompts, and "
            why_not[one.measure] = few + why
    done = {measure for _, measure in corrected}
    return Corrections(corrected, {measure: said for measure, said in why_not.items() if measure not in done})


def _by_card(one: Finding, error: JudgeError) -> Corrected:
    reference = None if one.reference is None else corrected_by_error(one.reference, error)
    difference = None if one.difference is None else corrected_difference(one.difference, error)
    by = f"card: {error.positives} positives, {error.negatives} negatives"
    return Corrected(corrected_by_error(one.policy, error), reference, difference, by)


def _by_labels(
    one: Finding,
    member_n: npt.NDArray[np.bool_],
    asked: Sequence[Question],
    arms: Mapping[str, Judged],
    prompt_n: npt.NDArray[np.int64],
    labels: HumanLabels,
) -> Corrected | None:
    """None if too few prompts have a label."""
    prompts = [question.prompt.text for question in asked]
    cluster_n = prompt_n[member_n]
    verdict, label, estimate = {}, {}, {}
    count = 0
    for arm, judged in arms.items():
        label_n = labels.labels(kind_of(one.measure), prompts, [drawn.text for drawn in judged.drawn])
        label[arm] = (1 - label_n if one.measure == COMPLIED else label_n)[member_n]
        verdict[arm] = axis_values(judged, one.group.harmful)[one.measure][member_n]
        known_n = ~np.isnan(label[arm] + verdict[arm])
        if len(np.unique(cluster_n[known_n])) >= FEWEST_LABELS:
            estimate[arm] = corrected_share(verdict[arm], label[arm], cluster_n)
            count += int(known_n.sum())
    if "policy" not in estimate:
        return None
    difference = None
    if "reference" in estimate:
        texts = verdict["policy"], verdict["reference"], label["policy"], label["reference"]
        difference = corrected_change(*texts, cluster_n)
    return Corrected(estimate["policy"], estimate.get("reference"), difference, f"{count} labels")


def kind_of(measure: str) -> str:
    """What people say of a response that the measure counts: ``unsafe`` or ``refusal``."""
    return "unsafe" if measure.startswith(UNSAFE) else "refusal"


def _error(measure: str, judges: Judges) -> tuple[JudgeError | None, str]:
    """The error on the card of the judge that decides a measure, or why it cannot correct."""
    column = measure if measure.startswith(UNSAFE) else REFUSAL
    quality = verdict_quality(judges.named()[column])
    if quality is not None and measure == COMPLIED:
        quality = quality.opposite()
    error = None if quality is None else judge_error(quality)
    if error is None:
        return None, "the judge's card does not say how often it finds people's positives and negatives"
    return (error, "") if error.unusable is None else (None, error.unusable)
