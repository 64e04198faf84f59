"""A response as all formats have it, and the faults of a file."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Answered:
    """A response of a model to a prompt.

    Attributes:
        row: Name of the prompt's row in its suite.
        prompt: The user's text, without a chat template.
        response: The text of the response.
        sample: Number of the response among those to the same prompt, from 0.
        model: Which model answered.
        suite: Name of the suite.
        category: Category of the prompt; None if it has none.
        harmful: Whether the prompt is a harmful request; None if that is unknown.
        complete: Whether the response ended by itself; None if that is unknown.
        scores: Score by judge. A judge without a score is left out.
    """

    row: str
    prompt: str
    response: str
    sample: int = 0
    model: str = ""
    suite: str = ""
    category: str | None = None
    harmful: bool | None = None
    complete: bool | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file, each with the name of its line for messages.

    Raises:
        ValueError: At a line that is no JSON object.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            name = f"{path.name}:{number}"
            try:
                found = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{name} is not JSON ({error})") from None
            if not isinstance(found, dict):
                raise ValueError(f"{name} is {type(found).__name__}, not an object")
            yield name, found


def write_lines(path: Path, objects: Iterator[Mapping[str, Any]]) -> None:
    """Write JSONL, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(one, ensure_ascii=False, allow_nan=False) + "\n" for one in objects)
    os.replace(partial, path)


def text_of(name: str, key: str, value: object) -> str:
    """``value`` as text.

    Raises:
        ValueError: If it is none. The message names the line and the key.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name}: {key} is {'missing' if value is None else type(value).__name__}, it must be text")
    return value


def facts_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """``suite``, ``category``, ``harmful`` and ``complete`` from values of a file, where they have the right type."""
    types = {"suite": str, "category": str, "harmful": bool, "complete": bool}
    return {name: facts[name] for name, kind in types.items() if isinstance(facts.get(name), kind)}
