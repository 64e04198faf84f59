"""The report of a pipeline: one row for each stage, from the files that the stages left."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_safe.report.contents import PAGE
from lit_safe.report.tables import QUANTITIES, REPORT, estimate_from_json, with_error, with_interval, write_json
from lit_safe.runs.checkpoints import FOLDER, LAST, CheckpointError, glance
from lit_safe.stages.pipeline import OUTPUT, Stage, output
from lit_safe.stages.record import Record
from lit_safe.words import duration

MEASURES = ("logps/accuracies", "logps/accuracies/safer", "rollouts/unsafe", "rollouts/cost", "rollouts/kl_per_token")
SUMMARY = "summary.json"
"""Numbers of all stages. Its name differs from that of a run's report, so that ``compare`` takes it for no run."""
HEADINGS = ("stage", "what", "model from", "reference", "steps", "time", "λ")


def write_page(stages: Sequence[Stage], record: Record, settings: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write ``summary.json`` and ``report.md`` over the stages that are done. Returns the path of the page."""
    rows = [row(stage, record, settings[stage.name]) for stage in stages if record.is_done(stage.name, "model")]
    folder = record.folder
    write_json(folder / SUMMARY, {"stages": rows})
    partial = folder / f".{PAGE}.tmp"
    partial.write_text(page(rows, len(stages), folder), encoding="utf-8")
    os.replace(partial, folder / PAGE)
    return folder / PAGE


def row(stage: Stage, record: Record, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a stage: what it did, from which models, and what its own report measured."""
    folder = record.folder / stage.name
    found: dict[str, Any] = {
        "name": stage.name,
        "model": stage.model,
        "reference": stage.reference,
        "output": str(output(record.folder, stage.name)),
        "seconds": record.seconds(stage.name),
        "metrics": {},
    }
    if stage.merge is not None:
        return found | {"what": f"{stage.merge.method} merge of {', '.join(stage.merge.of)}", "model": None}
    if not stage.gives_model:
        return found | {"what": stage.command, "output": str(folder)}
    report = _report(folder)
    if report is None:
        return found | {"what": _what(settings["model"]), "steps": _steps(folder)}
    training = report["training"]
    found |= {"what": report["objective"]["text"], "steps": training["steps"], "multiplier": training["multiplier"]}
    metrics = {name: report["metrics"][name] for name in MEASURES if name in report["metrics"]}
    return found | {"metrics": metrics, "limit": report.get("limit"), "report": str(folder / PAGE)}


def page(rows: Sequence[Mapping[str, Any]], count: int, folder: Path) -> str:
    """The page of ``summary.json``."""
    done = f"{len(rows)} of {count} stages are done."
    lines = ["# Stages", "", done, "", *_table(HEADINGS, [_cells(one) for one in rows])]
    measured = [one for one in rows if one["metrics"]]
    for name in MEASURES:
        with_it = [one for one in measured if name in one["metrics"]]
        if with_it:
            lines += ["", f"## {_heading(name)}", ""]
            lines += _table(("stage", "before", "after", "difference"), [_measured(one, name) for one in with_it])
    if measured:
        lines += ["", *NOTES, "", *(f"- [{one['name']}]({one['name']}/{PAGE})" for one in measured)]
    unmeasured = [str(one["name"]) for one in rows if not one["metrics"]]
    if unmeasured:
        lines += ["", f"Nothing was measured of {', '.join(unmeasured)}: no `BeforeAfter` in `trainer.callbacks`."]
    models = [Path(one["output"]) for one in rows if Path(one["output"]).name == OUTPUT]
    if models:
        lines += ["", f"The last model is in `{models[-1].relative_to(folder)}`."]
    return "\n".join([*lines, ""])


NOTES = (
    "Each stage compares its policy with its own reference. Where this is the model of an earlier stage, KL and",
    "implicit rewards count from there. Intervals are 95 % and clustered by prompt. The reports of the stages:",
)


def _cells(one: Mapping[str, Any]) -> list[str]:
    steps, multiplier = one.get("steps"), one.get("multiplier")
    return [
        one["name"],
        one["what"],
        one["model"] or "-",
        one["reference"] or "-",
        "-" if steps is None else f"{steps:,}",
        duration(one["seconds"]),
        "-" if multiplier is None else " → ".join(_number(value) for value in multiplier),
    ]


def _number(value: Any) -> str:
    return ", ".join(_number(part) for part in value) if isinstance(value, list) else f"{value:.3g}"


def _measured(one: Mapping[str, Any], name: str) -> list[str]:
    entry = one["metrics"][name]
    values = {key: estimate_from_json(entry[key]) for key in ("before", "after", "difference")}
    levels = [with_error(name, values[key]) for key in ("before", "after")]
    return [one["name"], *levels, with_interval(name, values["difference"])]


def _heading(name: str) -> str:
    quantity = QUANTITIES[name]
    return quantity.label[:1].upper() + quantity.label[1:] + (f" ({quantity.unit})" if quantity.unit else "")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]


def _what(model: Mapping[str, Any]) -> str:
    """The objective or the module of a stage without a report."""
    objective = model.get("init_args", {}).get("objective") or model
    return str(objective["class_path"]).rpartition(".")[2]


def _report(folder: Path) -> dict[str, Any] | None:
    path = folder / REPORT
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found if "training" in found and "objective" in found else None


def _steps(folder: Path) -> int | None:
    try:
        return int(glance(folder / FOLDER / LAST)["global_step"])
    except CheckpointError:
        return None
