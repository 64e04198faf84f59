"""What will run, in plain words, before the first step."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from lightning import Trainer

from lit_safe.constraint.dual_ascent import dual_of
from lit_safe.constraint.dual_curves import constraints
from lit_safe.precision import run_precision
from lit_safe.protocols.trainer import connected
from lit_safe.training.memory_plan import plan_memory
from lit_safe.training.micro_batch import ranks_on
from lit_safe.training.module import PreferenceAlignment
from lit_safe.training.reference_plan import memory_of_a_step
from lit_safe.training.score_model import ScoreModel
from lit_safe.training.sft import SupervisedFineTuning
from lit_safe.training.stepping import StepModule
from lit_safe.words import large, rows

REASONS = 3  # why rows were left out: so many are named


def opening(trainer: Trainer, module: StepModule) -> list[str]:
    """At most 15 lines: model, reference, objective, data, steps, limit, multiplier, seed and folder.

    Args:
        trainer: As training begins.
        module: Its policy and reference are loaded.
    """
    data: Any = connected(trainer).datamodule
    facts = module.pair.facts()
    share = 100 * facts.trainable / max(facts.parameters, 1)
    folder = trainer.default_root_dir
    preference = isinstance(module, PreferenceAlignment)
    entries = [
        ("model", f"{facts.source}: {large(facts.parameters)} parameters, {large(facts.trainable)} of them train "
                  f"({share:.3g} %), held in {facts.dtype}; licence {facts.licence}"),
        ("computes", _computes(trainer, module, data)),
        ("reference", facts.reference if preference else ""),
        ("objective", objective_in_words(module)),
        ("anchor", settings_of(module.anchor) if preference and module.anchor_means is not None else ""),
        ("data", _data(data)),
        ("left out", _left_out(trainer, data)),
        ("steps", _steps(trainer, data)),
        ("limit", limit_in_words(trainer) if preference else ""),
        ("multiplier", multiplier_in_words(trainer, module) if isinstance(module, PreferenceAlignment) else ""),
        ("seed", str(module.seed)),
        ("run folder", f"{folder} (curves: tensorboard --logdir {folder})"),
    ]  # fmt: skip
    return rows("what will run" if trainer.global_step == 0 else "what goes on", entries)


def objective_in_words(module: StepModule) -> str:
    """The objective or the losses with their settings."""
    if isinstance(module, PreferenceAlignment):
        return settings_of(module.objective)
    if isinstance(module, ScoreModel):
        return "; ".join(settings_of(loss) for loss in (module.reward, module.cost) if loss is not None)
    if isinstance(module, SupervisedFineTuning) and module.token_objective is not None:
        return f"{settings_of(module.token_objective)}, on single tokens"
    return "imitation of the responses (fine-tuning)"


def settings_of(thing: object) -> str:
    """The class of an objective or an anchor, with its settings."""
    name = type(thing).__name__
    if is_dataclass(thing):
        known = {field.name: getattr(thing, field.name) for field in fields(thing)}
    else:
        known = {
            key: value for key, value in getattr(thing, "__dict__", {}).items() if isinstance(value, int | float | str)
        }
    listed = ", ".join(f"{key} {value}" for key, value in known.items() if not key.startswith("_"))
    return f"{name}: {listed}" if listed else name


def limit_in_words(trainer: Trainer) -> str:
    """The limit of each constraint, and where the estimate comes from."""
    dual = dual_of(trainer)
    if dual is None or dual.estimator is None:
        return "none is watched: no cost is estimated (--dual.estimator configs/cost/rollout.yaml estimates one)"
    names = constraints(trainer)
    bounds = dual.limit.reshape(-1).expand(len(names)).tolist()
    costs = [f"cost of {name}" for name in names] if len(names) > 1 else ["cost"]
    listed = ", ".join(f"E[{cost}] <= {bound:g}" for cost, bound in zip(costs, bounds, strict=True))
    often = "each epoch" if dual.epochs.every_n == 1 else f"every {dual.epochs.every_n} epochs"
    steered = f"; {dual.margin.sentence()}" if dual.steps and dual.margin else ""
    return f"{listed}, estimated at the end of {often} by {_estimator(dual.estimator)}{steered}"


def device_in_words(device: torch.device) -> str:
    """What computes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} with {threads} thread{'s' if threads > 1 else ''}"


def _estimator(estimator: object) -> str:
    name, cost = type(estimator).__name__, getattr(estimator, "cost", None)
    prompts, samples = (getattr(estimator, key, None) for key in ("prompts", "samples_per_prompt"))
    by = f", scored by {getattr(cost, '__name__', type(cost).__name__)}" if cost is not None else ""
    if prompts is None or samples is None:
        return f"{name}{by}"
    return f"{name}: {samples} responses to each of {prompts} prompts{by}"


def _computes(trainer: Trainer, module: StepModule, data: Any) -> str:
    ranks = f", {trainer.world_size} ranks" if trainer.world_size > 1 else ""
    with run_precision(module, module.device):
        needed = memory_of_a_step(module, trainer, data)
    memory = plan_memory(needed, data, module.device, ranks_on(module.device, trainer.num_devices))
    return f"in {trainer.precision} on {device_in_words(module.device)}{ranks}; {memory.sentence()}"


def _data(data: Any) -> str:
    report = data.report
    splits, prompts = report.get("splits", {}), report.get("prompts", {})
    unit = "pairs" if hasattr(data, "pairs_per_step") else "responses"
    order = f", chosen is the {data.order} one" if getattr(data, "order", None) in ("helpful", "safer") else ""
    held_out = "" if report.get("held_out", True) else "; nothing is held out: every split is the whole data"
    train = (
        f" (of {prompts['train']:,} prompts)"
        if prompts.get("train", splits.get("train")) != splits.get("train")
        else ""
    )
    counts = ", ".join(f"{count:,} {name}{train if name == 'train' else ''}" for name, count in splits.items())
    return f"{unit}: {counts}{order}{held_out}" if counts else ""


def _left_out(trainer: Trainer, data: Any) -> str:
    report = data.report
    reasons: dict[str, int] = {}
    for part in ("preparation", "tokenisation"):
        for reason, entry in report.get(part, {}).get("dropped", {}).items():
            count = entry["count"] if isinstance(entry, Mapping) else int(entry)
            reasons[reason] = reasons.get(reason, 0) + count
    ranked = sorted(reasons.items(), key=lambda item: -item[1])
    told = [f"{count:,} {reason}" for reason, count in ranked[:REASONS]]
    more = sum(count for _, count in ranked[REASONS:])
    told += [f"{more:,} for other reasons"] if more else []
    ids = getattr(trainer.train_dataloader, "row_ids", None)
    unused = 0 if ids is None else report.get("splits", {}).get("train", 0) - len(ids)
    told += [f"{unused:,} train pairs by the objective, for their labels"] if unused > 0 else []
    rows_out = sum(reasons.values())
    total = f"{rows_out:,} of {rows_out + sum(_kept(report)):,} rows" if rows_out else ""
    return ": ".join(filter(None, (total, ", ".join(told)))) or "no row"


def _kept(report: Mapping[str, Any]) -> list[int]:
    splits = report.get("splits", {}).values()
    return list(splits) if report.get("held_out", True) else [max(splits, default=0)]


def _steps(trainer: Trainer, data: Any) -> str:
    total, each = trainer.estimated_stepping_batches, trainer.num_training_batches
    epochs = trainer.max_epochs
    known = epochs is not None and epochs > 0 and epochs * each == total
    span = f"{total:,}, {epochs} epoch{'s' if epochs != 1 else ''} of {each:,}" if known else f"{total:,}"
    text = span if known else f"{span} (an epoch has {each:,})"
    for step, unit in (("pairs_per_step", "pairs"), ("rows_per_step", "responses")):
        if hasattr(data, step):
            text += f"; {getattr(data, step)} {unit} a step, {_at_a_time(data, unit)}"
    return f"{text}; {trainer.global_step:,} are done" if trainer.global_step else text


def _at_a_time(data: Any, unit: str) -> str:
    tokens, limit = data.largest_micro_batch[0], getattr(data, "micro_batch", None)
    if limit is not None and limit.rows is not None:
        return f"{limit.rows} at a time (at most {tokens:,} tokens)"
    chosen = " (chosen for this machine: data.micro_batch_tokens)" if limit is not None and limit.free else ""
    return f"at most {tokens:,} tokens at a time{chosen}"


def multiplier_in_words(trainer: Trainer, module: PreferenceAlignment) -> str:
    """Where the multiplier starts and how it moves. Empty if the objective does not read it."""
    if not module.objective.reads_multiplier:
        return ""
    dual = dual_of(trainer)
    start = ", ".join(f"{value:g}" for value in module.multiplier.reshape(-1).tolist())
    if dual is None:
        return f"λ stays at {start}"
    if not dual.steps:
        return f"λ stays at {start} ({dual.controller.sentence()})"
    begins = "starts" if trainer.global_step == 0 else "stands"
    return f"λ {begins} at {start} and {dual.controller.sentence()}"
