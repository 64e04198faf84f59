"""A conversation and a response, as token ids: the chat template rendered once, each text tokenised once.

The prompt's ids never depend on the response. A response's ids end with exactly one stop token, the one that the
template puts after an assistant's turn (the tokenizer's eos where it puts none); nothing after it is kept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from data.schema import BadRow, Message
from data.templates import TEMPLATES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Conversation = tuple[Message, ...] | str

# Stands inside a special token's string that a text merely quotes, so that the tokenizer does not read it as the token.
BREAK = "\ue0f0"
PROBE = "zebra"
# What chat templates write around turns: a text that holds one was rendered before
MARKS: tuple[str, ...] = (
    "<|im_start|>",
    "<|start_header_id|>",
    "<start_of_turn>",
    "<|start_of_role|>",
    "[INST]",
    "<|user|>",
    "<|assistant|>",
    "<|turn>",
    "<\uff5cUser\uff5c>",
    "<\uff5cAssistant\uff5c>",
)
DATE_CALL = re.compile(r"""\bstrftime_now\s*\(\s*(['"])(.*?)\1\s*\)""")
ANCHORS = ("\n", "|", "x")  # text that stands before a piece while it is tokenised, so that it is no text's start


TODAY = date(2025, 1, 1)


class Renderer:
    """Renders prompts and responses with one tokenizer.

    A conversation is rendered by the tokenizer's chat template, which alone decides on a BOS. A plain string is never
    templated and gets what the tokenizer itself puts in front of a text, once.

    Args:
        tokenizer: Any Hugging Face tokenizer that has an eos token.
        today: What a template that prints the date prints, the same on every day: so a run that is resumed on another
            day goes on with the same tokens.
        rendered: Prompts are plain text that a chat template made already: special tokens in it are special, and a
            response ends as the tokenizer's own template would end it.

    Attributes:
        stop_id: The token that ends a response in a conversation, where the tokenizer has a chat template, and the
            eos token otherwise.
        opening: How many of a templated prompt's last tokens open the assistant's turn; no truncation removes them.

    Raises:
        ValueError: The tokenizer has no eos token, or its template does not begin a conversation with the prompt.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, today: date = TODAY, *, rendered: bool = False) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError(f"{type(tokenizer).__name__} has no eos token: a response could never end")
        self.tokenizer, self.today, self.rendered = tokenizer, today, rendered
        self.stop_id = self.eos_id = int(tokenizer.eos_token_id)
        self.opening = 1
        added = tokenizer.added_tokens_decoder
        self._special_ids = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
        texts = {*tokenizer.all_special_tokens, *(token.content for token in added.values() if token.special)}
        self._special_texts = sorted(filter(None, texts), key=len, reverse=True)
        self._head = self._own_head()
        self._suffix = self._before_stop = ""
        self._last: tuple[Conversation, str] | None = None
        if tokenizer.chat_template is not None:
            self._read_template()

    @property
    def stop_tokens(self) -> frozenset[int]:
        """Every token that ends a response: one in conversations, one in plain text; often the same."""
        return frozenset({self.stop_id, self.eos_id})

    def mark_in(self, prompt: Conversation) -> str | None:
        """What in a prompt shows that a chat template made its text already, or None; None where that is declared."""
        if self.rendered:
            return None
        texts = [prompt] if isinstance(prompt, str) else [turn.content for turn in prompt]
        return next((mark for mark in MARKS for text in texts if mark in text), None)

    def prompt(self, row: str, prompt: Conversation) -> list[int]:
        """The prompt's ids, up to and with the opening of the assistant's turn.

        Raises:
            BadRow: The template refuses the conversation, or the text holds U+E0F0, which is used inside, or prompts
                are declared to be rendered and this one is a conversation.
            ValueError: A conversation, and the tokenizer has no chat template.
        """
        if self.rendered and not isinstance(prompt, str):
            raise BadRow(row, "prompt", "is a conversation, and rendered: true reads plain text (user_turn: false)")
        ids = self._head_of(prompt) + self._encode(self._opened(row, prompt))
        if not ids:
            raise BadRow(row, "prompt", "has no tokens")
        return ids

    def response(self, row: str, column: str, prompt: Conversation, prompt_ids: Sequence[int], text: str) -> list[int]:
        """The response's ids after ``prompt``, one stop token last.

        Args:
            row: For messages.
            column: For messages: which response of the row this is.
            prompt: What it answers.
            prompt_ids: Of that prompt, as ``prompt`` gave them.
            text: The response.

        Raises:
            BadRow: The template does not keep the prompt, or ends this turn unlike others, or the response has no
                tokens or a stop token inside.
        """
        if self.rendered:
            text = self._without_stop(text)
        guarded, start = self._guard(row, column, text), self._opened(row, prompt)
        if isinstance(prompt, str):
            body, stop_id = guarded, self.stop_id if self.rendered else self.eos_id
        else:
            messages = self._guarded(row, prompt)
            whole = self._template(row, [*messages, {"role": "assistant", "content": guarded}], opened=False)
            if not whole.startswith(start):
                raise BadRow(row, column, "the chat template does not keep the prompt in front of this response")
            if not whole.endswith(self._suffix):
                raise BadRow(row, column, "the chat template ends this response unlike others")
            body = whole[len(start) : len(whole) - len(self._suffix)] + self._before_stop
            stop_id = self.stop_id
        # Where tokenising both at once leaves the prompt alone, the rest is what follows it in ordinary text: a
        # tokenizer that puts a space before every text would put one here. Where it merges over the seam, it may not.
        joint = self._head_of(prompt) + self._encode(start + body)
        size = len(prompt_ids)
        ids = joint[size:] if joint[:size] == list(prompt_ids) else self._encode(body, first=False)
        if not ids:
            raise BadRow(row, column, "has no tokens")
        if stop_id in ids:
            raise BadRow(row, column, "holds the stop token inside")
        return [*ids, stop_id]

    def cut_prompt(self, ids: Sequence[int], size: int) -> list[int]:
        """The last ``size`` tokens of a prompt; a BOS that opens the document (and no later turn) is kept as well."""
        if len(ids) <= size:
            return list(ids)
        opens_document = ids[0] == self.tokenizer.bos_token_id and ids[0] not in ids[1:]
        if opens_document and size > self.opening:
            return [ids[0], *ids[len(ids) - size + 1 :]]
        return list(ids[len(ids) - size :])

    def _own_head(self) -> list[int]:
        """What the tokenizer puts in front of a plain text: usually a BOS or nothing."""
        plain = self._ids(PROBE)
        whole = list(self.tokenizer(PROBE).input_ids)
        for start in range(len(whole)):
            if whole[start : start + len(plain)] == plain:
                return whole[:start]
        return []

    def _read_template(self) -> None:
        """Learn from one harmless conversation what the template puts after a response; refuse one of no use."""
        asked = [{"role": "user", "content": "Hello"}]
        start = self._template("template", asked, opened=True)
        whole = self._template("template", [*asked, {"role": "assistant", "content": PROBE}], opened=False)
        if not whole.startswith(start):
            same = next((i for i, (a, b) in enumerate(zip(start, whole, strict=False)) if a != b), len(whole))
            raise ValueError(
                "the chat template does not begin a conversation with its own prompt, so no response can be told from "
                f"the prompt: with add_generation_prompt it goes on {start[same : same + 40]!r}, with the answer "
                f"{whole[same : same + 40]!r}"
            )
        if PROBE not in whole[len(start) :]:
            raise ValueError("the chat template leaves the assistant's answer out")
        self._suffix = whole[whole.rindex(PROBE) + len(PROBE) :]
        found = [(self._suffix.find(text), -len(text), text) for text in self._special_texts if text in self._suffix]
        if found:
            position, _, text = min(found)
            self.stop_id = int(self.tokenizer.convert_tokens_to_ids(text))
            self._before_stop = self._suffix[:position]
        bare = self._template("template", asked, opened=False)
        if start.startswith(bare):
            self.opening = max(1, len(self._encode(start)) - len(self._encode(bare)))

    def _template(self, row: str, messages: list[dict[str, str]], *, opened: bool) -> str:
        if self.tokenizer.chat_template is None:
            raise ValueError(
                f"row {row}: the prompt is a conversation, and the tokenizer has no chat template; set "
                f"data.init_args.template to {', '.join(TEMPLATES)} or a .jinja file"
            )
        try:
            text: Any = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=opened, chat_template=self._dated_template
            )
        except TemplateError as error:
            raise BadRow(row, "prompt", f"the chat template refuses it ({error})") from error
        return str(text)

    def _opened(self, row: str, prompt: Conversation) -> str:
        """The prompt's guarded text, as rendered, up to the opening of the assistant's turn."""
        if self._last is None or self._last[0] != prompt:  # a pair asks for its prompt three times
            if isinstance(prompt, str):
                self._last = prompt, prompt if self.rendered else self._guard(row, "prompt", prompt)
            else:
                self._last = prompt, self._template(row, self._guarded(row, prompt), opened=True)
        return self._last[1]

    def _head_of(self, prompt: Conversation) -> list[int]:
        if not isinstance(prompt, str):
            return []
        begun = self.rendered and bool(self.tokenizer.bos_token) and prompt.startswith(str(self.tokenizer.bos_token))
        return [] if begun else self._head

    def _without_stop(self, text: str) -> str:
        """A rendered response without what closes its turn."""
        stop = str(self.tokenizer.convert_ids_to_tokens(self.stop_id))
        bare = text.rstrip()
        return bare[: -len(stop)] if bare.endswith(stop) else text

    def _guarded(self, row: str, prompt: tuple[Message, ...]) -> list[dict[str, str]]:
        return [{"role": turn.role, "content": self._guard(row, "prompt", turn.content)} for turn in prompt]

    def _guard(self, row: str, column: str, text: str) -> str:
        """``text`` with a break inside every string that the tokenizer would read as a special token."""
        if BREAK in text:
            raise BadRow(row, column, "holds U+E0F0, which marks quoted special tokens")
        for special in self._special_texts:
            if special in text:
                text = text.replace(special, special[0] + BREAK + special[1:])
        return text

    def _encode(self, guarded: str, *, first: bool = True) -> list[int]:
        """Ids of a guarded text: the pieces between breaks one by one, and nothing added.

        ``first`` is False where other text stands before it, as it does before every piece but the first.
        """
        pieces = [piece for piece in guarded.split(BREAK) if piece]
        ids = [self._ids(piece) if first and not i else self._ids_within(piece) for i, piece in enumerate(pieces)]
        return [token for part in ids for token in part]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _ids_within(self, text: str) -> list[int]:
        """Ids of a text that other text stands before: without the space that some tokenizers put before all text."""
        if self._space_first:
            for anchor in ANCHORS:
                alone, whole = self._ids(anchor), self._ids(anchor + text)
                if whole[: len(alone)] == alone:
                    return whole[len(alone) :]
        return self._ids(text)

    @cached_property
    def _dated_template(self) -> str:
        """The chat template with ``today`` in the place of its calls for the date."""
        template = str(self.tokenizer.get_chat_template())
        return DATE_CALL.sub(lambda call: repr(self.today.strftime(call[2])), template)

    @cached_property
    def _space_first(self) -> bool:
        """Whether the tokenizer reads a text's start unlike the same text after other text."""
        alone = self._ids(ANCHORS[0])
        return self._ids(ANCHORS[0] + PROBE)[len(alone) :] != self._ids(PROBE)
