"""A learning rate that dies before the multiplier stops moving: counted ahead, and warned about."""

import math
from collections.abc import Callable

from lightning import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_safe.module import PreferenceAlignment

FROZEN = 0.05  # an epoch whose mean learning rate is under this share of the run's largest moves no policy


class FrozenPolicyWarning(UserWarning):
    """The learning rate dies before the multiplier stops: its last steps reach no policy."""


def complete_epochs(trainer: Trainer) -> int | None:
    """Complete epochs in the whole run, None where neither ``max_epochs`` nor ``max_steps`` bounds it."""
    bounds = []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        bounds.append(trainer.max_epochs)
    if trainer.max_steps >= 0 and math.isfinite(trainer.num_training_batches) and trainer.num_training_batches > 0:
        bounds.append(trainer.max_steps // int(trainer.num_training_batches))
    return min(bounds, default=None)


def warn_of_frozen_policy(
    trainer: Trainer, module: PreferenceAlignment, moves: Callable[[int], bool], every_n_epochs: int
) -> None:
    """Warn where a multiplier moves (``moves`` of an epoch's number) and no policy follows it.

    Args:
        trainer: Of the run.
        module: Whose schedule may die.
        moves: Whether the end of an epoch moves the multiplier.
        every_n_epochs: The multiplier moves at the end of every n-th epoch alone.
    """
    total, steps, epochs = (
        int(trainer.estimated_stepping_batches),
        trainer.num_training_batches,
        complete_epochs(trainer),
    )
    if epochs is None or not math.isfinite(steps):
        return
    steps = int(steps)
    factor = [module.schedule(step, total) for step in range(min(total, epochs * steps))]
    mean = [sum(factor[e * steps : (e + 1) * steps]) / steps for e in range(epochs)]
    frozen = [
        epoch
        for epoch in range(1, epochs)
        if mean[epoch] < FROZEN * max(factor) and moves(epoch - 1) and epoch % every_n_epochs == 0
    ]
    if frozen:
        rank_zero_warn(
            f"the learning-rate schedule freezes the policy in epoch {frozen[0]} (mean factor "
            f"{mean[frozen[0]]:.2g}) while the multiplier still moves before it: keep the schedule's `final` "
            f"above 0, or set dual.freeze_last_epochs to {epochs - frozen[0] + 1}",
            category=FrozenPolicyWarning,
        )
