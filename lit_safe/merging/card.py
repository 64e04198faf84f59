"""The README (model card) of a merged model."""

from collections.abc import Sequence
from pathlib import Path

import yaml

UNKNOWN = "not stated"


def card(
    folders: Sequence[Path], weights: Sequence[float], method: str, base: Path | None, density: float, seed: int
) -> str:
    """The README: which models, by which method, and their licences."""
    licences = [licence(folder) for folder in folders]
    rows = [f"- {w:g} x {f} (licence {one})" for w, f, one in zip(weights, folders, licences, strict=True)]
    details = "" if base is None else f" of changes from {base}, density {density:g}, seed {seed}"
    front = licences[0] if len(set(licences)) == 1 and licences[0] != UNKNOWN else "other"
    return "\n".join(
        [
            *("---", "library_name: transformers", f"license: {front}", "tags: [lit_safe, merge]", "---"),
            *("# A merge of models", "", f"A {method} merge{details}:", "", *rows, ""),
            "The licences of all of them may bind it. No evaluation or certificate of one of them holds for it.",
            "",
        ]
    )


def licence(folder: Path) -> str:
    """The ``license`` of a folder's model card."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        head = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else None
    except (OSError, IndexError, yaml.YAMLError):
        return UNKNOWN
    return str(head.get("license", UNKNOWN)) if isinstance(head, dict) else UNKNOWN
