"""How a policy was evaluated, as plain values that a report keeps, and where two reports differ in it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_safe.held_out import Evaluated
from lit_safe.types import CostFunction

Settings = Mapping[str, Any]

SAMPLING = ("max_new_tokens", "temperature", "stop_ids")
"""What decides responses: policies that answered under other values are not compared by their responses."""

CARD = "card.json"  # of a fitted scorer; it holds times, which change from fit to fit


def evaluation_settings(
    module: Evaluated, data: Any, cost: CostFunction | None, *, max_new_tokens: int, seed: int
) -> dict[str, Any]:
    """What decides an evaluation's numbers beside the policy and the rows.

    Args:
        module: Its pair knows the tokens that end a response.
        data: Its ``order``, ``seed`` and ``tokenizer`` are read where it has them.
        cost: The scorer of responses; None where none were sampled.
        max_new_tokens: Longest response.
        seed: Of the responses.
    """
    settings = {
        "order": getattr(data, "order", None),
        "template": _template(data),
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
    """The settings in a ``report.json``. One of an earlier version tells its order, its data seed and its scorer."""
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
    """The settings that both have and that differ, with both values."""
    return {name: (one[name], other[name]) for name in one if name in other and one[name] != other[name]}


def not_comparable(name: str, differing: Mapping[str, object]) -> bool:
    """Whether a measure means something else on both sides of these differences."""
    if not name.startswith(("rollouts/", "drift/")):
        return False
    if any(setting in SAMPLING for setting in differing):
        return True
    scored = name in ("rollouts/unsafe", "rollouts/cost")
    return scored and any(setting.partition(".")[0] == "scorer" for setting in differing)


def _plain(cost: CostFunction) -> dict[str, Any]:
    """Public attributes that are plain values, but for the place where it lies."""
    known = vars(cost) if hasattr(cost, "__dict__") else {}
    kinds = (bool, int, float, str)
    return {
        name: value
        for name, value in known.items()
        if isinstance(value, kinds) and not name.startswith("_") and name != "folder"
    }


def _digest(folder: object) -> str | None:
    """A hash of a fitted scorer's files; None where there is no folder."""
    if not isinstance(folder, str | Path) or not Path(folder).is_dir():
        return None
    found = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file() and path.name != CARD:
            found.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def _template(data: Any) -> str | None:
    """A hash of the chat template's text; None where the tokenizer has none."""
    text = getattr(getattr(data, "tokenizer", None), "chat_template", None)
    return None if text is None else hashlib.sha256(str(text).encode()).hexdigest()[:16]
