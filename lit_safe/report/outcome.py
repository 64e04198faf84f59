"""What a run came to, as numbers: held-out accuracy, cost, violation, multiplier, unsafe share and drift."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning import Trainer

from lit_safe.constraint.dual_ascent import dual_of
from lit_safe.constraint.dual_curves import suffixes
from lit_safe.report.contents import limit_of
from lit_safe.report.tensorboard import add_hparams
from lit_safe.training.module import PreferenceAlignment
from lit_safe.training.stepping import StepModule


class Measure(NamedTuple):
    """Where a number comes from: its name in a report, and in the metrics of training, the best of them first."""

    report: str
    metrics: tuple[str, ...]


MEASURES: Mapping[str, Measure] = {
    "accuracy": Measure("logps/accuracies", ("eval/logps/accuracies", "eval/rewards/accuracies")),
    "unsafe": Measure("rollouts/unsafe", ("dual/unsafe",)),
    "kl_per_token": Measure("rollouts/kl_per_token", ("drift/kl_per_token",)),
}


def found(name: str, trainer: Trainer, report: Mapping[str, Any] | None) -> float:
    """One of ``MEASURES`` of the policy that ships: from the report, else what was last logged; NaN where unknown."""
    measure = MEASURES[name]
    if report is not None and measure.report in report["metrics"]:
        value = report["metrics"][measure.report]["after"]["mean"]
        return math.nan if value is None else float(value)
    logged = (float(trainer.callback_metrics[key]) for key in measure.metrics if key in trainer.callback_metrics)
    return next(logged, math.nan)


def outcome(trainer: Trainer, module: StepModule, report: Mapping[str, Any] | None) -> dict[str, float]:
    """Everything that is known, by name; several constraints have their names behind."""
    values = {name: found(name, trainer, report) for name in MEASURES}
    if isinstance(module, PreferenceAlignment):
        names = suffixes(trainer, module.multiplier)
        if module.objective.reads_multiplier:
            pairs = zip(names, module.multiplier.reshape(-1).tolist(), strict=True)
            values |= {f"multiplier{name}": value for name, value in pairs}
        for name, row in zip(names, limit_of(trainer, dual_of(trainer))["constraints"], strict=False):
            if row["cost"] is not None:
                values |= {f"cost{name}": row["cost"], f"violation{name}": row["cost"] - row["limit"]}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def log_hparams(trainer: Trainer, module: StepModule, report: Mapping[str, Any] | None) -> None:
    """The run's row in TensorBoard's table of runs: what it was, and what it came to (``outcome/<name>``)."""
    settings: dict[str, str | float] = {"model": module.pair.facts().source, "seed": module.seed}
    if isinstance(module, PreferenceAlignment):
        settings["objective"] = repr(module.objective)
    if trainer.optimizers:
        settings["lr"] = float(trainer.optimizers[0].defaults.get("lr", math.nan))
    dual = dual_of(trainer)
    if dual is not None and dual.estimator is not None:
        settings |= {"limit": str(dual.limit.tolist()), "controller": dual.controller.sentence()}
    measured = {f"outcome/{name}": value for name, value in outcome(trainer, module, report).items()}
    add_hparams(trainer, settings, measured)
