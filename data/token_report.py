"""The effect of tokenising on the rows: counts, and the names of some rows."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

NAMED_ROWS = 5  # number of rows of each kind that a report names


@dataclass
class TokenReport:
    """The effect of tokenising on the rows: ``dropped`` were removed, ``cut`` lost tokens, ``noted`` look wrong."""

    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    named: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, row: str, reason: str) -> None:
        """Count a removed row."""
        self.dropped[reason] += 1
        self._name(row, reason)

    def shorten(self, row: str, what: str) -> None:
        """Count a row that lost tokens."""
        self.cut[what] += 1
        self._name(row, what)

    def note(self, row: str, what: str) -> None:
        """Count a row that is unchanged but should be reported to the user."""
        self.noted[what] += 1
        self._name(row, what)

    @property
    def warnings(self) -> list[str]:
        """One line for each kind of row that looks wrong."""
        return [f"{n:,} rows (the first is {self.named[what][0]}) have {what}" for what, n in self.noted.items()]

    def _name(self, row: str, key: str) -> None:
        rows = self.named.setdefault(key, [])
        if len(rows) < NAMED_ROWS:
            rows.append(row)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        counts = {"dropped": dict(self.dropped), "cut": dict(self.cut), "noted": dict(self.noted)}
        return {"kept": self.kept, **counts, "named": self.named}

    def lines(self) -> list[str]:
        """One line for each kind of change, with some of the affected rows."""
        entries = [("dropped: ", self.dropped), ("with ", self.cut)]
        told = [(kind, what, n, self.named[what]) for kind, counts in entries for what, n in counts.items()]
        lines = [f"{self.kept:,} rows tokenised"]
        for kind, what, count, rows in told:
            lines.append(f"{count:,} rows {kind}{what} ({', '.join(rows)}{', …' if count > len(rows) else ''})")
        return lines
