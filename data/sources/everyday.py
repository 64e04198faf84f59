"""Harmless requests in the grammar of AdvBench's. They are our own, and lie in the package."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from data.schema import BadRow, Message, PromptRow
from data.sources.files import Record, Table

FOLDER = Path(__file__).parent.parent / "prompts"
FILES = {"fresh": FOLDER / "everyday_fresh.csv"}
FILE = FOLDER / "everyday.csv"


class Everyday:
    """Requests for help with everyday tasks, each topic in four wordings, without responses.

    A policy that learns to refuse harmful requests may learn to refuse these too, because they are worded alike.

    Args:
        use: ``train``: 45 topics. ``held_out``: 15 others, for evaluations. ``all``: both. ``fresh``: 40 further
            topics, on which no recipe of this project was chosen.
    """

    licence = "Apache-2.0"

    def __init__(self, use: Literal["train", "held_out", "all", "fresh"] = "train") -> None:
        self.use = use
        self._file = FILES.get(use, FILE)

    def describe(self) -> dict[str, str]:
        digest = hashlib.sha256(self._file.read_bytes()).hexdigest()
        return {"source": type(self).__name__, "name": f"everyday/{self.use}", "sha256": digest}

    def __iter__(self) -> Iterator[PromptRow | BadRow]:
        for item in Table(str(self._file)).parsed(_row):
            if isinstance(item, BadRow):
                yield item
            elif self.use in ("all", item[0]):
                yield item[1]


def _row(name: str, record: Record) -> tuple[str, PromptRow]:
    prompt = (Message("user", str(record["prompt"])),)
    return str(record["use"]), PromptRow(name, prompt, str(record["topic"]), harmful=False)
