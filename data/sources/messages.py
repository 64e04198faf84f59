"""Conversations as lists of turns, with the keys of TRL (role, content) or ShareGPT (from, value).

The content of a turn may be a list of text parts. Images, tool calls and other parts are refused.
"""

from data.schema import BadRow, Message, check_text

ROLES = {role: role for role in ("system", "user", "assistant", "tool")} | {"human": "user", "gpt": "assistant"}


def prompt_of(row: str, column: str, value: object, user_turn: bool) -> tuple[Message, ...] | str:
    """A prompt from a list of turns or a text (a user's turn with ``user_turn``, else raw). Raises BadRow otherwise."""
    if isinstance(value, list | dict):
        return messages_of(row, column, value)
    text = check_text(row, column, value)
    return (Message("user", text),) if user_turn else text


def messages_of(row: str, column: str, value: object) -> tuple[Message, ...]:
    """``value`` (a list of turns, or one turn) as messages. Raises BadRow otherwise."""
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list):
        raise BadRow(row, column, "is null or missing" if value is None else f"is {type(value).__name__}, not messages")
    if not turns:
        raise BadRow(row, column, "is empty")
    return tuple(_message(row, f"{column}[{i}]", turn) for i, turn in enumerate(turns))


def _message(row: str, column: str, turn: object) -> Message:
    if not isinstance(turn, dict):
        raise BadRow(row, column, f"is {type(turn).__name__}, not a turn")
    role_key, text_key = ("role", "content") if "role" in turn else ("from", "value")
    role = check_text(row, f"{column}.{role_key}", turn.get(role_key))
    if role not in ROLES:
        raise BadRow(row, f"{column}.{role_key}", f"is not one of {', '.join(ROLES)}")
    if turn.get("tool_calls"):
        raise BadRow(row, f"{column}.tool_calls", "is not supported: a turn is text")
    return Message(ROLES[role], check_text(row, f"{column}.{text_key}", _text(row, f"{column}.{text_key}", turn)))


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
