"""HarmBench: harmful behaviours in seven semantic categories. Mazeika et al. 2024, arXiv:2402.04249."""

from collections.abc import Sequence
from typing import Literal, get_args

from data.schema import Message, PromptRow, check_text
from data.sources.files import Record
from data.sources.suite import Suite, check_option

Kind = Literal["standard", "contextual", "copyright"]


class HarmBench(Suite):
    """The authors' CSV file of text behaviours, or a configuration of ``walledai/HarmBench`` on the hub.

    A contextual behaviour is asked as the authors' DirectRequest does: the context, a line ``---``, the behaviour.

    Args:
        path: File (columns Behavior, FunctionalCategory, SemanticCategory, ContextString), or hub id.
        kinds: Functional categories to read. Copyright is left out, because a judge of harm cannot decide it: the
            authors compare hashes of the texts. A hub copy has one configuration for each kind, and no such column.
        split: Hub: the split to read.
        revision: Hub: branch, tag or commit.
        config: Hub: standard or contextual.

    Raises:
        ValueError: If a kind is unknown.
    """

    licence = "MIT"
    prompt_columns = ("Behavior", "prompt")
    category_columns = ("SemanticCategory", "category")

    def __init__(
        self,
        path: str,
        kinds: Sequence[Kind] = ("standard", "contextual"),
        split: str = "train",
        revision: str | None = None,
        config: str | None = None,
    ) -> None:
        for kind in kinds:
            check_option("kinds", kind, get_args(Kind))
        super().__init__(path, split, revision, config)
        self.kinds = tuple(kinds)

    def options(self) -> dict[str, str]:
        return {"kinds": ",".join(self.kinds)}

    def row(self, name: str, record: Record) -> PromptRow | None:
        if "FunctionalCategory" in record:
            kind = check_text(name, "FunctionalCategory", record["FunctionalCategory"])
            if kind not in self.kinds:
                return None
        context = record.get("ContextString") or record.get("context") or ""
        text = self.text(name, record)
        asked = f"{context}\n\n---\n\n{text}" if str(context).strip() else text
        return PromptRow(name, (Message("user", asked),), self.category(name, record), True)
