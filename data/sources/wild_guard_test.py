"""WildGuardTest: plain and adversarial prompts with people's labels. Han et al. 2024, arXiv:2406.18495."""

from typing import Literal, get_args

from data.schema import BadRow, Message, PromptRow
from data.sources.files import Record, flag_of
from data.sources.suite import Suite, check_option

HARMFUL = {"harmful": True, "unharmful": False}
Kind = Literal["all", "vanilla", "adversarial"]


class WildGuardTest(Suite):
    """``allenai/wildguardmix`` on the hub (its terms must be accepted there), or a file of its test split.

    The columns are prompt, adversarial, prompt_harm_label and subcategory. Both halves are in the set: ``harmful`` of a
    prompt is people's label, and unknown where they gave none.

    Args:
        path: Hub id or file.
        kind: ``vanilla``: plain requests. ``adversarial``: requests with a jailbreak or a disguise. ``all``: both.
        split: Hub: the split to read.
        revision: Hub: branch, tag or commit.
        config: Hub: name of the configuration.

    Raises:
        ValueError: If ``kind`` is unknown.
    """

    licence = "ODC-BY (with AI2's terms for the dataset)"
    category_columns = ("subcategory",)

    def __init__(
        self,
        path: str = "allenai/wildguardmix",
        kind: Kind = "all",
        split: str = "test",
        revision: str | None = None,
        config: str | None = "wildguardtest",
    ) -> None:
        check_option("kind", kind, get_args(Kind))
        super().__init__(path, split, revision, config)
        self.kind = kind

    def options(self) -> dict[str, str]:
        return {"kind": self.kind}

    def needs(self) -> tuple[tuple[str, ...], ...]:
        return (*super().needs(), ("prompt_harm_label",), ("adversarial",))

    def row(self, name: str, record: Record) -> PromptRow | None:
        adversarial = flag_of(name, "adversarial", record.get("adversarial"))
        if self.kind != "all" and adversarial != (self.kind == "adversarial"):
            return None
        label = record.get("prompt_harm_label") or None
        if label is not None and label not in HARMFUL:
            raise BadRow(name, "prompt_harm_label", f"is not one of {', '.join(HARMFUL)}")
        harmful = None if label is None else HARMFUL[label]
        return PromptRow(name, (Message("user", self.text(name, record)),), self.category(name, record), harmful)
