"""Counts of rows read, kept and dropped, and of the labels of the kept rows."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

STRATA = ("safe/safe", "safe/unsafe", "unsafe/safe", "unsafe/unsafe", "unknown")
EXAMPLES = 3  # row names stored for each reason


@dataclass
class SourceReport:
    """Rows of one source. ``responses_from`` holds who wrote the responses of its kept rows."""

    name: str
    licence: str
    read: int = 0
    kept: int = 0
    responses_from: tuple[str, ...] = ()


@dataclass
class Dropped:
    """Rows dropped for one reason, with the names of the first few."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, row: str) -> None:
        """Count one more row."""
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(row)


@dataclass
class PreparationReport:
    """Counts of a preparation.

    Attributes:
        order: Which response is ``chosen``.
        ordered_by_safety: Kept pairs whose chosen response is the less harmful one because no label says which is
            better.
        sources: One entry per source, in order.
        dropped: Dropped rows by reason, including exact duplicates.
        contradictory_responses: Texts labelled both safe and unsafe after the same prompt.
        contradictory_orders: Pairs that appear in both orders.
        contradictory_rows: Kept rows with such a text or pair.
        prompts: Distinct prompts kept.
        strata: Kept pairs by the safety of chosen/rejected, from the signs of the costs; "unknown" if a cost is
            missing.
        unsafe_share: For each constraint and for any of them: share of responses with cost > 0 among those with a known
            cost; NaN if no cost is known.
    """

    order: str
    sources: list[SourceReport] = field(default_factory=list)
    dropped: dict[str, Dropped] = field(default_factory=dict)
    ordered_by_safety: int = 0
    contradictory_responses: int = 0
    contradictory_orders: int = 0
    contradictory_rows: int = 0
    prompts: int = 0
    strata: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STRATA, 0))
    unsafe_share: dict[str, float] = field(default_factory=dict)

    @property
    def read(self) -> int:
        """Number of rows of all sources."""
        return sum(source.read for source in self.sources)

    @property
    def kept(self) -> int:
        """Number of kept pairs."""
        return sum(source.kept for source in self.sources)

    @property
    def safe_dpo(self) -> dict[str, int]:
        """The effect of SafeDPO's transform on the kept pairs of known safety (arXiv:2505.20065v2, T in eq. 11)."""
        keep = self.strata["safe/safe"] + self.strata["safe/unsafe"]
        return {"keep": keep, "swap": self.strata["unsafe/safe"], "drop": self.strata["unsafe/unsafe"]}

    def drop(self, reason: str, row: str) -> None:
        """Count ``row`` under ``reason``."""
        self.dropped.setdefault(reason, Dropped()).add(row)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values; an unknown share is None."""
        shares = {name: None if math.isnan(share) else share for name, share in self.unsafe_share.items()}
        totals = {"read": self.read, "kept": self.kept, "safe_dpo": self.safe_dpo, "unsafe_share": shares}
        return asdict(self) | totals

    def lines(self) -> list[str]:
        """The report as lines for a log."""
        text = [f"{self.kept:,} of {self.read:,} rows kept as pairs of {self.prompts:,} prompts, order {self.order!r}"]
        for source in self.sources:
            authors = ", ".join(source.responses_from) or "nobody"
            text.append(f"  {source.name}: {source.kept:,} of {source.read:,}, responses from {authors}")
            text.append(f"    licence {source.licence}")
        for reason, dropped in sorted(self.dropped.items(), key=lambda item: -item[1].count):
            text.append(f"  dropped {dropped.count:,}: {reason} (e.g. {', '.join(dropped.examples)})")
        if self.ordered_by_safety:
            text.append(f"  chosen by safety, because no label says which is better: {self.ordered_by_safety:,}")
        if self.contradictory_responses or self.contradictory_orders:
            text.append(
                f"  contradictory labels: {self.contradictory_responses:,} texts both safe and unsafe, "
                f"{self.contradictory_orders:,} pairs in both orders; {self.contradictory_rows:,} such rows kept"
            )
        text.append("  chosen/rejected: " + ", ".join(f"{name} {count:,}" for name, count in self.strata.items()))
        text.append("  unsafe share: " + ", ".join(f"{name} {share:.3f}" for name, share in self.unsafe_share.items()))
        text.append("  SafeDPO would " + ", ".join(f"{verb} {count:,}" for verb, count in self.safe_dpo.items()))
        return text


def safety(cost: Sequence[float]) -> str:
    """``unsafe`` if any cost is > 0, otherwise ``unknown`` if one is NaN, otherwise ``safe``."""
    if any(c > 0 for c in cost):
        return "unsafe"
    return "unknown" if any(math.isnan(c) for c in cost) else "safe"
