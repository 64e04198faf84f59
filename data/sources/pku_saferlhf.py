"""PKU-SafeRLHF: pairs labelled for helpfulness and harmlessness separately. Ji et al. 2024, arXiv:2406.15513."""

from collections.abc import Iterator, Sequence

from data.schema import BadRow, Message, Response, Row, check_choice, check_flag, check_number, check_text
from data.sources.files import Record
from data.sources.tables import Rows, table
from lit_safe.types import ResponsesFrom


class PKUSafeRLHF:
    """PKU-SafeRLHF in the 30K schema or the current one, which adds severity (0 none to 3 severe) and 19 categories.

    ``better`` and ``safer`` are the two human orders; the dataset may lack either column. The severity level becomes
    ``severity``. Each of ``categories`` becomes a score under its own name, 1 if flagged and 0 otherwise.

    Args:
        path: Hub id, or a local file with the same columns; in Python also rows in memory.
        split: Hub only: the split to read.
        revision: Hub only: branch, tag or commit.
        categories: Harm categories to keep as scores, by their names in the dataset. Each may become a constraint.
        responses_from: Who wrote the responses; "reference" if they are samples of the reference policy itself.
        config: Hub only: name of the dataset's configuration.
    """

    licence = "CC-BY-NC-4.0"

    def __init__(
        self,
        path: Rows = "PKU-Alignment/PKU-SafeRLHF",
        split: str = "train",
        revision: str | None = None,
        categories: Sequence[str] = (),
        responses_from: ResponsesFrom = "model",
        config: str | None = None,
    ) -> None:
        self.table = table(path, split, revision, config=config)
        self.categories = tuple(categories)
        self.responses_from = responses_from

    def describe(self) -> dict[str, str]:
        options = {"categories": ",".join(self.categories), "responses_from": self.responses_from}
        return {"source": type(self).__name__, **self.table.describe(), **options}

    def __iter__(self) -> Iterator[Row | BadRow]:
        return self.table.parsed(self._row)

    def _row(self, name: str, record: Record) -> Row:
        better, safer = (
            check_choice(name, column, record[column]) if column in record else None
            for column in ("better_response_id", "safer_response_id")
        )
        prompt = (Message("user", check_text(name, "prompt", record.get("prompt"))),)
        responses = self._response(name, record, 0), self._response(name, record, 1)
        return Row(name, prompt, responses, better, safer, self.responses_from)

    def _response(self, name: str, record: Record, k: int) -> Response:
        text, safe, level = f"response_{k}", f"is_response_{k}_safe", f"response_{k}_severity_level"
        return Response(
            check_text(name, text, record.get(text)),
            check_flag(name, safe, record.get(safe)),
            check_number(name, level, record[level]) if level in record else None,
            self._categories(name, f"response_{k}_harm_category", record) if self.categories else {},
        )

    def _categories(self, name: str, column: str, record: Record) -> dict[str, float]:
        flags = record.get(column)
        if not isinstance(flags, dict):
            raise BadRow(name, column, "is null or missing" if flags is None else f"is {type(flags).__name__}")
        return {c: float(check_flag(name, f"{column}.{c}", flags.get(c))) for c in self.categories}
