"""Input checks. An error names the input and its shape.

Letters: T positions, D hidden width, V vocabulary.
"""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ops.sequence_logratio.reference import IGNORE


def check_head(hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> None:
    """Refuse sharded tensors and shapes that do not match."""
    for name, tensor in (("hidden", hidden_TD), ("weight", weight_VD), ("bias", bias_V)):
        if isinstance(tensor, DTensor):
            raise ValueError(
                f"{name} is a sharded DTensor: call inside the forward of the module FSDP gathers "
                "(or register_fsdp_forward_method), where it is a whole tensor"
            )
    if hidden_TD.ndim != 2 or weight_VD.ndim != 2 or hidden_TD.shape[1] != weight_VD.shape[1]:
        raise ValueError(
            f"need hidden [T, D] and weight [V, D], got {tuple(hidden_TD.shape)}, {tuple(weight_VD.shape)}"
        )
    if bias_V is not None and bias_V.shape != weight_VD.shape[:1]:
        raise ValueError(f"need bias [{len(weight_VD)}], got {tuple(bias_V.shape)}")


def check_dtypes(hidden_TD: Tensor, weight_VD: Tensor) -> None:
    """Refuse two different dtypes, unless autocast sets the dtype of the product."""
    if hidden_TD.dtype != weight_VD.dtype and not under_autocast(hidden_TD):
        raise ValueError(f"hidden is {hidden_TD.dtype} and weight {weight_VD.dtype}; only autocast mixes them")


def under_autocast(tensor: Tensor) -> bool:
    """Whether autocast is on for the tensor's device."""
    kind = tensor.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def check_targets(hidden_TD: Tensor, target_T: Tensor) -> None:
    """Refuse anything but one int64 target per position."""
    if target_T.shape != hidden_TD.shape[:1] or target_T.dtype != torch.int64:
        raise ValueError(f"need int64 targets [{len(hidden_TD)}], got {target_T.dtype} {tuple(target_T.shape)}")


def check_ids(target_T: Tensor, vocabulary: int) -> None:
    """Refuse targets that are neither ids nor ignored. Checked only on a CPU; elsewhere it would stall the device."""
    if target_T.device.type == "cpu" and len(target_T) and not torch.compiler.is_compiling():
        valid_T = (target_T == IGNORE) | ((target_T >= 0) & (target_T < vocabulary))
        if not valid_T.all():
            raise ValueError(f"target {int(target_T[~valid_T][0])} is neither {IGNORE} nor an id of {vocabulary}")
