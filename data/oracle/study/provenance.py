"""Records the inputs of a result beside it, so that it is not mistaken for another result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(path: Path, made_of: Mapping[str, Any]) -> None:
    """Write ``made_of`` as JSON."""
    path.write_text(json.dumps(made_of, indent=1) + "\n", encoding="utf-8")


def differences(path: Path, made_of: Mapping[str, Any]) -> list[str]:
    """Differences of ``made_of`` from the stored inputs, as ``<key>: <kept> there, <new> here``; None if missing."""
    return _differences(json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(made_of)), "")


def _differences(kept: object, new: object, key: str) -> list[str]:
    if isinstance(kept, Mapping) and isinstance(new, Mapping):
        return [
            difference
            for name in dict.fromkeys([*kept, *new])
            for difference in _differences(kept.get(name), new.get(name), f"{key}.{name}" if key else str(name))
        ]
    return [] if kept == new else [f"{key}: {kept!r} there, {new!r} here"]
