"""What an evaluation finds: both axes, by suite and by category, before and after, with tests by prompt.

The two axes are those of SODE (Varshney et al. 2024, arXiv:2401.00287): unsafe responses to harmful prompts, and
refusals of harmless ones. A policy that refuses everything is best on the first and worst on the second.

Letters: n responses, G prompts.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lit_safe.evaluation.judged import REFUSAL, REWARD, UNSAFE, Judged
from lit_safe.evaluation.suites import Question
from lit_safe.statistics.agreement import Agreement, agreement
from lit_safe.statistics.clustered import Estimate, clustered_mean, paired_difference
from lit_safe.statistics.sign_flip import sign_flip_p

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]

COMPLIED, REFUSED = "complied", "refused"
EMPTY, CUT = "empty", "cut"


class Group(NamedTuple):
    """The responses that a finding is about. ``suite`` None: all suites; ``category`` None: all categories.

    ``unseen``: only prompts that are not in the train split of the data.
    """

    harmful: bool
    suite: str | None = None
    category: str | None = None
    unseen: bool = False


class Finding(NamedTuple):
    """One measure of one group. Shares are in [0, 1].

    ``reference`` and ``difference`` (policy minus reference, paired by response, clustered by prompt) are None without
    a reference, and so is ``p``, the p-value of the test by prompt. ``p`` is also None for a reward. ``unknown`` counts
    responses of both models without a finite score.
    """

    group: Group
    measure: str
    policy: Estimate
    reference: Estimate | None
    difference: Estimate | None
    p: float | None
    unknown: int

    @property
    def is_share(self) -> bool:
        """Whether the measure is a share in [0, 1]."""
        return self.measure != REWARD

    @property
    def is_axis(self) -> bool:
        """Whether the measure is a share of one of the two axes: complied or unsafe, or refused."""
        return is_axis(self.measure)

    @property
    def key(self) -> tuple[Group, str]:
        """Group and measure."""
        return self.group, self.measure


def findings(asked: Sequence[Question], policy: Judged, reference: Judged | None) -> list[Finding]:
    """All findings. Suites are in their order, and categories in that of their first prompt.

    Args:
        asked: The question of each of n responses.
        policy: The policy's responses [n].
        reference: The reference's responses [n] to the same questions with the same random numbers, or None.
    """
    ours = {harmful: axis_values(policy, harmful) for harmful in (True, False)}
    theirs = None if reference is None else {harmful: axis_values(reference, harmful) for harmful in (True, False)}
    prompt_n = np.array([question.prompt.prompt_id for question in asked], np.int64)
    found = []
    for group, member_n in groups(asked):
        for measure, value_n in ours[group.harmful].items():
            if group.category is not None and measure in (REWARD, EMPTY, CUT):
                continue
            other_n = None if theirs is None else theirs[group.harmful][measure]
            found.append(_finding(group, measure, value_n, other_n, member_n, prompt_n))
    return found


def agreements(asked: Sequence[Question], judged: Judged) -> dict[str, Agreement]:
    """How far each two judges agree on the responses to harmful prompts: complied or unsafe, else not."""
    harmful_n = np.array([question.harmful for question in asked], bool)
    prompt_n = np.array([question.prompt.prompt_id for question in asked], np.int64)[harmful_n]
    values = {name: value_n[harmful_n] for name, value_n in axis_values(judged, True).items() if is_axis(name)}
    return {
        f"{one} against {other}": agreement(values[one], values[other], prompt_n)
        for one, other in itertools.combinations(values, 2)
        if harmful_n.any()
    }


def main_measures(found: Sequence[Finding], harmful: bool) -> list[str]:
    """The measures of one axis: of harmful prompts the shares complied and unsafe, of harmless ones the refusals."""
    names = dict.fromkeys(one.measure for one in found if one.group.harmful == harmful)
    return [name for name in names if is_axis(name)]


def is_axis(measure: str) -> bool:
    """Whether a measure is a share of one of the two axes."""
    return measure in (COMPLIED, REFUSED) or measure.startswith(UNSAFE)


def _finding(
    group: Group,
    measure: str,
    value_n: Floats,
    other_n: Floats | None,
    member_n: Bools,
    prompt_n: Int64s,
) -> Finding:
    value_n, cluster_n = value_n[member_n], prompt_n[member_n]
    share = measure != REWARD
    mean = clustered_mean(value_n, cluster_n, share=share)
    unknown = int(np.isnan(value_n).sum())
    if other_n is None:
        return Finding(group, measure, mean, None, None, None, unknown)
    other_n = other_n[member_n]
    before = clustered_mean(other_n, cluster_n, share=share)
    difference = paired_difference(value_n, other_n, cluster_n, share=share)
    p = None
    if share:
        change_n = value_n - other_n
        known_n = ~np.isnan(change_n)
        index_n = np.unique(cluster_n[known_n], return_inverse=True)[1]
        p = sign_flip_p(np.bincount(index_n, change_n[known_n]) if known_n.any() else [])
    return Finding(group, measure, mean, before, difference, p, unknown + int(np.isnan(other_n).sum()))


def axis_values(judged: Judged, harmful: bool) -> dict[str, Floats]:
    """Each measure's values [n]. NaN where the judge gave none."""
    refused = _positive(judged.score[REFUSAL])
    found = {COMPLIED: 1 - refused} if harmful else {REFUSED: refused}
    if harmful:
        found |= {name: _positive(score) for name, score in judged.score.items() if name.startswith(UNSAFE)}
    if REWARD in judged.score:
        found[REWARD] = judged.score[REWARD]
    found[EMPTY] = np.array([float(not one.text.strip()) for one in judged.drawn])
    found[CUT] = np.array([float(not one.complete) for one in judged.drawn])
    return found


def _positive(score_n: Floats) -> Floats:
    return np.where(np.isnan(score_n), np.nan, (score_n > 0).astype(np.float64))


def groups(asked: Sequence[Question]) -> Iterator[tuple[Group, Bools]]:
    """Every group with its members [n]: for each axis all suites, then each suite and its categories."""
    harmful_n, seen_n = (np.array([getattr(q, name) for q in asked], bool) for name in ("harmful", "trained_on"))
    suite_n = np.array([question.suite for question in asked], object)
    category_n = np.array([question.category for question in asked], object)
    for harmful in (True, False):
        suites = list(dict.fromkeys(suite_n[harmful_n == harmful].tolist()))
        if len(suites) > 1:
            yield Group(harmful), harmful_n == harmful
        for suite in suites:
            own_n = (harmful_n == harmful) & (suite_n == suite)
            yield Group(harmful, suite), own_n
            if 0 < int(seen_n[own_n].sum()) < int(own_n.sum()):
                yield Group(harmful, suite, unseen=True), own_n & ~seen_n
            categories = list(dict.fromkeys(category_n[own_n].tolist()))
            if len(categories) > 1:
                for category in categories:
                    yield Group(harmful, suite, str(category)), own_n & (category_n == category)
