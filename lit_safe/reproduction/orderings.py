"""What the papers' figures say about the order of methods, and whether our figures say the same."""

from typing import NamedTuple

from lit_safe.reproduction.measured import Seen
from lit_safe.reproduction.methods import title
from lit_safe.reproduction.published import C_DPO, SAFE_DPO
from lit_safe.statistics.pooled import Pooled

HOLDS, FAILS, UNTOLD = "holds", "does not hold", "cannot be told"
NAMES = {"reward": "reward", "cost": "cost", "unsafe": "unsafe responses", "refused": "refused harmless prompts"}


class Ordering(NamedTuple):
    """A claim: ``one`` has more (sign 1) or less (sign -1) of a measure than ``other``.

    Args:
        paper: The paper whose published figures are in this order.
        figures: These figures, of ``one`` and ``other``.
        note: A condition under which the paper's comparison and ours are not the same.
    """

    one: str
    other: str
    measure: str
    sign: int
    paper: str
    figures: str
    note: str = ""

    @property
    def text(self) -> str:
        """The claim in words."""
        more = "more" if self.sign > 0 else "less"
        more = "fewer" if self.measure in ("unsafe", "refused") and self.sign < 0 else more
        return f"{title(self.one)}: {more} {NAMES[self.measure]} than {title(self.other)}"


ORDERINGS: tuple[Ordering, ...] = (
    Ordering("dpo_helpful", "sft", "reward", 1, f"{C_DPO}, {SAFE_DPO}", "6.16 and 1.78; 10 and 0"),
    Ordering("dpo_helpful", "sft", "cost", 1, C_DPO, "12.45 and 10.63"),
    Ordering("dpo_helpful", "sft", "unsafe", 1, SAFE_DPO, "62.4 and 54.5 %"),
    Ordering("dpo_harmless", "sft", "unsafe", -1, SAFE_DPO, "24.3 and 54.5 %"),
    Ordering("dpo_safebetter", "dpo_helpful", "unsafe", -1, SAFE_DPO, "50.3 and 62.4 %"),
    Ordering("safe_dpo", "dpo_harmless", "unsafe", -1, SAFE_DPO, "3.1 and 24.3 %"),
    Ordering("safe_dpo", "dpo_safebetter", "unsafe", -1, SAFE_DPO, "3.1 and 50.3 %"),
    Ordering("safe_dpo", "dpo_harmless", "reward", 1, SAFE_DPO, "4.61 and 0.52"),
    Ordering("dpo_helpful", "safe_dpo", "reward", 1, SAFE_DPO, "10 and 4.61"),
    Ordering("safe_dpo", "sft", "refused", 1, SAFE_DPO, "12.4 and 0.4 %"),
    Ordering("safe_dpo", "dpo_harmless", "refused", 1, SAFE_DPO, "12.4 and 1 to 4 %"),
    Ordering("safe_dpo", "safe_dpo_0", "unsafe", -1, SAFE_DPO, "a figure, not read", "one account sees no effect of Δ"),
    Ordering("safe_dpo", "dpo_helpful_offset", "unsafe", -1, SAFE_DPO, "a claim", "T, not Δ"),
    Ordering("safe_dpo", "dpo_harmless_offset", "unsafe", -1, SAFE_DPO, "a claim", "T, not Δ"),
    Ordering("c_dpo_1", "c_dpo_0_4", "cost", -1, C_DPO, "-9.47 and -0.58"),
    Ordering("c_dpo_0_4", "c_dpo_1", "reward", 1, C_DPO, "4.26 and 2.90"),
    Ordering("c_dpo_0_4", "dpo_helpful", "cost", -1, C_DPO, "-0.58 and 12.45"),
    Ordering("dpo_helpful", "c_dpo_0_4", "reward", 1, C_DPO, "6.16 and 4.26"),
    Ordering("c_dpo_0_4", "sft", "reward", 1, C_DPO, "4.26 and 1.78"),
)


class Found(NamedTuple):
    """An ordering with our difference and what it says."""

    ordering: Ordering
    difference: Pooled | None
    verdict: str
    advice: str = ""


def judge(ordering: Ordering, difference: Pooled | None, missing: str = "not measured") -> Found:
    """The verdict on a claim by the 95 % interval of the paired difference; ``missing`` says why there is none."""
    if difference is None:
        return Found(ordering, None, UNTOLD, missing)
    if difference.known and ordering.sign * (difference.low if ordering.sign > 0 else difference.high) > 0:
        return Found(ordering, difference, HOLDS)
    if difference.known and ordering.sign * (difference.high if ordering.sign > 0 else difference.low) < 0:
        return Found(ordering, difference, FAILS)
    return Found(ordering, difference, UNTOLD, _advice(difference))


def _advice(difference: Pooled) -> str:
    """How much would tell a difference of this size from none."""
    if not difference.known:
        return "no prompt and no seed differs"
    prompts, seeds = difference.enough()
    ways = [f"{n:,} {what}" for n, what in ((prompts, "prompts"), (seeds, "seeds")) if n is not None]
    return f"about {' or '.join(ways)} would do" if ways else "more prompts and more seeds are needed"


def judged(seen: Seen, orderings: tuple[Ordering, ...] = ORDERINGS) -> list[Found]:
    """Every claim about methods that were both measured."""
    there = set(seen.methods)
    found = []
    for one in orderings:
        if not {one.one, one.other} <= there:
            continue
        difference = seen.difference(one.one, one.other, one.measure)
        missing = [title(name) for name in (one.one, one.other) if one.measure not in seen.cells[name]]
        why = f"not measured of {', '.join(missing)}" if missing else "no prompt in common: asked other prompts"
        found.append(judge(one, difference, why))
    return found
