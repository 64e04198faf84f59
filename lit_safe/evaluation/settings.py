"""The settings of an evaluation as plain values for a report, and the differences between two reports."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_safe.evaluation.held_out import Evaluated
from lit_safe.types import CostFunction

Settings = Mapping[str, Any]

SAMPLING = ("max_new_tokens", "temperature", "stop_ids")
"""Settings that affect responses. If they differ, policies are not compared by their responses."""

CARD = "card.json"  # of a fitted scorer; contains times, which differ between fits


def evaluation_settings(
    module: Evaluated, data: Any, cost: CostFunction | None, *, max_new_tokens: int, seed: int
) -> dict[str, Any]:
    """The settings that affect an evaluation's results, besides the policy and the rows.

    Args:
        module: Its pair gives the tokens that end a response.
        data: Its ``order``, ``seed`` and ``tokenizer`` are read if it has them.
        cost: The scorer of responses. None if no responses were sampled.
        max_new_tokens: Maximum length of a response in tokens.
        seed: Seed of the responses' random numbers.
    """
    settings = {
        "order": getattr(data, "order", None),
        "template": template_digest(data),
        "data seed": getattr(data, "seed", None),
    }
    if cost is None:
        return settings
    return {
        **settings,
        "scorer": type(cost).__name__,
        **{f"scorer.{name}": value for name, value in sorted(_plain(cost).items())},
        "scorer.digest": _digest(getattr(cost, "folder", None)),
        "max_new_tokens": max_new_tokens,
        "temperature": 1.0,
        "stop_ids": sorted(module.pair.stop_tokens()),
        "response seed": seed,
    }


def settings_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a ``report.json``. Reports of earlier versions give only order, data seed and scorer."""
    if "settings" in report:
        return dict(report["settings"])
    scorer = report.get("scorer")
    known = {
        "order": report.get("data", {}).get("order"),
        "data seed": report.get("seed"),
        "scorer": scorer["name"] if scorer else None,
    }
    return {name: value for name, value in known.items() if value is not None}


def differing(one: Settings, other: Settings) -> dict[str, tuple[Any, Any]]:
    """Settings that are in both and differ, with both values."""
    return {name: (one[name], other[name]) for name in one if name in other and one[name] != other[name]}


def not_comparable(name: str, differing: Mapping[str, object]) -> bool:
    """Whether these differences in settings make a measure incomparable."""
    if not name.startswith(("rollouts/", "drift/")):
        return False
    if any(setting in SAMPLING for setting in differing):
        return True
    scored = name in ("rollouts/unsafe", "rollouts/cost")
    return scored and any(setting.partition(".")[0] == "scorer" for setting in differing)


def _plain(cost: CostFunction) -> dict[str, Any]:
    """The scorer's public attributes with plain values, except its folder."""
    known = vars(cost) if hasattr(cost, "__dict__") else {}
    kinds = (bool, int, float, str)
    return {
        name: value
        for name, value in known.items()
        if isinstance(value, kinds) and not name.startswith("_") and name != "folder"
    }


def _digest(folder: object) -> str | None:
    """A hash of a fitted scorer's files. None if there is no folder."""
    if not isinstance(folder, str | Path) or not Path(folder).is_dir():
        return None
    found = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file() and path.name != CARD:
            found.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def template_digest(data: Any) -> str | None:
    """A hash of the chat template's text. None if the tokenizer has no template."""
    text = getattr(getattr(data, "tokenizer", None), "chat_template", None)
    return None if text is None else hashlib.sha256(str(text).encode()).hexdigest()[:16]
