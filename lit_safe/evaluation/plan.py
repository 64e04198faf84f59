"""What an evaluation can find, computed from the number of prompts before a response is drawn."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lit_safe.evaluation.suites import Question
from lit_safe.statistics.intervals import share_bounds
from lit_safe.statistics.sign_flip import LEVEL, POWER, detectable_change

OPPOSITE = (0.0, 0.1, 0.25)
"""Assumed shares of prompts that change against the difference."""


class Planned(NamedTuple):
    """One suite and axis: its prompts, its smallest category, and what is detectable.

    ``detectable`` has a difference of shares for each of ``OPPOSITE``, None if there is none. ``reach`` is half the
    width of the interval of a share of 50 %, NaN with one prompt.
    """

    suite: str
    harmful: bool
    prompts: int
    smallest: tuple[str, int] | None
    detectable: tuple[float | None, ...]
    reach: float


def plan(asked: Sequence[Question]) -> list[Planned]:
    """A row for each suite and axis. Prompts count once, whatever the number of responses to each."""
    found = []
    for suite, harmful in dict.fromkeys((question.suite, question.harmful) for question in asked):
        members = [question for question in asked if (question.suite, question.harmful) == (suite, harmful)]
        counts = Counter(str(question.category) for question in members)
        smallest = min(counts.items(), key=lambda item: item[1]) if len(counts) > 1 else None
        n = len(members)
        # half of the prompts differ from the mean by +1/2, half by -1/2
        low, high = share_bounds(0.5, np.resize([0.5 / n, -0.5 / n], n), n, n)
        found.append(
            Planned(suite, harmful, n, smallest, tuple(detectable_change(n, o) for o in OPPOSITE), (high - low) / 2)
        )
    return found


def plan_lines(planned: Sequence[Planned], samples: int, paired: bool) -> list[str]:
    """The plan in sentences: what a difference must be to be found, or how closely a share is known."""
    lines = []
    for one in planned:
        kind = "harmful" if one.harmful else "harmless"
        each = f", {samples} responses each" if samples > 1 else ""
        head = f"{one.suite}: {one.prompts} {kind} prompts{each}"
        lines.append(f"{head}. {_paired(one) if paired else _single(one)}")
        if one.smallest is not None and paired:
            name, count = one.smallest
            few = detectable_change(count)
            told = "no change can be found" if few is None else f"at least {100 * few:.0f} points"
            lines.append(f"  smallest category: {name}, {count} prompts: {told}, before Holm's adjustment")
    return lines


def _paired(one: Planned) -> str:
    known = [(o, change) for o, change in zip(OPPOSITE, one.detectable, strict=True) if change is not None]
    if not known:
        return f"Too few prompts: the test by prompt ({100 * LEVEL:g} %) finds no change of any size"
    parts = [
        f"{100 * change:.1f} points if {f'{100 * o:g} % of prompts change' if o else 'no prompt changes'} against it"
        for o, change in known
    ]
    return (
        f"Found with probability {100 * POWER:g} % (test by prompt, {100 * LEVEL:g} %): a change of {', '.join(parts)}"
    )


def _single(one: Planned) -> str:
    if not np.isfinite(one.reach):
        return "Too few prompts for an interval"
    return (
        f"A share near 50 % has an interval of about ±{100 * one.reach:.1f} points; there is no model to compare with"
    )
