"""Data without rows: it renders the prompts of an evaluation for any model."""

from __future__ import annotations

from collections.abc import Sequence

from data.render import TODAY
from data.rendered import Rendered


class Questions(Rendered):
    """Renders prompts for a model that was not trained here, such as a hub model or an exported folder.

    Commands that read a split, such as ``fit``, need a data module with sources.

    Args:
        max_length: Maximum number of tokens of a prompt. Longer ones are cut from their start.
        tokenizer: Name or folder of a tokenizer; null takes the model's.
        template: Chat template that replaces the tokenizer's own: safe_rlhf, human_assistant, or a .jinja file; null
            takes the tokenizer's.
        template_date: The date that a chat template prints as today's date.
        rendered: true: prompts are plain text that a chat template has already produced.
    """

    def __init__(
        self,
        max_length: int = 512,
        tokenizer: str | None = None,
        template: str | None = None,
        template_date: str = TODAY.isoformat(),
        rendered: bool = False,
    ) -> None:
        super().__init__(max_length, tokenizer, template, template_date, rendered)

    def trained_on(self, texts: Sequence[str]) -> list[bool]:
        """False for each text: nothing is known of what the model was trained on."""
        return [False] * len(texts)
