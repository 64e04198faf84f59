"""What every command does before it runs a policy: data, weights, precision, device, stop tokens."""

from typing import Any

import torch
from lightning import Trainer
from torch import nn

from lit_safe import checkpoints
from lit_safe.devices import chosen_device, use
from lit_safe.precision import check_trainer_precision
from lit_safe.stepping import StepModule

POLICY = "pair."  # what a module's state calls its policy


def make_ready(
    module: StepModule, data: Any, device: str, trainer: Trainer | None = None, stage: str = "validate"
) -> torch.device:
    """Read data and model, and bring the model to its device in the trainer's precision.

    Args:
        module: From ``--model``.
        data: From ``--data``; its stop tokens become the policy's.
        device: As for ``lit_safe.devices.chosen_device``.
        trainer: From ``--trainer``, whose precision and accelerator count; None computes in the type of the weights.
        stage: What the data are set up for.

    Returns:
        Where the model lies.

    Raises:
        ValueError: If the device is not there or the trainer's precision is not supported, before anything is read.
    """
    place = chosen_device(device, trainer)
    if trainer is not None:
        check_trainer_precision(str(trainer.precision))
        module.trainer = trainer
    data.setup(stage)
    module.take_stop_tokens(data)
    module.configure_model()
    if trainer is not None:
        trainer.precision_plugin.convert_module(module)
    module.to(use(place))
    return place


def load_checkpoint(module: StepModule, path: str) -> dict[str, Any]:
    """Put the policy that a checkpoint's run ships into a module that is ready; gives all that the checkpoint holds.

    The policy alone is read: a checkpoint that an anchor or another objective left more in is none the worse for it.

    Raises:
        CheckpointError: If the file is damaged, or no checkpoint.
        ValueError: If the checkpoint holds no policy, or one that was trained from other weights.
    """
    checkpoint = checkpoints.load_checkpoint(path)
    state = checkpoint["state_dict"] = checkpoints.shipped(checkpoint)
    policy = {name.removeprefix(POLICY): value for name, value in state.items() if name.startswith(POLICY)}
    if not policy:
        raise ValueError(f"{path} is no checkpoint of ours: it holds no weights named {POLICY}*")
    assert isinstance(module.pair, nn.Module)
    module.pair.load_state_dict(policy)
    return checkpoint
