"""A source less the prompts of others: how an evaluation set is kept out of training, word for word."""

from collections.abc import Iterator, Sequence

from data.schema import BadRow, Row, Source
from data.split import prompt_id


class Without:
    """The rows of ``source`` whose normalised prompt stands in none of ``others``.

    The common split keeps a prompt on one side wherever it stands, except beside a source that is split by groups
    (XSTest): there this removes the prompts that the other sources share with it.

    Args:
        source: Whose rows are wanted.
        others: Whose prompts are not; their unusable rows count for nothing here.
    """

    def __init__(self, source: Source, others: Sequence[Source]) -> None:
        self.source, self.others = source, tuple(others)

    @property
    def licence(self) -> str:
        return self.source.licence

    @property
    def evaluation_only(self) -> bool:
        """Whether training must refuse these rows."""
        return getattr(self.source, "evaluation_only", False)

    def describe(self) -> dict[str, str]:
        others = {f"without_{i}": str(other.describe()) for i, other in enumerate(self.others)}
        return {**self.source.describe(), **others}

    def __iter__(self) -> Iterator[Row | BadRow]:
        taken = {prompt_id(row.prompt) for other in self.others for row in other if isinstance(row, Row)}
        return (row for row in self.source if isinstance(row, BadRow) or prompt_id(row.prompt) not in taken)
