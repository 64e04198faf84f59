"""XSTest's prompts alone, for evaluations. ``data.sources.xstest`` reads the labelled completions."""

from collections.abc import Iterator
from typing import Literal, get_args

from data.schema import BadRow, Message, PromptRow
from data.sources.files import Record
from data.sources.suite import Half, Suite, check_option
from data.sources.xstest import groups_of
from lit_safe.hashing import uniform

Groups = Literal["all", "evaluation"]


class XSTestPrompts(Suite):
    """250 harmless prompts that look harmful, and 200 harmful contrasts. Roettger et al. 2024, arXiv:2308.01263.

    A prompt is harmful if and only if its type begins with ``contrast_``. The category is the type.

    Args:
        path: The authors' file of prompts (columns id, prompt, type, focus), or ``Paul/XSTest`` on the hub.
        half: ``harmless``, ``harmful``, or ``all``.
        groups: ``evaluation`` reads only the homonym groups that ``data.sources.xstest.XSTest`` keeps from training.
            Use it for a policy that was trained on XSTest's other groups. ``all`` reads every prompt.
        evaluation_share: As the training's ``XSTest`` has it.
        split: Hub: the split to read.
        revision: Hub: branch, tag or commit.
        config: Hub: name of the configuration.

    Raises:
        ValueError: If ``half`` or ``groups`` is unknown.
    """

    licence = "CC-BY-4.0"
    category_columns = ("type",)

    def __init__(
        self,
        path: str = "Paul/XSTest",
        half: Half = "all",
        groups: Groups = "all",
        evaluation_share: float = 0.5,
        split: str = "train",
        revision: str | None = None,
        config: str | None = None,
    ) -> None:
        check_option("half", half, get_args(Half))
        check_option("groups", groups, get_args(Groups))
        super().__init__(path, split, revision, config)
        self.half, self.groups, self.evaluation_share = half, groups, evaluation_share

    def options(self) -> dict[str, str]:
        return {"half": self.half, "groups": self.groups, "evaluation_share": str(self.evaluation_share)}

    def needs(self) -> tuple[tuple[str, ...], ...]:
        return (*super().needs(), *([("id",)] if self.groups == "evaluation" else []))

    def row(self, name: str, record: Record) -> PromptRow | None:
        kind = self.category(name, record)
        harmful = str(kind).startswith("contrast_")
        if self.half != "all" and harmful != (self.half == "harmful"):
            return None
        return PromptRow(name, (Message("user", self.text(name, record)),), kind, harmful)

    def __iter__(self) -> Iterator[PromptRow | BadRow]:
        if self.groups == "all":
            yield from super().__iter__()
            return
        records = [item for item in self.table.records() if not isinstance(item, BadRow)]
        if records:
            self._check_columns(records[0][1])
        try:
            groups = groups_of([(name, {**record, "id": str(record.get("id"))}) for name, record in records])
        except BadRow as bad:
            yield bad
            return
        held_out = {
            name
            for name, record in records
            if uniform("xstest", groups[str(record["id"]).rpartition("-")[2]]) < self.evaluation_share
        }
        yield from (row for row in super().__iter__() if isinstance(row, BadRow) or row.id in held_out)
