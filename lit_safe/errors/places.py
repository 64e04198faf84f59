"""Finds where a setting was typed: a flag, or a line of a YAML file on the command line."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import yaml

from lit_safe.errors.message import Message
from lit_safe.errors.names import nearest_files
from lit_safe.installation import find_config, root

CONFIG = ("-c", "--config")
STRUCTURE = ("init_args", "dict_kwargs")
"""Keys of a class in YAML that are left out in a flag."""

Keys = tuple[str, ...]


class Setting(NamedTuple):
    """A key, its value (None if it is a mapping or list) and the place where it was typed."""

    keys: Keys
    value: str | None
    place: str


class RepeatedKeyError(yaml.MarkedYAMLError):
    """A mapping in a YAML file has the same key twice."""


class Words:
    """The words of a command line.

    Args:
        words: The words after the program's name.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)

    def options(self) -> list[tuple[str, str | None]]:
        """(flag, value) of each option. The value is None if none follows."""
        found: list[tuple[str, str | None]] = []
        for k, word in enumerate(self.words):
            if not word.startswith("-") or _is_number(word):
                continue
            flag, equals, value = word.partition("=")
            following = self.words[k + 1] if k + 1 < len(self.words) else "--"
            typed = value if equals else None if following.startswith("--") else following
            found.append((flag, typed))
        return found

    def files(self) -> list[tuple[Keys, str]]:
        """(key, path) of each YAML file. The key is () for ``--config``."""
        return [
            (() if flag in CONFIG else keys_of(flag), find_config(value))
            for flag, value in self.options()
            if value and (flag in CONFIG or value.endswith((".yaml", ".yml")))
        ]

    def settings(self) -> list[Setting]:
        """All typed settings. Later settings override earlier ones."""
        found: list[Setting] = []
        for keys, path in self.files():
            found += _settings(Path(path), keys)
        found += [Setting(keys_of(flag), value, flag) for flag, value in self.options() if flag not in CONFIG]
        return found

    def find(self, keys: Sequence[str], value: str | None = None) -> str:
        """The place of a key (without ``init_args``), preferably where it has ``value``. "" if not found."""
        same = [s for s in self.settings() if s.keys == tuple(keys)]
        exact = [s for s in same if value is not None and s.value == value]
        return (exact or same)[-1].place if same else ""

    def mentioned(self, text: str, names: Sequence[str] | None = None) -> str:
        """The place of the setting whose last key and value are both in ``text``; "" if there is none.

        Args:
            text: A message.
            names: If given, only these keys are considered, and the value need not be in the text.
        """
        said = set(re.findall(r"[A-Za-z_]\w*", text))
        known = [s for s in self.settings() if s.keys and s.keys[-1] in said]
        exact = [s for s in known if s.value and _says(text, s.value)]
        loose = [] if names is None else [s for s in known if s.keys[-1] in names]
        return (exact or loose)[-1].place if exact or loose else ""

    def only_with_value_in(self, text: str) -> str:
        """The place of the only setting whose value (of at least two characters) is in ``text``; "" if not unique."""
        places = {s.place for s in self.settings() if s.value and len(s.value) > 1 and _says(text, s.value)}
        return places.pop() if len(places) == 1 else ""

    def of_value(self, value: str) -> str:
        """The place of the setting with this value; "" if there is none."""
        same = [s for s in self.settings() if s.value == value]
        return same[-1].place if same else ""

    def empty_groups(self) -> list[str]:
        """The top-level keys of the files after ``--config`` that have no value, or an empty mapping."""
        read = [yaml.safe_load(Path(path).read_text(encoding="utf-8")) for keys, path in self.files() if not keys]
        items = [item for content in read if isinstance(content, dict) for item in content.items()]
        return [str(key).rstrip("+").partition(".")[0] for key, value in items if value in (None, {})]

    def unreadable(self) -> Message | None:
        """The message about the first YAML file that is not a readable mapping."""
        for keys, path in self.files():
            if keys and not Path(path).exists():
                continue  # the value of an option; the parser's message says more about it
            message = check_file(path)
            if message is not None:
                return message
        return None


def check_file(path: str) -> Message | None:
    """The message about a YAML file of settings. None if the file is correct."""
    where = shown(path)
    near = " or ".join(nearest_files(path)) or "`lit-safe configs` lists the shipped files"
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        refuse_repeated_keys(text)
    except FileNotFoundError:
        return Message(f"there is no file {where}", instead=near)
    except IsADirectoryError:
        there = [shown(file) for file in sorted(Path(path).rglob("*.yaml"))[:8]]
        return Message(f"{where} is a folder, not a YAML file", instead=", ".join(there))
    except UnicodeDecodeError as error:
        return Message(f"{where} is not UTF-8 text (byte {error.start})", instead="save the file as UTF-8")
    except OSError as error:
        return Message(f"{where} cannot be read: {error.strerror}")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        problem = str(error.problem or error.context)
        if isinstance(error, RepeatedKeyError):
            return Message(f"{where}: {problem}", place, "all its parts under one key")
        return Message(f"{where} is not YAML: {problem}", place, _yaml_advice(text, mark))
    except yaml.YAMLError as error:
        return Message(f"{where} is not YAML: {' '.join(str(error).split())}")
    if isinstance(content, dict):
        return None
    seen = "is empty" if content is None else f"holds {_kind(content)}"
    return Message(f"{where} {seen}, not keys with values", instead="keys such as `trainer: {max_epochs: 1}`")


def refuse_repeated_keys(text: str) -> None:
    """Refuse YAML in which a mapping has a key twice: the second would silently replace the first.

    Raises:
        RepeatedKeyError: At the second place.
    """
    waiting = [yaml.compose(text, Loader=yaml.SafeLoader)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            seen: set[object] = set()
            for key, value in node.value:
                name = key.value if isinstance(key, yaml.ScalarNode) else None
                if name in seen:
                    raise RepeatedKeyError(problem=f"the key {name!r} appears twice", problem_mark=key.start_mark)
                if name is not None:
                    seen.add(name)
                waiting.append(value)


def shown(path: str | Path) -> str:
    """A path as a user types it: relative to the working directory, or ``configs/...`` for a shipped file."""
    whole = Path(path).resolve()
    for folder in (Path.cwd(), root()):
        if whole.is_relative_to(folder.resolve()):
            return whole.relative_to(folder.resolve()).as_posix()
    return str(path)


def _settings(path: Path, keys: Keys, depth: int = 0) -> list[Setting]:
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError):
        return []
    return list(_walk(node, path, keys, depth)) if node is not None else []


def _walk(node: yaml.Node, path: Path, keys: Keys, depth: int) -> Iterator[Setting]:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            if isinstance(item, yaml.ScalarNode):
                yield Setting(keys, str(item.value), _line(path, item, keys))
            yield from _walk(item, path, keys, depth)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = str(key.value).rstrip("+")
            inner = keys if name in STRUCTURE else (*keys, *name.split("."))
            if name not in STRUCTURE:
                scalar = str(value.value) if isinstance(value, yaml.ScalarNode) else None
                yield Setting(inner, scalar, _line(path, key, inner))
            yield from _walk(value, path, inner, depth)
    elif isinstance(node, yaml.ScalarNode) and depth < 8 and str(node.value).endswith((".yaml", ".yml")):
        named = path.parent / node.value
        yield from _settings(named if named.is_file() else Path(find_config(node.value)), keys, depth + 1)


def _line(path: Path, node: yaml.Node, keys: Keys) -> str:
    return f"{shown(path)}, line {node.start_mark.line + 1}, key {'.'.join(keys)}"


def keys_of(flag: str) -> Keys:
    """The keys that a flag names: ``("model", "objective", "beta")``."""
    return tuple(part for part in flag.lstrip("-").rstrip("+").split(".") if part not in STRUCTURE)


def _says(text: str, value: str) -> bool:
    texts = {value, value.strip("'\"")}
    with suppress(ValueError):
        texts |= {repr(float(value)), f"{float(value):g}"}
    return any(re.search(rf"(?<![\w.]){re.escape(t)}(?![\w]|\.\d)", text) for t in texts if t)


def _is_number(word: str) -> bool:
    return re.fullmatch(r"-[\d.]+(e-?\d+)?", word) is not None


def _kind(content: object) -> str:
    return "a list" if isinstance(content, list) else "a text" if isinstance(content, str) else "one value"


def _yaml_advice(text: str, mark: "yaml.Mark | None") -> str:
    lines = text.splitlines()
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    if "\t" in line:
        return "spaces in place of tabs"
    return "close every bracket and quote, one `key: value` a line"
