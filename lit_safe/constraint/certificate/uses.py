"""The record of every use of the certify split: a certificate holds for one choice, made before the split was used."""

import itertools
import json
import logging
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

USES = "certificate_uses.jsonl"
"""In the run folder: one line for each use."""


def other_uses(folder: Path, study: Path, key: str, prompt_ids: Collection[int]) -> list[dict[str, Any]]:
    """Earlier uses of any of these prompts: by this run, and by other runs of the same study.

    The same certificate made again is no other use.

    Args:
        folder: The run folder.
        study: The folder that holds the study's run folders, up to three levels deep.
        key: The key of this certificate.
        prompt_ids: Its prompts.
    """
    found = []
    study = study.absolute()
    levels = (study.glob("*/" * depth + USES) for depth in (1, 2, 3))
    for path in sorted({*itertools.chain(*levels), folder.absolute() / USES}):
        for use in _read(path):
            shared = len(set(use.get("prompt_ids", ())) & set(prompt_ids))
            if use.get("key") != key and shared:
                run = path.parent.name if path.parent.parent == study else str(path.parent)
                found.append({**{k: v for k, v in use.items() if k != "prompt_ids"}, "run": run, "shared": shared})
    return found


def record_use(folder: Path, key: str, prompt_ids: Collection[int], facts: Mapping[str, Any]) -> None:
    """Add a line to the record of the run folder, unless this certificate is in it."""
    path = folder / USES
    if any(use.get("key") == key for use in _read(path)):
        return
    line = {"key": key, "time": datetime.now(UTC).isoformat(timespec="seconds"), **facts}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**line, "prompt_ids": list(prompt_ids)}) + "\n")


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    uses = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            uses.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            log.warning(
                "%s, line %d is damaged and was not read: a use of the certify split may be missing", path, number
            )
    return uses
