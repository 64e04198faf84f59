"""How the dual step is logged: curves by the names of constraints, and texts."""

from collections.abc import Mapping
from textwrap import indent
from typing import TYPE_CHECKING

import torch
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from lit_safe.types import ScoredResponse

if TYPE_CHECKING:
    from lit_safe.module import PreferenceAlignment

CODE = " " * 4  # Markdown shows a text so indented as it stands


def publish(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Log values at this optimizer step, and offer them to callbacks."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=trainer.global_step)
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})


def publish_multiplier(trainer: Trainer, module: "PreferenceAlignment") -> None:
    """Log the multiplier, unless the objective does not read it."""
    if module.objective.reads_multiplier:
        publish(trainer, named("dual/multiplier", module.multiplier, trainer))


def suffixes(trainer: Trainer, value: Tensor) -> list[str]:
    """What names of curves end with: nothing where there is one constraint."""
    if value.ndim == 0:
        return [""]
    return [f"_{name}" for name in trainer.datamodule.constraints]  # type: ignore[attr-defined]


def constraints(trainer: Trainer) -> tuple[str, ...]:
    """The names of the data's constraints."""
    return tuple(trainer.datamodule.constraints)  # type: ignore[attr-defined]


def named(tag: str, value: Tensor, trainer: Trainer) -> dict[str, float]:
    """A value [] or [C] under ``tag`` and the constraint's name."""
    names = suffixes(trainer, value)
    return {tag + name: entry for name, entry in zip(names, value.reshape(-1).tolist(), strict=True)}


def show(trainer: Trainer, samples: tuple[ScoredResponse, ...]) -> None:
    """Responses for people to read, in TensorBoard."""
    text = "\n\n---\n\n".join(
        f"{indent(s.prompt, CODE)}\n\ncost {', '.join(f'{c:.3g}' for c in s.cost)}:\n\n{indent(s.response, CODE)}"
        for s in samples
    )
    for logger in trainer.loggers:
        if text and isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text("dual/samples", text, trainer.global_step)
