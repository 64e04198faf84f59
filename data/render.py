"""Token ids of a conversation and a response. The chat template is rendered once, and each text is tokenised once.

The prompt's ids do not depend on the response. A response's ids end with exactly one stop token: the one that the
template puts after an assistant's turn, or the tokenizer's eos if it puts none. Anything after it is removed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from data.conversation import Conversation
from data.schema import BadRow, Message
from data.templates import TEMPLATES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turn = dict[str, Any]  # a turn as a chat template reads it

# Inserted into the string of a special token in a text, so that the tokenizer does not read it as the special token.
BREAK = "\ue0f0"
PROBE = "zebra"
# Markers that chat templates write around turns: a text that contains one was probably rendered before
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
ANCHORS = ("\n", "|", "x")  # put before a piece while it is tokenised, so that the piece is not the start of the text


TODAY = date(2025, 1, 1)


class Renderer:
    """Renders prompts and responses with one tokenizer.

    The tokenizer's chat template renders a conversation; only the template decides on a BOS. A plain string is never
    templated: it gets the tokens that the tokenizer itself puts before a text, once.

    Args:
        tokenizer: Any Hugging Face tokenizer that has an eos token.
        today: The date that a template prints as today's date. A run resumed on another day then gets the same tokens.
        rendered: Prompts are plain text that a chat template has already produced. Special tokens in it are read as
            special tokens, and a response ends as the tokenizer's own template would end it.

    Attributes:
        stop_id: The token that ends a response in a conversation, if the tokenizer has a chat template; otherwise the
            eos token.
        opening: Number of tokens at the end of a templated prompt that open the assistant's turn; no truncation removes
            them.

    Raises:
        ValueError: The tokenizer has no eos token, or its template does not begin a conversation with the prompt.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, today: date = TODAY, *, rendered: bool = False) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError(f"{type(tokenizer).__name__} has no eos token, so a response could not end")
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
        """Every token that ends a response: one for conversations, one for plain text. They are often the same."""
        return frozenset({self.stop_id, self.eos_id})

    def mark_in(self, prompt: Conversation) -> str | None:
        """A marker that shows that a chat template produced this prompt; None without one, or with ``rendered``."""
        if self.rendered:
            return None
        texts = [prompt] if isinstance(prompt, str) else [turn.content for turn in prompt]
        return next((mark for mark in MARKS for text in texts if mark in text), None)

    def prompt(self, row: str, prompt: Conversation) -> list[int]:
        """The prompt's ids, including the opening of the assistant's turn.

        Raises:
            BadRow: The template refuses the conversation, or the text contains U+E0F0, which is used internally, or the
                prompt is a conversation while ``rendered`` is set.
            ValueError: The prompt is a conversation and the tokenizer has no chat template.
        """
        if self.rendered and not isinstance(prompt, str):
            raise BadRow(row, "prompt", "is a conversation, and rendered: true reads plain text (user_turn: false)")
        ids = self.head_of(prompt) + self._encode(self.opened(row, prompt))
        if not ids:
            raise BadRow(row, "prompt", "has no tokens")
        return ids

    def response(
        self, row: str, column: str, prompt: Conversation, prompt_ids: Sequence[int], text: str | Message
    ) -> list[int]:
        """The response's ids after ``prompt``, ending with one stop token.

        Args:
            row: Name of the row, for messages.
            column: Which response of the row this is, for messages.
            prompt: The prompt.
            prompt_ids: The ids that ``prompt`` returned for it.
            text: The response, or its turn if that has more than a text.

        Raises:
            BadRow: The template changes the prompt, or ends this turn differently from others, or the response has no
                tokens or contains a stop token.
        """
        start = self.opened(row, prompt)
        if isinstance(prompt, str):
            body = self.guard(row, column, self.unstopped(text if isinstance(text, str) else text.content))
        else:
            turn = Message("assistant", text) if isinstance(text, str) else text
            turns = [*self.guarded(row, prompt), *self.guarded(row, (turn,), column)]
            body = self.between(row, column, start, self.template(row, turns, opened=False))
        # If the prompt keeps its ids when both are tokenised together, the remaining ids are the response's, as in
        # running text (alone, some tokenizers would put a space before it). If tokens merge across the boundary, the
        # response is tokenised by itself.
        joint = self.head_of(prompt) + self._encode(start + body)
        size = len(prompt_ids)
        ids = joint[size:] if joint[:size] == list(prompt_ids) else self._encode(body, first=False)
        stop_id = self.stop_of(prompt)
        if not ids:
            raise BadRow(row, column, "has no tokens")
        if stop_id in ids:
            raise BadRow(row, column, "contains a stop token before its end")
        return [*ids, stop_id]

    def between(self, row: str, column: str, start: str, whole: str) -> str:
        """The part of a rendered conversation ``whole`` that is scored, without its stop token.

        It begins after ``start``, the rendered prompt. Raises BadRow as ``response`` does.
        """
        if not whole.startswith(start):
            raise BadRow(row, column, "the chat template changes the prompt before this response")
        if not whole.endswith(self._suffix):
            raise BadRow(row, column, "the chat template ends this response differently from others")
        return whole[len(start) : len(whole) - len(self._suffix)] + self._before_stop

    def stop_of(self, prompt: Conversation) -> int:
        """The token that ends a response to ``prompt``."""
        return self.eos_id if isinstance(prompt, str) and not self.rendered else self.stop_id

    def cut_prompt(self, ids: Sequence[int], size: int) -> Sequence[int]:
        """The last ``size`` tokens of a prompt. A BOS at its start is kept as well, unless later turns have one too."""
        if len(ids) <= size:
            return ids
        opens_document = ids[0] == self.tokenizer.bos_token_id and ids[0] not in ids[1:]
        if opens_document and size > self.opening:
            return [ids[0], *ids[len(ids) - size + 1 :]]
        return list(ids[len(ids) - size :])

    def _own_head(self) -> list[int]:
        """The tokens that the tokenizer puts before a plain text: usually a BOS or nothing."""
        plain = self._ids(PROBE)
        whole = list(self.tokenizer(PROBE).input_ids)
        for start in range(len(whole)):
            if whole[start : start + len(plain)] == plain:
                return whole[:start]
        return []

    def _read_template(self) -> None:
        """Finds the text that the template puts after a response, from one test conversation. Raises if it cannot."""
        asked = [{"role": "user", "content": "Hello"}]
        start = self.template("template", asked, opened=True)
        whole = self.template("template", [*asked, {"role": "assistant", "content": PROBE}], opened=False)
        if not whole.startswith(start):
            same = next((i for i, (a, b) in enumerate(zip(start, whole, strict=False)) if a != b), len(whole))
            raise ValueError(
                "the chat template does not begin a conversation with its own prompt, so responses cannot be separated "
                f"from it: with add_generation_prompt it continues with {start[same : same + 40]!r}, with the answer "
                f"with {whole[same : same + 40]!r}"
            )
        if PROBE not in whole[len(start) :]:
            raise ValueError("the chat template leaves the assistant's answer out")
        self._suffix = whole[whole.rindex(PROBE) + len(PROBE) :]
        found = [(self._suffix.find(text), -len(text), text) for text in self._special_texts if text in self._suffix]
        if found:
            position, _, text = min(found)
            self.stop_id = int(self.tokenizer.convert_tokens_to_ids(text))
            self._before_stop = self._suffix[:position]
        bare = self.template("template", asked, opened=False)
        if start.startswith(bare):
            self.opening = max(1, len(self._encode(start)) - len(self._encode(bare)))

    def template(self, row: str, messages: list[Turn], *, opened: bool) -> str:
        """A conversation of guarded texts, rendered; ``opened`` adds the opening of the assistant's turn.

        Raises:
            BadRow: The template refuses the conversation.
            ValueError: The tokenizer has no chat template.
        """
        if self.tokenizer.chat_template is None:
            raise ValueError(
                f"row {row}: the prompt is a conversation, and the tokenizer has no chat template; set "
                f"data.init_args.template to {', '.join(TEMPLATES)} or a .jinja file"
            )
        try:
            (text,) = self.render([messages], opened=opened)
        except TemplateError as error:
            raise BadRow(row, "prompt", f"the chat template refuses it ({error})") from error
        return text

    def render(self, conversations: list[list[Turn]], *, opened: bool) -> list[str]:
        """Conversations of guarded texts, rendered in one call. Raises jinja2's TemplateError if one is refused."""
        if any(turns[0]["role"] == "tools" for turns in conversations):
            return [self._rendered(turns, opened) for turns in conversations]
        texts: Any = self.tokenizer.apply_chat_template(
            conversations, tokenize=False, add_generation_prompt=opened, chat_template=self.dated_template
        )
        return list(texts)

    def _rendered(self, turns: list[Turn], opened: bool) -> str:
        """One conversation, whose first entry may be its tools."""
        tools = json.loads(turns[0]["content"]) if turns[0]["role"] == "tools" else None
        text: Any = self.tokenizer.apply_chat_template(
            turns if tools is None else turns[1:],
            tools=tools,
            tokenize=False,
            add_generation_prompt=opened,
            chat_template=self.dated_template,
        )
        return str(text)

    def opened(self, row: str, prompt: Conversation) -> str:
        """The prompt's guarded text, rendered, up to the opening of the assistant's turn."""
        last = self._last  # read once: another thread may render too
        if last is None or last[0] != prompt:  # a pair needs its prompt three times
            if isinstance(prompt, str):
                last = prompt, prompt if self.rendered else self.guard(row, "prompt", prompt)
            else:
                last = prompt, self.template(row, self.guarded(row, prompt), opened=True)
            self._last = last
        return last[1]

    def head_of(self, prompt: Conversation) -> list[int]:
        """The tokens that the tokenizer itself puts before ``prompt``; none before a conversation."""
        if not isinstance(prompt, str):
            return []
        begun = self.rendered and bool(self.tokenizer.bos_token) and prompt.startswith(str(self.tokenizer.bos_token))
        return [] if begun else self._head

    def unstopped(self, text: str) -> str:
        """A response to a plain prompt; with ``rendered``, without the text that closes its turn."""
        if not self.rendered:
            return text
        stop = str(self.tokenizer.convert_ids_to_tokens(self.stop_id))
        bare = text.rstrip()
        return bare[: -len(stop)] if bare.endswith(stop) else text

    def guarded(self, row: str, turns: tuple[Message, ...], column: str = "prompt") -> list[Turn]:
        """Turns as a chat template reads them, with guarded texts."""
        return [
            {
                "role": turn.role,
                "content": self.guard(row, column, turn.content),
                **(json.loads(self.guard(row, column, turn.fields)) if turn.fields else {}),
            }
            for turn in turns
        ]

    def guard(self, row: str, column: str, text: str) -> str:
        """``text`` with a break inserted into every string that the tokenizer would read as a special token."""
        if BREAK in text:
            raise BadRow(row, column, "holds U+E0F0, which marks quoted special tokens")
        for special in self._special_texts:
            if special in text:
                text = text.replace(special, special[0] + BREAK + special[1:])
        return text

    def _encode(self, guarded: str, *, first: bool = True) -> list[int]:
        """Ids of a guarded text. The pieces between breaks are tokenised one by one; nothing is added.

        ``first`` is False if other text precedes it; every piece but the first is treated so.
        """
        pieces = [piece for piece in guarded.split(BREAK) if piece]
        ids = [self._ids(piece) if first and not i else self._ids_within(piece) for i, piece in enumerate(pieces)]
        return [token for part in ids for token in part]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _ids_within(self, text: str) -> list[int]:
        """Ids of a text that follows other text: without the space that some tokenizers put before every text."""
        if self._space_first:
            for anchor in ANCHORS:
                alone, whole = self._ids(anchor), self._ids(anchor + text)
                if whole[: len(alone)] == alone:
                    return whole[len(alone) :]
        return self._ids(text)

    @cached_property
    def dated_template(self) -> str:
        """The chat template with its calls for the current date replaced by ``today``."""
        template = str(self.tokenizer.get_chat_template())
        return DATE_CALL.sub(lambda call: repr(self.today.strftime(call[2])), template)

    @cached_property
    def _space_first(self) -> bool:
        """Whether the tokenizer reads a text differently at the start and after other text."""
        alone = self._ids(ANCHORS[0])
        return self._ids(ANCHORS[0] + PROBE)[len(alone) :] != self._ids(PROBE)
