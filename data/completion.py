"""The ids of a response, which may have several turns. The assistant's turns are scored, the others are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from data.conversation import Conversation
from data.render import Renderer
from data.schema import BadRow, Message


class Completion(NamedTuple):
    """Token ids after a prompt. ``unscored`` has the start and the end of every part that is not scored."""

    ids: Sequence[int]
    unscored: Sequence[int]

    def cut(self, size: int) -> Completion:
        """At most ``size`` tokens. Nothing unscored is left at the end."""
        if len(self.ids) <= size:
            return self
        for start, end in zip(self.unscored[::2], self.unscored[1::2], strict=True):
            if start < size <= end:
                size = start
        return Completion(self.ids[:size], [place for place in self.unscored if place < size])


def completion(
    renderer: Renderer,
    row: str,
    column: str,
    prompt: Conversation,
    prompt_ids: Sequence[int],
    text: str,
    turns: Sequence[Message] = (),
) -> Completion:
    """The ids of a response: of ``text``, or of its ``turns`` if it has any.

    Each turn of the assistant has the ids of a response to all that stands before it, so it ends with one stop token.
    The ids between two of them are those of the next turn's prompt.

    Args:
        renderer: Renders single turns.
        row: Name of the row, for messages.
        column: Which response of the row this is, for messages.
        prompt: The prompt.
        prompt_ids: The ids that ``renderer.prompt`` returned for it.
        text: The response.
        turns: Its turns, the first and the last of them the assistant's; none if it is one text.

    Raises:
        BadRow: A turn cannot be rendered, or the chat template renders an earlier turn differently once another
            follows, so that one sequence cannot hold both.
    """
    if not turns:
        return Completion(renderer.response(row, column, prompt, prompt_ids, text), [])
    if isinstance(prompt, str):
        raise BadRow(row, column, "has turns, and its prompt is plain text")
    read, ids, unscored = list(prompt_ids), list[int](), list[int]()
    for number, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        before = (*prompt, *turns[:number])
        context = renderer.prompt(row, before) if number else read
        if context[: len(read)] != read:
            raise BadRow(
                row, column, "has a turn that the chat template changes, or does not end, once another follows"
            )
        if len(context) > len(read):
            unscored += [len(ids), len(ids) + len(context) - len(read)]
        response = renderer.response(row, column, before, context, turn)
        ids += [*context[len(read) :], *response]
        read = [*context, *response]
    return Completion(ids, unscored)
