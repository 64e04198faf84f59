"""Conversations as text that a person, or a scorer of text, reads."""

from __future__ import annotations

import json

from data.schema import Message
from data.split import UNSPOKEN

Conversation = tuple[Message, ...] | str


def plain_text(conversation: Conversation) -> str:
    """A conversation as plain text: a single turn as it is, several turns with their roles named."""
    if isinstance(conversation, str):
        return conversation
    turns = [turn for turn in conversation if turn.role not in UNSPOKEN]
    if len(turns) == 1:
        return spoken(turns[0])
    return "\n\n".join(f"{turn.role}: {spoken(turn)}" for turn in turns)


def spoken(turn: Message) -> str:
    """A turn's text, followed by the tools that it calls as JSON, if it calls any."""
    calls = json.loads(turn.fields).get("tool_calls") if turn.fields else None
    return "\n".join(filter(None, [turn.content, json.dumps(calls, ensure_ascii=False) if calls else ""]))
