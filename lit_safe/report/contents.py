"""What a run's report holds, and its files: first the numbers, then the pages that are drawn from them."""

import json
import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict

import lightning
import torch
import transformers
from lightning import Trainer

from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.evaluation.evaluate import Evaluation, differences
from lit_safe.evaluation.settings import evaluation_settings
from lit_safe.protocols.trainer import connected
from lit_safe.report.markdown import markdown
from lit_safe.report.plots import plot_run
from lit_safe.report.tables import REPORT, estimate_to_json, write_json, write_tables
from lit_safe.training.module import PreferenceAlignment
from lit_safe.types import CostFunction

PAGE, FIGURE = "report.md", "report.png"


class Work(TypedDict):
    """What training took: seconds, tokens and pairs of its steps, and its peak memory where it is known."""

    seconds: float
    tokens: int
    pairs: int
    peak_gib: float | None


def contents(
    trainer: Trainer,
    module: PreferenceAlignment,
    evaluations: tuple[Evaluation, Evaluation],
    work: Work,
    start: Mapping[str, Any],
    cost: CostFunction | None,
    sampling: Mapping[str, int],
    notes: Sequence[str],
    dual: DualAscent | None,
) -> dict[str, Any]:
    """The ``report.json`` of a run that has ended.

    Args:
        trainer: Of the run.
        module: What the run ships.
        evaluations: Before and after training.
        work: What training took.
        start: Seconds that both evaluations took, and the multiplier at the start.
        cost: What scored responses, None where nothing did.
        sampling: ``max_new_tokens`` and ``seed`` of the responses.
        notes: Sentences on what the data cannot show.
        dual: What moved the multiplier, if anything did.
    """
    data: Any = connected(trainer).datamodule
    before, after = evaluations
    difference = differences(after, before)
    was, now = before.summary(), after.summary()
    return {
        "limit": limit_of(trainer, dual),
        "objective": {"name": type(module.objective).__name__, "text": repr(module.objective)},
        "command": shlex.join(["python", *sys.argv]),
        "seed": data.seed,
        "model": asdict(module.pair.facts()),
        "data": {
            **data.report["preparation"],
            "splits": data.report["splits"],
            "tokenisation": data.report["tokenisation"],
            "constraints": list(data.constraints),
            "lines": data.report_lines,
        },
        "scorer": _scorer(cost),
        "settings": evaluation_settings(module, data, cost, **sampling),
        "versions": versions(),
        "training": {
            "steps": trainer.global_step,
            "pairs": work["pairs"],
            "seconds": work["seconds"],
            "tokens_per_s": work["tokens"] / max(work["seconds"], 1e-9),
            "pairs_per_s": work["pairs"] / max(work["seconds"], 1e-9),
            "peak_gib": work["peak_gib"],
            "device": _device_name(module.device),
            "multiplier": [start["multiplier"], module.multiplier.tolist()],
        },
        "evaluation": {"seconds_before": start["seconds"], "seconds_after": start["seconds_after"]},
        "metrics": {
            name: {
                "before": estimate_to_json(was[name]),
                "after": estimate_to_json(now[name]),
                "difference": estimate_to_json(difference[name]),
            }
            for name in now
            if name in difference and name in was
        },
        "notes": [*notes, *([] if dual is None else dual.notes())],
        "samples": _side_by_side(before, after),
    }


def _side_by_side(before: Evaluation, after: Evaluation) -> list[dict[str, Any]]:
    """The kept responses, each with the one before training to the same prompt (None in a run resumed without it)."""
    rows = []
    for number, sample in enumerate(after.samples):  # both answer the same prompts, in the same order
        was = before.samples[number] if number < len(before.samples) else None
        rows.append(
            {
                **sample._asdict(),
                "cost": max(sample.cost),
                "response_before": None if was is None else was.response,
                "cost_before": None if was is None else max(was.cost),
            }
        )
    return rows


def limit_of(trainer: Trainer, dual: DualAscent | None) -> dict[str, Any]:
    """The limits, what is known of the cost of the policy that ships, and why nothing is where that is so."""
    if dual is None or dual.estimator is None:
        return {"constraints": [], "unknown": "the run estimated no cost (`dual.estimator` is null)"}
    known = dual.standing
    if known is None:
        return {"constraints": [], "unknown": dual.failed or "no epoch ended with an estimate of the cost"}
    if known.epoch < trainer.current_epoch - 1:
        return {"constraints": [], "unknown": f"the last estimate is of epoch {known.epoch}, and training went on"}
    return {"constraints": known.as_json(), "unknown": None}


def write(folder: Path, report: Mapping[str, Any], before: Evaluation, after: Evaluation) -> None:
    """Write the tables and ``report.json``, which hold everything, then the page and the figure."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(folder, before, after)
    write_json(folder / REPORT, report)
    draw(folder, report)


def draw(folder: Path, report: Mapping[str, Any]) -> None:
    """Write ``report.md`` and ``report.png`` of a ``report.json``."""
    partial = folder / f".{PAGE}.tmp"
    partial.write_text(markdown(report), encoding="utf-8")
    os.replace(partial, folder / PAGE)
    plot_run(report, folder / "metrics.csv", folder / FIGURE)


def versions() -> dict[str, str]:
    """Of what decides the numbers of a run."""
    try:
        own = metadata.version("lit-safe")
    except metadata.PackageNotFoundError:
        own = "not installed"
    return {
        "lit_safe": own,
        "python": sys.version.partition(" ")[0],
        "torch": str(torch.__version__),
        "lightning": str(lightning.__version__),
        "transformers": str(transformers.__version__),
    }


def _scorer(cost: object) -> dict[str, Any] | None:
    if cost is None:
        return None
    card = Path(getattr(cost, "folder", "")) / "card.json"
    known = card.name and hasattr(cost, "folder") and card.exists()
    content = json.loads(card.read_text(encoding="utf-8")) if known else None
    return {"name": type(cost).__name__, "card": _known(content)}


def _known(value: Any) -> Any:
    """JSON in which null stands for what is not known; a card may say NaN, which no other reader takes."""
    if isinstance(value, Mapping):
        return {key: _known(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_known(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"
