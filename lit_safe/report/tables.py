"""Numbers of a run as files that can be read back, and as cells that people can read."""

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lit_safe.evaluation.evaluate import PAIR_IDS, Evaluation, stratum
from lit_safe.evaluation.held_out import Columns
from lit_safe.evaluation.responses import ADDED_VALUES, ROLLOUT_IDS, ROLLOUT_VALUES, completed
from lit_safe.statistics.clustered import Estimate
from lit_safe.training.metrics import STRATA

REPORT, PAIRS, ROLLOUTS = "report.json", "pairs.csv", "rollouts.csv"

LABELS = ("length_chosen", "length_rejected", "reward_margin", "cost_chosen", "cost_rejected")
"""Columns of a pair that no training changes: they stand once in ``pairs.csv``."""

MEASURED = ("logp_chosen", "logp_rejected", "logratio_chosen", "logratio_rejected", "weight")


class Quantity(NamedTuple):
    """How a measure is called and printed: ``share`` as a percentage, else with ``digits`` decimals in ``unit``."""

    label: str
    short: str
    unit: str = ""
    share: bool = False
    digits: int = 2


QUANTITIES: Mapping[str, Quantity] = {
    "logps/accuracies": Quantity("chosen likelier than rejected, summed log-prob", "chosen likelier", "%", True),
    "logps/accuracies_per_token": Quantity(
        "chosen likelier than rejected, log-prob per token", "chosen likelier, per token", "%", True
    ),
    "logps/accuracies/safer": Quantity("safe likelier than unsafe, summed log-prob", "safe likelier", "%", True),
    "logps/accuracies_per_token/safer": Quantity(
        "safe likelier than unsafe, log-prob per token", "safe likelier, per token", "%", True
    ),
    "rewards/accuracies": Quantity("implicit reward prefers chosen", "reward accuracy", "%", True),
    "rewards/accuracies/safer": Quantity(
        "implicit reward prefers safe over unsafe", "reward accuracy, safer", "%", True
    ),
    "logratios/margins": Quantity("log-ratio margin, chosen - rejected", "log-ratio margin", "nats"),
    "logratios/chosen": Quantity("drift of the chosen response's log-prob", "drift of chosen", "nats"),
    "logratios/rejected": Quantity("drift of the rejected response's log-prob", "drift of rejected", "nats"),
    "logps/chosen": Quantity("log-prob of the chosen response", "log-prob of chosen", "nats"),
    "logps/rejected": Quantity("log-prob of the rejected response", "log-prob of rejected", "nats"),
    "rollouts/unsafe": Quantity("responses scored unsafe", "unsafe responses", "%", True),
    "rollouts/cost": Quantity("mean cost of responses", "cost", "cost units"),
    "rollouts/tokens": Quantity("tokens of a response", "response length", "tokens", digits=1),
    "rollouts/kl_per_token": Quantity("KL(policy ‖ reference) per response token", "KL per token", "nats", digits=4),
    "rollouts/entropy_per_token": Quantity(
        "entropy of the policy's next token, mean over responses", "entropy per token", "nats", digits=3
    ),
    "drift/forward_kl": Quantity("KL(reference ‖ policy) of the reference's responses", "forward KL", "nats"),
    "drift/implausible": Quantity("responses below the reference's own 0.1 % quantile", "implausible", "%", True),
}
"""Everything reported, in the order of reports."""

MAIN = (
    "logps/accuracies",
    "logps/accuracies_per_token",
    "logps/accuracies/safer",
    "rollouts/unsafe",
    "rollouts/kl_per_token",
)
"""What a comparison shows first."""


def number(name: str, value: float, *, signed: bool = False, more: int = 0) -> str:
    """A value of ``name`` for people, with ``more`` decimals than usual; no unit, and n/a where it is not known."""
    if not math.isfinite(value):
        return "n/a"
    quantity = QUANTITIES[name]
    scaled, digits = (100 * value, 1) if quantity.share else (value, quantity.digits)
    text = f"{scaled:{'+' if signed else ''}.{digits + more}f}"
    return text if float(text) else text.lstrip("+-")


def with_error(name: str, estimate: Estimate) -> str:
    """``mean [low, high]``, 95 %."""
    return _spelt(name, estimate, signed=False)


def with_interval(name: str, estimate: Estimate) -> str:
    """``difference [low, high]``, 95 %."""
    return _spelt(name, estimate, signed=True)


def _spelt(name: str, estimate: Estimate, *, signed: bool) -> str:
    """With as many decimals as it takes to tell the ends of the interval apart: it never looks like a point."""
    for more in range(12):
        mean, low, high = (
            number(name, value, signed=signed, more=more) for value in (estimate.mean, *estimate.interval)
        )
        if low != high or not any(map(math.isfinite, estimate.interval)):
            break
    return f"{mean} [{low}, {high}]"


def estimate_to_json(estimate: Estimate) -> dict[str, Any]:
    """Everything known of an estimate; what is not known is null, an end of an interval that has no bound too."""
    low, high = estimate.interval
    fields = {"mean": estimate.mean, "stderr": estimate.stderr, "low": low, "high": high}
    known = {name: value if math.isfinite(value) else None for name, value in fields.items()}
    return {**known, "count": estimate.count, "clusters": estimate.clusters}


def estimate_from_json(fields: Mapping[str, Any]) -> Estimate:
    """What ``estimate_to_json`` wrote."""
    mean, stderr = (math.nan if fields[name] is None else fields[name] for name in ("mean", "stderr"))
    low, high = (math.nan if fields.get(name) is None else fields[name] for name in ("low", "high"))
    return Estimate(mean, stderr, fields["count"], fields["clusters"], (low, high))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Strict JSON, all or nothing: a NaN is a mistake of ours and raises."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    partial = path.with_name(f".{path.name}.tmp")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_tables(folder: Path, before: Evaluation, after: Evaluation) -> None:
    """Write ``pairs.csv`` and, where there were rollouts, ``rollouts.csv``: ids and numbers, no texts."""
    strata = [STRATA[int(s)] if s == s else "unknown" for s in stratum(after.pairs)]
    pairs: dict[str, Sequence[object]] = {name: after.pairs[name].tolist() for name in PAIR_IDS}
    pairs |= {"stratum": strata, **{name: after.pairs[name].tolist() for name in LABELS}}
    for when, evaluation in (("before", before), ("after", after)):
        pairs |= {f"{when}_{name}": evaluation.pairs[name].tolist() for name in MEASURED}
    _write_csv(folder / PAIRS, pairs)
    if after.rollouts:
        rollouts: dict[str, Sequence[object]] = {name: after.rollouts[name].tolist() for name in ROLLOUT_IDS}
        for when, evaluation in (("before", before), ("after", after)):
            rollouts |= {f"{when}_{name}": evaluation.rollouts[name].tolist() for name in ROLLOUT_VALUES}
        _write_csv(folder / ROLLOUTS, rollouts)


def read_tables(folder: Path) -> tuple[Evaluation, Evaluation]:
    """What ``write_tables`` wrote: the evaluations before and after training."""
    pairs = _read_csv(folder / PAIRS)
    rollouts = _read_csv(folder / ROLLOUTS) if (folder / ROLLOUTS).exists() else {}
    both = []
    for when in ("before", "after"):
        table = _columns(pairs, PAIR_IDS, LABELS, when, MEASURED)
        values = [name for name in ROLLOUT_VALUES if name not in ADDED_VALUES or f"{when}_{name}" in rollouts]
        answers = completed(_columns(rollouts, ROLLOUT_IDS, (), when, values)) if rollouts else {}
        both.append(Evaluation(table, answers))
    return both[0], both[1]


def _columns(
    cells: Mapping[str, list[str]], ids: Sequence[str], fixed: Sequence[str], when: str, measured: Sequence[str]
) -> Columns:
    return {
        **{name: np.array([int(cell) for cell in cells[name]], dtype=np.int64) for name in ids},
        **{name: np.array([float(cell) for cell in cells[name]]) for name in fixed},
        **{name: np.array([float(cell) for cell in cells[f"{when}_{name}"]]) for name in measured},
    }


def _write_csv(path: Path, columns: Mapping[str, Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _read_csv(path: Path) -> dict[str, list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return {name: [row[k] for row in rows] for k, name in enumerate(header)}
