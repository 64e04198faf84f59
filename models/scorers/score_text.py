"""The token ids that a score model reads: a prompt and a response, ended by the stop token."""

from __future__ import annotations

from typing import Any

import transformers
from jinja2 import TemplateError

from models.scorers.quoting import Quoting

PROBE = "zebra"


class ScoreText:
    """Renders a prompt as a user's turn and a response as the assistant's turn, up to and with the stop token.

    The ids equal those on which score models train (``data/render.py``); a test compares them. The response's last id
    is the stop token. The score of a sequence is read there.

    Args:
        tokenizer: The scorer's tokenizer.
        template: Chat template that replaces the tokenizer's own; None takes the tokenizer's. Without any, prompt and
            response are one plain text with the tokenizer's own first tokens, ended by its eos token.
        max_length: Maximum number of tokens. A prompt is cut at its start. A response that is too long by itself is
            cut at its end and has no stop token then.

    Raises:
        ValueError: If the tokenizer has no eos token, or the template does not begin a conversation with its prompt.
    """

    def __init__(
        self, tokenizer: transformers.PreTrainedTokenizerBase, template: str | None = None, max_length: int = 512
    ) -> None:
        self.tokenizer = tokenizer
        self.template = tokenizer.chat_template if template is None else template
        self.max_length = max_length
        if tokenizer.eos_token_id is None:
            raise ValueError(f"{type(tokenizer).__name__} has no eos token, so a response could not end")
        self.stop_id = int(tokenizer.eos_token_id)
        self._quoting = Quoting(tokenizer)
        self._after = self._before_stop = ""
        if self.template is not None:
            self._read_ending()

    def ids(self, prompt: str, response: str) -> list[int]:
        """The ids of one text.

        Raises:
            ValueError: If the template refuses the prompt.
        """
        prompt_ids, response_ids = self.parts(prompt, response)
        return [*prompt_ids, *response_ids]

    def parts(self, prompt: str, response: str) -> tuple[list[int], list[int]]:
        """The ids of the prompt and of the response with its stop token.

        Raises:
            ValueError: If the template refuses the prompt.
        """
        quoted = self._quoting.quoted(response)
        if self.template is None:
            start, body, head = self._quoting.quoted(prompt), quoted, self._own_head()
        else:
            turns = [{"role": "user", "content": self._quoting.quoted(prompt)}]
            start = self._render(turns, opened=True)
            whole = self._render([*turns, {"role": "assistant", "content": quoted}], opened=False)
            if whole.startswith(start) and whole.endswith(self._after):
                body = whole[len(start) : len(whole) - len(self._after)] + self._before_stop
            else:
                body = quoted + self._before_stop
            head = []
        prompt_ids = [*head, *self._quoting.ids(start)]
        joint = [*head, *self._quoting.ids(start + body)]
        # as in running text; alone only if tokens merge across the border
        whole_prompt = joint[: len(prompt_ids)] == prompt_ids
        answer = joint[len(prompt_ids) :] if whole_prompt else self._quoting.ids(body)
        answer = [*answer, self.stop_id][: self.max_length - 1]
        room = self.max_length - len(answer)
        return self._cut(prompt_ids, room), answer

    def _cut(self, ids: list[int], size: int) -> list[int]:
        """The last ``size`` tokens of a prompt, with its BOS if there is one."""
        if len(ids) <= size:
            return ids
        bos = self.tokenizer.bos_token_id
        keeps = size > 1 and ids[0] == bos and ids[0] not in ids[1:]
        return [ids[0], *ids[len(ids) - size + 1 :]] if keeps else ids[len(ids) - size :]

    def _read_ending(self) -> None:
        """Find the text after a response, and the stop token in it, from a test conversation."""
        turns = [{"role": "user", "content": "Hello"}]
        start = self._render(turns, opened=True)
        whole = self._render([*turns, {"role": "assistant", "content": PROBE}], opened=False)
        if not whole.startswith(start) or PROBE not in whole[len(start) :]:
            raise ValueError("the chat template does not begin a conversation with its own prompt: name another one")
        self._after = whole[whole.rindex(PROBE) + len(PROBE) :]
        found = [(self._after.find(text), -len(text), text) for text in self._quoting.specials if text in self._after]
        if found:
            position, _, text = min(found)
            self.stop_id = int(self.tokenizer.convert_tokens_to_ids(text))
            self._before_stop = self._after[:position]

    def _render(self, turns: list[dict[str, str]], *, opened: bool) -> str:
        try:
            text: Any = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=opened, chat_template=self.template
            )
        except TemplateError as error:
            raise ValueError(f"the scorer's chat template refuses a prompt: {error}") from None
        return str(text)

    def _own_head(self) -> list[int]:
        """The tokens that the tokenizer puts before a plain text: usually a BOS or nothing."""
        plain, whole = self._ids(PROBE), list(self.tokenizer(PROBE).input_ids)
        for start in range(len(whole)):
            if whole[start : start + len(plain)] == plain:
                return whole[:start]
        return []

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)
