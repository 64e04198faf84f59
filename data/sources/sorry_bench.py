"""SORRY-Bench: harmful requests in 44 or 45 categories. Xie et al. 2024, arXiv:2406.14598."""

from data.schema import BadRow, PromptRow, check_text
from data.sources.files import Record
from data.sources.suite import Suite


class SorryBench(Suite):
    """``sorry-bench/sorry-bench-202406`` on the hub (its licence must be accepted there), or its ``question.jsonl``.

    The columns are question_id, category, turns (a list with one request) and prompt_style.

    Args:
        path: Hub id or file.
        style: The value of prompt_style to read. ``base`` is the unchanged request; others rephrase or translate it.
            Null reads all.
        split: Hub: the split to read.
        revision: Hub: branch, tag or commit.
        config: Hub: name of the configuration.
    """

    licence = "SORRY-Bench licence agreement (research only, no redistribution)"
    prompt_columns = ("turns",)

    def __init__(
        self,
        path: str = "sorry-bench/sorry-bench-202406",
        style: str | None = "base",
        split: str = "train",
        revision: str | None = None,
        config: str | None = None,
    ) -> None:
        super().__init__(path, split, revision, config)
        self.style = style

    def options(self) -> dict[str, str]:
        return {"style": str(self.style)}

    def needs(self) -> tuple[tuple[str, ...], ...]:
        return (*super().needs(), *([] if self.style is None else [("prompt_style",)]))

    def row(self, name: str, record: Record) -> PromptRow | None:
        if self.style is not None and check_text(name, "prompt_style", record.get("prompt_style")) != self.style:
            return None
        return super().row(name, record)

    def text(self, name: str, record: Record) -> str:
        turns = record.get("turns")
        if not isinstance(turns, list) or len(turns) != 1:
            raise BadRow(name, "turns", "is not a list of one request")
        return check_text(name, "turns[0]", turns[0])

    def category(self, name: str, record: Record) -> str:
        number = record.get("category")
        return str(number) if isinstance(number, int) else check_text(name, "category", number).strip()
