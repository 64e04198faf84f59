"""Logs the dual step: curves by constraint name, and sampled texts."""

from collections.abc import Mapping
from textwrap import indent
from typing import TYPE_CHECKING

import torch
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from lit_safe.constraint.limits import Standing
from lit_safe.protocols.trainer import connected
from lit_safe.types import CostEstimate, ScoredResponse

if TYPE_CHECKING:
    from lit_safe.training.module import PreferenceAlignment

CODE = " " * 4  # Markdown shows indented text verbatim


def publish(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Log values at this optimizer step, and add them to the trainer's callback metrics."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=trainer.global_step)
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})


def publish_multiplier(trainer: Trainer, module: "PreferenceAlignment") -> None:
    """Log the multiplier, unless the objective does not read it."""
    if module.objective.reads_multiplier:
        publish(trainer, named("dual/multiplier", module.multiplier, trainer))


def suffixes(trainer: Trainer, value: Tensor) -> list[str]:
    """Suffixes of curve names by constraint. With one constraint, the suffix is empty."""
    if value.ndim == 0:
        return [""]
    return [f"_{name}" for name in connected(trainer).datamodule.constraints]


def constraints(trainer: Trainer) -> tuple[str, ...]:
    """The names of the data's constraints."""
    return tuple(connected(trainer).datamodule.constraints)


def named(tag: str, value: Tensor, trainer: Trainer) -> dict[str, float]:
    """The entries of a value [] or [C], named by ``tag`` and the constraint's name."""
    names = suffixes(trainer, value)
    return {tag + name: entry for name, entry in zip(names, value.reshape(-1).tolist(), strict=True)}


def measured(
    trainer: Trainer, multiplier: Tensor, estimate: CostEstimate, standing: Standing, used: Mapping[str, Tensor]
) -> dict[str, float]:
    """The entries of an epoch's end.

    Args:
        trainer: For the names of the constraints.
        multiplier: After the step, [] or [C].
        estimate: E[cost] and what else was measured.
        standing: The estimate beside its limits.
        used: What the step used, by logged name, [] or [C] each.
    """
    limit = torch.tensor(standing.limit, dtype=torch.float64).reshape(estimate.mean.shape)
    each = {
        "dual/multiplier": multiplier,
        "dual/cost": estimate.mean,
        "dual/stderr": estimate.stderr,
        "dual/violation": estimate.mean - limit,
        "dual/upper": estimate.mean.new_tensor(standing.upper).reshape(estimate.mean.shape),
        **used,
    }
    entries = {name: number for tag, value in each.items() for name, number in named(tag, value, trainer).items()}
    return {**entries, "dual/unsafe": float(estimate.unsafe), "dual/effective": estimate.effective, **estimate.also}


def show(trainer: Trainer, samples: tuple[ScoredResponse, ...]) -> None:
    """Write responses and their costs to TensorBoard, for people to read."""
    text = "\n\n---\n\n".join(
        f"{indent(s.prompt, CODE)}\n\ncost {', '.join(f'{c:.3g}' for c in s.cost)}:\n\n{indent(s.response, CODE)}"
        for s in samples
    )
    for logger in trainer.loggers:
        if text and isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text("dual/samples", text, trainer.global_step)
