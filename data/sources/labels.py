"""Labels in a user's file: which columns hold them, and how they are read."""

from collections.abc import Mapping, Sequence

from data.schema import Message, Response
from data.sources.files import Record, flag_of, number_of


class LabelColumns:
    """Reads the numeric scores and the safe flags of responses 0 and 1 from named columns.

    Args:
        scores: For each score its two columns, of response 0 and of response 1.
        safe: The two columns of safe flags, or None.

    Raises:
        ValueError: A score or the flags do not name exactly two columns.
    """

    def __init__(self, scores: Mapping[str, Sequence[str]] | None, safe: Sequence[str] | None) -> None:
        self.scores = {name: tuple(columns) for name, columns in (scores or {}).items()}
        self.safe = tuple(safe) if safe is not None else None
        for name, columns in {**self.scores, **({"safe": self.safe} if self.safe else {})}.items():
            if len(columns) != 2:
                raise ValueError(f"{name} must name two columns, one a response, got {list(columns)}")

    def describe(self) -> dict[str, str]:
        """The labels' part of the cache key, by name."""
        return {"scores": str(sorted(self.scores.items())), "safe": str(self.safe)}

    def response(self, row: str, record: Record, k: int, text: str, turns: tuple[Message, ...] = ()) -> Response:
        """Response ``k`` with its labels. Raises BadRow if a label is unusable."""
        safe = None if self.safe is None else flag_of(row, self.safe[k], record.get(self.safe[k]))
        scores = {name: number_of(row, columns[k], record.get(columns[k])) for name, columns in self.scores.items()}
        return Response(text, safe, scores=scores, turns=turns)
