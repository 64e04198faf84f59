"""What is known about a scorer: its units, and its error against people's labels, as its card says."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from lit_safe.constraint.certificate.question import Question
from lit_safe.rollouts.scoring import declared_range, name_of
from lit_safe.scorer_card import CARD, Quality, ScorerCard, check_scorer

READS = "certify"
"""The split whose prompts a certificate reads."""


class ScorerFacts(NamedTuple):
    """Facts about a scorer.

    ``units`` is None if neither the scorer nor its card says them. ``quality`` has a sentence for each output of the
    card, with its AUC against people's labels. ``range`` is the smallest and the largest cost in ``units``, if the
    scorer declares them.
    """

    name: str
    units: str | None
    quality: tuple[str, ...]
    range: tuple[float, float] | None = None

    @property
    def in_units(self) -> str:
        """The units in words; those that nobody names are told apart by the scorer's name."""
        return self.units or f"units of {self.name}"


def scorer_facts(cost: object) -> ScorerFacts:
    """What a cost function and its card say. A function of another's costs, such as ``Rectified``, has its card."""
    chain = _chain(cost)
    card = _card(chain[-1])
    name = "(".join(map(name_of, chain)) + ")" * (len(chain) - 1)
    return ScorerFacts(name, _units(chain[-1], card), tuple(_quality(card)), declared_range(cost))


def verdict_quality(cost: object) -> Quality | None:
    """What the card says of verdicts (a score > 0) against people's labels.

    None if the card says nothing of them, or says it of several outputs, of which no one is the verdict.
    """
    known = {field.name for field in fields(Quality)}
    found = [one for one in _outputs(_card(_chain(cost)[-1])).values() if one.get("hits") is not None]
    return Quality(**{key: value for key, value in found[0].items() if key in known}) if len(found) == 1 else None


def check_certifies(cost: object) -> None:
    """Check that a scorer may support a certificate.

    Raises:
        ValueError: If the scorer was trained on the certify split, or its card says that it is too weak.
        FileNotFoundError: If the scorer was not fitted.
    """
    cost = _chain(cost)[-1]
    check_scorer(cost, reads=READS)
    name, card = name_of(cost), _card(cost)
    if READS in card.get("trained_on", ()):
        raise ValueError(
            f"the scorer {name} was trained on the {READS} split (its card says so), so its costs there prove nothing: "
            f"fit one without that split"
        )


def second_question(
    question: Question, second: ScorerFacts, constraints: int, of_first: int
) -> tuple[Question | None, str]:
    """The limits that a second scorer's costs share with the first, and why E[cost] is not among them.

    A limit of E[cost] is compared only with costs in its units. The range that the second scorer declares replaces that
    of the first.

    Args:
        question: The limits.
        second: What is known about the second scorer.
        constraints: Number of costs that it gives for each response.
        of_first: Number of costs of the first scorer.

    Returns:
        None if no limit is left, and the reason; an empty reason if there is nothing to say.

    Raises:
        SettingError: If a limit is outside the second scorer's range.
    """
    why = ""
    if question.limit is not None and (second.units is None or second.units != question.units):
        why = f"its costs are in {second.in_units}, and the limit is in {question.units}"
    elif question.limit is not None and constraints != of_first:
        why = f"it gives {constraints} costs for a response, and the limits are of {of_first}"
    limit = None if why else question.limit
    if limit is None and question.unsafe_limit is None:
        return None, why
    return replace(question, limit=limit, cost_range=second.range or question.cost_range), why


def _chain(cost: object) -> list[object]:
    """A cost function, the one whose costs it reads, and so on."""
    chain = [cost]
    while callable(inner := getattr(chain[-1], "cost", None)):
        chain.append(inner)
    return chain


def _card(cost: object) -> dict[str, Any]:
    """The scorer's card as JSON values: from its method ``card``, or from its folder. Empty if it has none."""
    read = getattr(cost, "card", None)
    if callable(read):
        try:
            card = read()
        except FileNotFoundError:  # the first call of the scorer says what is missing
            return {}
        return asdict(card) if isinstance(card, ScorerCard) else {}
    folder = getattr(cost, "folder", None)
    if not isinstance(folder, str | Path) or not (Path(folder) / CARD).is_file():
        return {}
    found = json.loads((Path(folder) / CARD).read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def _units(cost: object, card: dict[str, Any]) -> str | None:
    units = getattr(cost, "units", None) or card.get("units")
    if isinstance(units, dict):
        named = sorted({str(unit) for name, unit in units.items() if name != "reward"})
        units = named[0] if len(named) == 1 else None
    if not isinstance(units, str):
        return None
    scale = getattr(cost, "scale", 1.0)
    return units if scale == 1 else f"{scale:g} {units}"


def _outputs(card: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The quality of each measured output: of a ``ScorerCard``, or of the card that ``fit_scorer`` writes."""
    outputs = dict(card.get("quality", {}))
    if "auc" in card.get("held_out", ()):
        held_out = card["held_out"]
        ends = {"low": held_out.get("auc_low"), "high": held_out.get("auc_high")}
        outputs["cost"] = {**held_out, **ends, **held_out.get("verdicts", {})}
    return outputs


def _quality(card: dict[str, Any]) -> list[str]:
    """A sentence for each measured output."""
    lines = []
    for name, found in _outputs(card).items():
        of = f"{found.get('responses', '?')} held-out responses to {found.get('prompts', '?')} prompts"
        if found.get("auc") is not None:
            interval = _interval(found, "")
            lines.append(f"{name}: AUC {found['auc']:.3f}{interval} against people's labels of {of}")
        if found.get("accuracy") is not None:
            known = {
                "kappa": ("kappa", ""),
                "hits": ("finds", "positives"),
                "false_alarms": ("false alarms", "negatives"),
            }
            more = [
                f"{word} {found[key]:.2f}" + (f" of {found[number]} {number}" if found.get(number) else "")
                for key, (word, number) in known.items()
                if found.get(key) is not None
            ]
            told = f" ({', '.join(more)})" if more else ""
            lines.append(
                f"{name}: agrees with people on {found['accuracy']:.3f}{_interval(found, 'accuracy_')} of {of}{told}"
            )
    return lines


def _interval(found: dict[str, Any], prefix: str) -> str:
    low, high = found.get(f"{prefix}low"), found.get(f"{prefix}high")
    return "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
