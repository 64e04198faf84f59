"""Lists the shipped YAML files, or copies some of them into the working directory."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from lit_safe import installation
from lit_safe.errors.message import UsageExit
from lit_safe.errors.names import nearest


def configs(words: Sequence[str] = ()) -> int:
    """List the shipped YAML files. ``configs copy NAME ...`` copies files and those they include to ./configs.

    Args:
        words: Nothing, to list the files; or ``copy`` and names, e.g. ``objective/safe_dpo``, ``configs/base.yaml``.

    Raises:
        UsageExit: If a word or a name is unknown.
    """
    if not words:
        print("\n".join(installation.shipped_configs()))
        return 0
    if words[0] != "copy":
        raise UsageExit(f"configs has no {words[0]!r}\ntry: copy, or nothing to list the files")
    if len(words) == 1:
        raise UsageExit("configs copy needs a name\ntry: objective/safe_dpo; `lit-safe configs` lists the names")
    shipped = installation.shipped_configs()
    names = [_full_name(word) for word in words[1:]]
    for word, name in zip(words[1:], names, strict=True):
        if name not in shipped:
            short = {other.removeprefix("configs/").removesuffix(".yaml"): other for other in shipped}
            stems = {PurePosixPath(other).stem: other for other in shipped}
            wanted = name.removeprefix("configs/").removesuffix(".yaml")
            near = [short[found] for found in nearest(wanted, short)] or [
                stems[found] for found in nearest(wanted, stems)
            ]
            hint = " or ".join(near) or "`lit-safe configs` lists the names"
            raise UsageExit(f"there is no shipped file {word!r}\ntry: {hint}")
    return _copy(_with_named(names))


def _copy(names: list[str]) -> int:
    there = [name for name in names if Path(name).exists()]
    for name in names:
        if name not in there:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(installation.root() / name, name)
            print(f"wrote {name}")
    for name in there:
        print(f"kept {name}, which already exists")
    return 0


def _full_name(word: str) -> str:
    name = word if word.startswith("configs/") else f"configs/{word}"
    return name if name.endswith(".yaml") else f"{name}.yaml"


def _with_named(names: list[str]) -> list[str]:
    """``names`` and every shipped file that one of these files refers to by a relative path."""
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
