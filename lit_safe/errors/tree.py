"""Parses jsonargparse's nested error texts: finds the key and class of the innermost problem."""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

_KEY = re.compile(r"""Parser key "([^"]+)"(?: element \d+)?:\s*(.*)""")
_CLASS = re.compile(r"Problem with given class_path '([^']+)':\s*(.*)")
_NOISE = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: |Errors:$|Given value type: |Given value: "
)
_CALLABLE = re.compile(
    r"Type (?:\S+\[.*?\]|<class '[\w.]*?(?P<kind>\w+)'>) expects a function or a callable class: (?P<rest>.*)"
)
_NOT_CALLABLE = re.compile(r"Expected '([^']+)' to be a class that instantiates into")
_NULL = "Expected a <class 'NoneType'>"
_LOOP = "Config file loop detected: "
_PATH = re.compile(r"Expected a path but (.*) either not accessible or invalid")


@dataclass(frozen=True)
class Problem:
    """The innermost problem of a message.

    Args:
        keys: The key, outermost part first: ``("model", "objective", "beta")``.
        class_path: The class whose settings were being read, if any.
        texts: The errors; if a value fits none of several types, one error per type.
        value: The typed value, if the message contains it.
        path: Whether the value was also tried as a file.
    """

    keys: tuple[str, ...]
    class_path: str | None
    texts: tuple[str, ...]
    value: str | None
    path: bool


def read(message: str) -> Problem | None:
    """The innermost problem of a message. None if the message does not have this structure."""
    stack: list[tuple[int, str, str]] = []  # (indentation, kind, name)
    leaves: list[tuple[list[tuple[int, str, str]], str]] = []
    path = False
    for raw in message.splitlines():
        line = raw.strip()
        indent = len(raw) - len(raw.lstrip())
        while line.startswith("- "):
            line = line[2:].strip()
        if not line:
            continue
        if _PATH.match(line):
            path = True
            continue
        if _NOISE.match(line) or line.startswith(_NULL):
            continue
        while stack and stack[-1][0] >= indent:
            stack.pop()
        if found := _CALLABLE.match(line):  # jsonargparse's message for classes with a __call__
            line = found["rest"]
            if other := _NOT_CALLABLE.match(line):
                line = f"Import path {other[1]} does not implement protocol {found['kind']}"
            elif typed := re.search(r"\. Got value: (?:Namespace\(class_path=')?([A-Za-z_]\w*\.[\w.]+)", line):
                stack.append((indent, "class", typed[1]))
        for pattern, kind in ((_KEY, "key"), (_CLASS, "class")):
            if found := pattern.match(line):
                stack.append((indent, kind, found[1]))
                line = found[2]
        if line and not _NOISE.match(line):
            leaves.append(([*stack], line))
    leaves = [(where, text) for where, text in leaves if where]
    if not leaves:
        return None
    deepest = max(len(where) for where, _ in leaves)
    chosen = [(where, text) for where, text in leaves if len(where) == deepest]
    where = chosen[0][0]
    keys = tuple(part for _, kind, name in where if kind == "key" for part in name.split(".") if part != "init_args")
    classes = [name for _, kind, name in where if kind == "class"]
    texts = tuple(dict.fromkeys(_without_value(text) for _, text in chosen))
    return Problem(keys, classes[-1] if classes else None, texts, _value(message, chosen), path)


def without_retries(message: str, error: BaseException | None) -> str:
    """The message of ``error`` with the mistake in a YAML file in place of jsonargparse's second reading of the file.

    If a value in a YAML file is wrong, jsonargparse reads the file again while it is still reading it. It then reports
    a loop of files, and the mistake is only the context of that exception.

    Args:
        message: jsonargparse's message.
        error: Its exception, if it is known.
    """
    for retry in _causes(error):
        mistake = retry.__context__
        if not (str(retry).startswith(_LOOP) and isinstance(mistake, ValueError)):
            continue
        lines = []
        for line in message.splitlines():
            before, found, _ = line.partition(str(retry))
            indent = " " * (len(before) - len(before.lstrip()) + 2)
            lines += [before, textwrap.indent(str(mistake), indent)] if found else [line]
        message = "\n".join(lines)
    return message


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception, and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _value(message: str, leaves: list[tuple[list[tuple[int, str, str]], str]]) -> str | None:
    for _, text in leaves:
        if found := re.search(r"\. Got value: (.*)", text):
            return found[1].partition(". Got value: ")[0]
    given = re.findall(r"Given value: (.*)", message)
    for value in given:  # the innermost comes first
        if nested := re.match(r"NestedArg\(key='[^']*', val=(.*)\)", value):
            return nested[1].strip("'\"")
        return str(value).partition(". Got value: ")[0]
    return None


def _without_value(text: str) -> str:
    return text.partition(". Got value: ")[0]
