"""Conversations as lists of turns, with the keys of TRL (role, content) or ShareGPT (from, value).

The content of a turn may be a list of text parts. A turn may call tools, and a turn of role ``tool`` may answer it.
Images and other parts are refused.
"""

import json
from collections.abc import Mapping
from typing import Any

from data.conversation import plain_text
from data.schema import BadRow, Message, check_text

ROLES = {role: role for role in ("system", "user", "assistant", "tool")} | {"human": "user", "gpt": "assistant"}
FIELDS = ("tool_calls", "tool_call_id", "name")  # other keys of a turn that a chat template may read


def prompt_of(
    row: str,
    column: str,
    value: object,
    user_turn: bool,
    record: Mapping[str, Any] | None = None,
    tools: str | None = None,
) -> tuple[Message, ...] | str:
    """A prompt from a list of turns or a text (a user's turn with ``user_turn``, else raw). Raises BadRow otherwise.

    Column ``tools`` of ``record`` may hold the tools that the assistant may call.
    """
    if isinstance(value, list | dict):
        return with_tools(row, messages_of(row, column, value), record, tools)
    text = check_text(row, column, value)
    return with_tools(row, (Message("user", text),) if user_turn else text, record, tools)


def with_tools(
    row: str, prompt: tuple[Message, ...] | str, record: Mapping[str, Any] | None, column: str | None
) -> tuple[Message, ...] | str:
    """``prompt`` with the tools of ``record``'s column, if it has any. Raises BadRow if they are unusable.

    Tools are a list of functions (JSON schemas), or its JSON text, as TRL stores them.
    """
    value = None if record is None or column is None else record.get(column)
    if value is None or value in ("", []):
        return prompt
    name = str(column)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise BadRow(row, name, "is not JSON") from None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise BadRow(row, name, "is not a list of functions")
    if not value:
        return prompt
    if isinstance(prompt, str):
        raise BadRow(row, name, "needs a prompt of turns: a plain text names no tools")
    return Message("tools", _json(row, name, value)), *prompt


def messages_of(row: str, column: str, value: object) -> tuple[Message, ...]:
    """``value`` (a list of turns, or one turn) as messages. Raises BadRow otherwise."""
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list):
        raise BadRow(row, column, "is null or missing" if value is None else f"is {type(value).__name__}, not messages")
    if not turns:
        raise BadRow(row, column, "is empty")
    return tuple(_message(row, f"{column}[{i}]", turn) for i, turn in enumerate(turns))


def response_of(row: str, column: str, turns: tuple[Message, ...]) -> tuple[str, tuple[Message, ...]]:
    """A response's text and its turns; no turns if it is the text of one. Raises BadRow if the text is too long."""
    if len(turns) == 1 and not turns[0].fields:
        return check_text(row, column, turns[0].content), ()
    return check_text(row, column, plain_text(turns)), turns


def _message(row: str, column: str, turn: object) -> Message:
    if not isinstance(turn, dict):
        raise BadRow(row, column, f"is {type(turn).__name__}, not a turn")
    role_key, text_key = ("role", "content") if "role" in turn else ("from", "value")
    role = check_text(row, f"{column}.{role_key}", turn.get(role_key))
    if role == "tools" and column.endswith("[0]"):  # as `annotate` writes a prompt's tools
        return Message(role, check_text(row, f"{column}.{text_key}", turn.get(text_key)))
    if role not in ROLES:
        raise BadRow(row, f"{column}.{role_key}", f"is not one of {', '.join(ROLES)}")
    fields = {key: turn[key] for key in FIELDS if turn.get(key)}
    content = _text(row, f"{column}.{text_key}", turn)
    if content in (None, "") and (role == "tool" or "tool_calls" in fields):
        content = ""
    else:
        content = check_text(row, f"{column}.{text_key}", content)
    if "tool_calls" in fields:
        _check_calls(row, f"{column}.tool_calls", ROLES[role], fields["tool_calls"])
    return Message(ROLES[role], content, _json(row, column, fields) if fields else "")


def _check_calls(row: str, column: str, role: str, calls: object) -> None:
    if role != "assistant":
        raise BadRow(row, column, "belongs to a turn of the assistant")
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise BadRow(row, column, "is not a list of calls")


def _json(row: str, column: str, value: object) -> str:
    """``value`` as JSON text in its own order, without the nulls that a table adds. Raises BadRow as ``check_text``."""
    try:
        text = json.dumps(_without_nulls(value), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise BadRow(row, column, "holds a value that JSON lacks") from None
    return check_text(row, column, text)


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _text(row: str, column: str, turn: dict[str, object]) -> object:
    """A turn's content; a list of text parts is joined into one text."""
    content = turn.get(column.rpartition(".")[2])
    if not isinstance(content, list):
        return content
    texts = []
    for i, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text":
            raise BadRow(row, f"{column}[{i}]", "is not a part of type text, the only one that is supported")
        texts.append(check_text(row, f"{column}[{i}].text", part.get("text")))
    return "".join(texts)
