"""The human-scored responses in the PyPI package pyrit (MIT). The package is located but not imported."""

import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from data.schema import BadRow, Message, Response, Row, check_text
from data.sources.files import Record, Table, number_of
from lit_safe.hashing import hash64
from lit_safe.types import ResponsesFrom

FOLDERS = {"severity": "harm", "objective_achieved": "objective"}
_TIE = 1e-9  # smaller differences of two mean scores are rounding errors


class PyRIT:
    """Pairs of two responses to one objective (the prompt) whose mean human scores differ by at least ``minimum_gap``.

    ``differ_in="severity"``: harm from 0 (none) to 1 (severe). The less severe response is ``safer``; ``better`` is
    unknown. ``differ_in="objective_achieved"``: 0 or 1. The response that achieved the objective is ``better``;
    ``safer`` is unknown. ``scores`` holds the score under its name, so ``Scores`` can read it as a reward or a cost. No
    objective has two responses that carry both labels.

    **Neither achieving a harmful objective nor severity is evidence of helpfulness.** Using either as a reward only
    tests the software: objectives that need a reward can then run without a download. Do not report it as a result
    about helpfulness.

    All scores that people gave to the same response are used, from whichever file.

    Args:
        differ_in: Which score.
        minimum_gap: Smallest difference of the mean scores, > 0.
        pairs_per_objective: Maximum number of pairs per objective, chosen by hash; None takes all.
        folder: The package's folder ``datasets/scorer_evals``; None finds the installed one.

    Raises:
        ValueError: ``minimum_gap`` or ``pairs_per_objective`` is not > 0; on reading, the package is missing.
    """

    licence = "MIT"
    responses_from: ResponsesFrom = "model"

    def __init__(
        self,
        differ_in: Literal["severity", "objective_achieved"] = "severity",
        minimum_gap: float = 0.25,
        pairs_per_objective: int | None = 6,
        folder: str | None = None,
    ) -> None:
        if not minimum_gap > 0:
            raise ValueError(f"minimum_gap must be > 0, got {minimum_gap}")
        if pairs_per_objective is not None and pairs_per_objective < 1:
            raise ValueError(f"pairs_per_objective must be at least 1, got {pairs_per_objective}")
        self.differ_in = differ_in
        self.minimum_gap, self.pairs_per_objective = minimum_gap, pairs_per_objective
        self.folder = folder

    def describe(self) -> dict[str, str]:
        return {
            "source": type(self).__name__,
            "name": f"pyrit/{FOLDERS[self.differ_in]}",
            **{table.name: table.describe()["sha256"] for table in self._tables()},
            "minimum_gap": str(self.minimum_gap),
            "pairs_per_objective": str(self.pairs_per_objective),
        }

    def __iter__(self) -> Iterator[Row | BadRow]:
        scores: dict[str, dict[str, list[float]]] = {}
        names: dict[tuple[str, str], str] = {}
        for table in self._tables():
            for item in table.parsed(_scored):
                if isinstance(item, BadRow):
                    yield item
                    continue
                name, objective, text, values = item
                scores.setdefault(objective, {}).setdefault(text, []).extend(values)
                names.setdefault((objective, text), f"pyrit/{FOLDERS[self.differ_in]}/{name}")
        for objective, texts in scores.items():
            means = [(text, sum(values) / len(values)) for text, values in texts.items()]
            pairs = [p for p in itertools.combinations(means, 2) if abs(p[0][1] - p[1][1]) >= self.minimum_gap - _TIE]
            pairs.sort(key=lambda pair: hash64("pair", objective, *sorted(text for text, _ in pair)))
            for pair in pairs[: self.pairs_per_objective]:
                yield self._row("+".join(names[objective, text] for text, _ in pair), objective, *pair)

    def _tables(self) -> list[Table]:
        folder = self._folder() / FOLDERS[self.differ_in]
        # files named mini_... repeat rows of the full files
        paths = sorted(path for path in folder.glob("*.csv") if not path.name.startswith("mini_"))
        if not paths:
            raise ValueError(f"{folder}: holds no scores")
        return [Table(str(path)) for path in paths]

    def _folder(self) -> Path:
        if self.folder is not None:
            return Path(self.folder)
        spec = importlib.util.find_spec("pyrit")
        if spec is None or not spec.submodule_search_locations:
            raise ValueError("the package pyrit is not installed: pip install --no-deps pyrit==1.1.0")
        return Path(spec.submodule_search_locations[0]) / "datasets" / "scorer_evals"

    def _row(self, name: str, objective: str, *pair: tuple[str, float]) -> Row:
        severe = self.differ_in == "severity"
        first, second = (
            Response(text, severity=mean if severe else None, scores={self.differ_in: mean}) for text, mean in pair
        )
        larger = int(pair[1][1] > pair[0][1])
        better, safer = (None, 1 - larger) if severe else (larger, None)
        return Row(name, (Message("user", objective),), (first, second), better, safer, self.responses_from)


def _scored(name: str, record: Record) -> tuple[str, str, str, list[float]]:
    objective, text = (check_text(name, column, record.get(column)) for column in ("objective", "assistant_response"))
    columns = [column for column in record if column.startswith("human_score")]
    if not columns:
        raise BadRow(name, "human_score", "is null or missing")
    scores = [number_of(name, column, record[column]) for column in columns]
    for column, score in zip(columns, scores, strict=True):
        if not 0 <= score <= 1:
            raise BadRow(name, column, "is not between 0 and 1")
    return name, objective, text, scores
