"""List the shipped YAML files, or copy some of them into the working directory."""

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from lit_safe import installation


def configs(words: Sequence[str] = ()) -> int:
    """List the shipped YAML files; ``configs copy NAME ...`` copies files, and what they name, to ./configs to edit.

    Args:
        words: Nothing to list; ``copy`` and names to copy: ``objective/safe_dpo``, ``configs/base.yaml``.
    """
    if not words:
        print("\n".join(installation.shipped_configs()))
        return 0
    if words[0] != "copy" or len(words) == 1:
        print("usage: lit-safe configs | lit-safe configs copy NAME [NAME ...]", file=sys.stderr)
        return 2
    shipped = installation.shipped_configs()
    names = [_full_name(word) for word in words[1:]]
    for word, name in zip(words[1:], names, strict=True):
        if name not in shipped:
            near = [other for other in shipped if PurePosixPath(other).stem == PurePosixPath(name).stem]
            hint = f"did you mean {near[0]}?" if near else "`lit-safe configs` lists the names"
            print(f"configs: no shipped file {word!r}; {hint}", file=sys.stderr)
            return 2
    return _copy(_with_named(names))


def _copy(names: list[str]) -> int:
    there = [name for name in names if Path(name).exists()]
    for name in names:
        if name not in there:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(installation.root() / name, name)
            print(f"wrote {name}")
    for name in there:
        print(f"kept {name}, which is there already")
    return 0


def _full_name(word: str) -> str:
    name = word if word.startswith("configs/") else f"configs/{word}"
    return name if name.endswith(".yaml") else f"{name}.yaml"


def _with_named(names: list[str]) -> list[str]:
    """These files and every shipped file that one of them names by a path of its own."""
    shipped = set(installation.shipped_configs())
    found: list[str] = []
    waiting = list(names)
    while waiting:
        name = waiting.pop(0)
        if name in found:
            continue
        found.append(name)
        text = (installation.root() / name).read_text(encoding="utf-8")
        lines = [line.partition("#")[0] for line in text.splitlines()]
        for value in re.findall(r"[\w./-]+\.yaml", "\n".join(lines)):
            target = _normal(PurePosixPath(name).parent / value)
            if target in shipped:
                waiting.append(target)
    return found


def _normal(path: PurePosixPath) -> str:
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts:
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)
