"""Harmless requests in the grammar of AdvBench's. They are our own, and lie in the package."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from data.schema import BadRow, Message, PromptRow
from data.sources.files import Record, Table

FILE = Path(__file__).parent.parent / "prompts" / "everyday.csv"


class Everyday:
    """240 requests for help with everyday tasks: 60 topics in four wordings each, without responses.

    A policy that learns to refuse harmful requests may learn to refuse these too, because they are worded alike.

    Args:
        use: ``train``: 45 topics. ``held_out``: the other 15, for evaluations. ``all``: both.
    """

    licence = "Apache-2.0"

    def __init__(self, use: Literal["train", "held_out", "all"] = "train") -> None:
        self.use = use

    def describe(self) -> dict[str, str]:
        digest = hashlib.sha256(FILE.read_bytes()).hexdigest()
        return {"source": type(self).__name__, "name": f"everyday/{self.use}", "sha256": digest}

    def __iter__(self) -> Iterator[PromptRow | BadRow]:
        for item in Table(str(FILE)).parsed(_row):
            if isinstance(item, BadRow):
                yield item
            elif self.use in ("all", item[0]):
                yield item[1]


def _row(name: str, record: Record) -> tuple[str, PromptRow]:
    prompt = (Message("user", str(record["prompt"])),)
    return str(record["use"]), PromptRow(name, prompt, str(record["topic"]), harmful=False)
