"""Messages about values and class paths that a setting does not accept."""

import ast
import re
from pathlib import Path

from lit_safe.errors import names
from lit_safe.errors.message import Message
from lit_safe.errors.places import Words, shown
from lit_safe.errors.tree import Problem

WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "null",
    "dict": "keys with values",
    "list": "a list",
}
_MODULE = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_IMPORT = re.compile(r"No module named '([\w.]+)'")
_NEEDED = re.compile(r"Import path (?:(\S+) )?does not (?:correspond to a subclass of|implement protocol) (\w+)")
_NO_PATH = re.compile(r"(?:Expected a dot import path string|Unexpected import path format): (.*)")


def class_path_message(problem: Problem, words: Words) -> Message | None:
    """The message about a class path or the file that should contain one. None for other problems."""
    for text in problem.texts:
        if found := _NO_PATH.match(text):
            others = [t for t in problem.texts if t.startswith("Expected a ") and not _NO_PATH.match(t)]
            if not others or (problem.keys and names.nearest_classes(found[1], problem.keys[-1])):
                return _neither(found[1], problem, words)
        elif found := _NEEDED.match(text):
            typed = found[1] or problem.value or problem.class_path or ""
            what = f"{typed} is no {found[2]}, which {_name(problem)} needs"
            return Message(what, _place(problem, typed, words), _group(problem, typed, like=False))
        elif (module := _MODULE.match(text)) or _IMPORT.match(text):
            return _cannot_import(problem, text, f"{module[1]}.{module[2]}" if module else "", words)
    return None


def value_message(problem: Problem, words: Words) -> Message:
    """The message about a value of the wrong type or outside its choices."""
    value = problem.value
    place = _place(problem, value, words)
    types = [text.removeprefix("Expected a ") for text in problem.texts if text.startswith("Expected a ")]
    types = [text for text in types if not text.startswith("dot import path")]
    if not types:
        return Message(f"{_name(problem)}: {' '.join(problem.texts)}", place)
    choices = list(dict.fromkeys(choice for text in types for choice in _choices(text)))
    plain = [] if choices else list(dict.fromkeys(_type_in_words(text) for text in types))
    instead = " or ".join(plain) if plain else f"one of {', '.join(choices)}"
    near = names.nearest(str(value), choices, 1)
    return Message(
        f"{value!r} is not a value of {_name(problem)}", place, f"{near[0]} ({instead})" if near else instead
    )


def _neither(value: str, problem: Problem, words: Words) -> Message:
    """The message about a word that is neither a file nor a class path."""
    place = _place(problem, value, words)
    if "/" in value or Path(value).suffix in (".yaml", ".yml", ".json"):
        group = _group(problem, value)
        near = " or ".join(names.nearest_files(value)) or group
        return Message(f"there is no file {shown(value)}, named by {_name(problem)}", place, near)
    return Message(f"{value!r} is neither a YAML file nor a class, for {_name(problem)}", place, _group(problem, value))


def _cannot_import(problem: Problem, text: str, attribute: str, words: Words) -> Message:
    typed = problem.class_path or problem.value or attribute
    if attribute and not typed.startswith(attribute):
        typed = attribute
    place = _place(problem, typed, words)
    module = _IMPORT.match(text)
    if module and module[1].partition(".")[0] != typed.partition(".")[0]:  # the class's own file imports something else
        what = f"{typed} cannot be imported: its file asks for {module[1]!r}, which is not installed"
        return Message(what, place, f"pip install the package that holds {module[1]!r}")
    return Message(f"there is no class {typed}", place, _group(problem, typed))


def _group(problem: Problem, typed: str, like: bool = True) -> str:
    """Alternatives: classes and shipped files similar to the typed one, or all of the setting's."""
    key = problem.keys[-1] if problem.keys else ""
    files = names.configs_of(key)
    if like:
        near = names.nearest_classes(typed, key) if "/" not in typed else []
        stems = {Path(name).stem: name for name in files}
        near_files = [stems[stem] for stem in names.nearest(Path(typed).stem if "/" in typed else typed, stems)]
        if near or near_files:
            return " or ".join([*near_files, *near][: names.SHOWN])
    known = files or names.shipped_classes().get(key, [])
    if known:
        return f"one of {', '.join(known)}"
    return "the class's full path, such as torch.optim.AdamW or data.module.PreferenceData"


def _place(problem: Problem, value: str | None, words: Words) -> str:
    whole = words.find((*problem.keys, "class_path"), value) if value else ""
    if whole and value and words.of_value(value) == whole:
        return whole
    return words.find(problem.keys, value) or (words.of_value(value) if value else "")


def _name(problem: Problem) -> str:
    return ".".join(problem.keys)


def _choices(text: str) -> list[str]:
    if "Literal[" not in text:
        return []
    try:
        found = ast.literal_eval(text[text.index("Literal[") + len("Literal") :])
    except (ValueError, SyntaxError):
        return []
    return [str(choice) for choice in found]


def _type_in_words(text: str) -> str:
    """``<class 'int'>`` and the like as words."""
    if found := re.fullmatch(r"<class '([\w.]+)'>", text):
        name = found[1].rpartition(".")[2]
        return WORDS.get(name, f"a {name}")
    name = text.partition("[")[0].rpartition(".")[2].lower()
    return WORDS.get(name, text)
