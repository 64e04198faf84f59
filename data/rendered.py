"""The part of every data module that turns conversations into ids and ids into text."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

from lightning import LightningDataModule
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from data.conversation import Conversation, plain_text
from data.render import TODAY, Renderer
from data.schema import Message
from data.split import prompt_id
from data.templates import template_text
from lit_safe.types import Prompt


def check_sizes(**sizes: int | None) -> None:
    """Refuse sizes below 1. None sets no size.

    Raises:
        ValueError: Naming the first.
    """
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


class Rendered(LightningDataModule):
    """Renders prompts by a tokenizer and its chat template. Arguments as in ``data.module.PreferenceData``."""

    def __init__(
        self,
        max_length: int,
        tokenizer: str | None = None,
        template: str | None = None,
        template_date: str = TODAY.isoformat(),
        rendered: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(max_length=max_length)
        self.max_length = max_length
        self.tokenizer_name = tokenizer
        self.template = None if template is None else template_text(template)
        self.today, self.rendered = _day(template_date), rendered
        self._model: Any = None
        self._tokenizer: PreTrainedTokenizerBase | None = None

    def connect(self, model: Any) -> None:
        """Use the tokenizer of ``model`` (a pair, or a module with a ``pair``), unless ``tokenizer`` names another."""
        self._model = model if hasattr(model, "load_tokenizer") else model.pair

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that ``tokenizer`` names, or the connected model's; loaded at first use."""
        if self._tokenizer is None:
            if self.tokenizer_name is not None:
                self._tokenizer = AutoTokenizer.from_pretrained(self.tokenizer_name)
            elif self._model is not None:
                self._tokenizer = self._model.load_tokenizer()
            else:
                raise ValueError("no tokenizer: set data.init_args.tokenizer, or connect(model) first")
            if self.template is not None:
                self._tokenizer.chat_template = self.template  # so that an export of the model includes it
        return self._tokenizer

    def decode(self, ids: Sequence[int]) -> str:
        """Ids as text, without special tokens."""
        return str(self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True))

    @property
    def stop_ids(self) -> frozenset[int]:
        """Every token that ends a response: one for conversations, one for plain text. They are often the same."""
        return self._renderer().stop_tokens

    def ask(self, text: str) -> Prompt:
        """Any question, rendered like the data's own prompts: as a user's turn, or as plain text if they are.

        Raises:
            BadRow: The template or the tokenizer refuses it.
        """
        plain = self.rendered or self.tokenizer.chat_template is None
        return self.to_answer("question", text if plain else (Message("user", text),))

    def to_answer(self, name: str, prompt: Conversation) -> Prompt:
        """A prompt as ids, cut to ``max_length``. ``name`` is for messages.

        Raises:
            BadRow: The template or the tokenizer refuses it.
        """
        renderer = self._renderer()
        ids = renderer.cut_prompt(renderer.prompt(name, prompt), self.max_length)
        return Prompt(prompt_id(prompt), tuple(ids), plain_text(prompt))

    def _renderer(self) -> Renderer:
        return Renderer(self.tokenizer, self.today, rendered=self.rendered)


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"template_date must be a day such as 2025-01-01, got {text!r}") from None
