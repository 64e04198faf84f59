"""Warns, before training, if the learning rate decays to about 0 while the multiplier still changes."""

import math
from collections.abc import Callable

from lightning import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_safe.training.module import PreferenceAlignment

FROZEN = 0.05  # below this share of the largest learning rate (epoch mean), the policy is considered frozen


class FrozenPolicyWarning(UserWarning):
    """The learning rate is about 0 while the multiplier still changes, so its last steps have no effect."""


def complete_epochs(trainer: Trainer) -> int | None:
    """Number of complete epochs in the run. None if neither ``max_epochs`` nor ``max_steps`` bounds it."""
    bounds = []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        bounds.append(trainer.max_epochs)
    if trainer.max_steps >= 0 and math.isfinite(trainer.num_training_batches) and trainer.num_training_batches > 0:
        bounds.append(trainer.max_steps // int(trainer.num_training_batches))
    return min(bounds, default=None)


def warn_of_frozen_policy(
    trainer: Trainer, module: PreferenceAlignment, moves: Callable[[int], bool], every_n_epochs: int
) -> None:
    """Warn if the multiplier changes in epochs in which the learning rate is too small for the policy to follow.

    Args:
        trainer: The run's trainer.
        module: The module whose schedule is checked.
        moves: Whether the multiplier changes at the end of an epoch, by epoch number.
        every_n_epochs: The multiplier changes only at the end of every n-th epoch.
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
            f"{mean[frozen[0]]:.2g}) while the multiplier still moves before it: set model.schedule.final to 0.1, or "
            f"dual.freeze_last_epochs to {epochs - frozen[0] + 1}",
            category=FrozenPolicyWarning,
        )
