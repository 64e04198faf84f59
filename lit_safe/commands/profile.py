"""Says where the time of a training step goes."""

from pathlib import Path
from typing import Any

from lightning import Trainer

from lit_safe.commands.sizes import check_sizes
from lit_safe.protocols.trainer import connected
from lit_safe.training.step_profile import StepProfile
from lit_safe.training.stepping import StepModule


def profile(module: StepModule, data: Any, *, trainer: Trainer, steps: int = 5, warm_up: int = 1) -> int:
    """Print where the time of a training step goes, by part, and write a trace of one step.

    It trains for a few steps as ``fit`` would, and saves no checkpoint. ``profile.json`` and ``trace.json`` in the run
    folder have the numbers and the trace. The parts are data, policy forward, reference, head, backward, optimizer,
    metrics, and the rest (the loss, the trainer's loop). The reference is scored in every step, unless
    ``--model.precompute_reference true``. On a GPU each part waits for the device.

    Args:
        module: From ``--model``.
        data: From ``--data``.
        trainer: From ``--trainer``. Its device, strategy, precision and run folder are used. Its callbacks, loggers and
            validations are left out.
        steps: Number of timed steps.
        warm_up: Number of steps before them.

    Returns:
        The exit status, 0.

    Raises:
        ValueError: If a number is below 1.
    """
    check_sizes(steps=steps, warm_up=warm_up)
    measure = StepProfile(Path(trainer.default_root_dir), steps, warm_up)
    connected(trainer).callbacks = [measure]
    trainer.loggers = []
    trainer.limit_val_batches = 0
    trainer.fit_loop.max_epochs = -1
    trainer.fit_loop.epoch_loop.max_steps = measure.total
    trainer.fit(module, datamodule=data)
    return 0
