"""Prepares a policy for a command: data, weights, precision, device, stop tokens."""

from typing import Any

import torch
from lightning import Trainer
from torch import nn

from lit_safe.execution.devices import chosen_device, use
from lit_safe.precision import check_trainer_precision
from lit_safe.runs import checkpoints
from lit_safe.training.stepping import StepModule

POLICY = "pair."  # prefix of the policy's names in a module's state


def make_ready(
    module: StepModule, data: Any, device: str, trainer: Trainer | None = None, stage: str = "validate"
) -> torch.device:
    """Read data and model, and move the model to its device in the trainer's precision.

    Args:
        module: From ``--model``.
        data: From ``--data``. The policy uses its stop tokens.
        device: As for ``lit_safe.execution.devices.chosen_device``.
        trainer: From ``--trainer``. Its precision and accelerator are used. With None, the weights' dtype is used.
        stage: Stage for the ``setup`` of the data.

    Returns:
        The model's device.

    Raises:
        ValueError: If the device does not exist or the trainer's precision is not supported. Raised before anything is
            read.
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
    """Load the policy that a checkpoint's run ships into a prepared module. Returns the checkpoint.

    Only the policy's weights are loaded. Other entries, such as the state of an anchor or objective, are ignored.

    Raises:
        CheckpointError: If the file is damaged or not a checkpoint.
        ValueError: If the checkpoint has no policy, or its policy was trained from other weights.
    """
    checkpoint = checkpoints.load_checkpoint(path)
    state = checkpoint["state_dict"] = checkpoints.shipped(checkpoint)
    policy = {name.removeprefix(POLICY): value for name, value in state.items() if name.startswith(POLICY)}
    if not policy:
        raise ValueError(f"{path} is not a checkpoint of lit_safe: it has no weights named {POLICY}*")
    assert isinstance(module.pair, nn.Module)
    module.pair.load_state_dict(policy)
    return checkpoint
