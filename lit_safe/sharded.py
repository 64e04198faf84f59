"""Tensors of which each rank holds a part (DTensors): the whole of one, and a part of a whole one.

A tensor that no rank shares passes through both functions, so the same code runs on one process and on several.
This module imports no other module of this project, so every part can use it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole of ``tensor``, equal on every rank. All ranks must call this for a tensor that they share."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """The part of ``tensor`` that this rank holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def as_shared(value: Tensor, like: Tensor) -> Tensor:
    """This rank's part of ``value``, shared over the ranks as ``like`` is. Ranks communicate nothing.

    Args:
        value: Whole, equal on every rank, on any device.
        like: A tensor of the same shape. If no rank shares it, the result is ``value``.

    Raises:
        ValueError: If the shapes differ.
    """
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    if value.shape != like.shape:
        raise ValueError(f"a tensor of shape {list(value.shape)} has no parts of one of shape {list(like.shape)}")
    place = like.to_local().device
    if like.device_mesh.device_type == place.type:
        value = value.to(place)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def is_shared(tensors: Any) -> bool:
    """Whether ranks share one of ``tensors``."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def gathered(state: Any, keep: bool) -> Any:
    """``state`` with every shared tensor inside its mappings, lists and tuples replaced by the whole one, on the CPU.

    All ranks must call this with the same structure. One tensor is gathered at a time.

    Args:
        state: A checkpoint.
        keep: Whether this rank needs the result. If not, shared tensors become empty ones and no memory is held.
    """
    if isinstance(state, DTensor):
        found = whole(state.detach())
        return found.cpu() if keep else torch.empty(0)
    if isinstance(state, dict):
        made = [(key, gathered(value, keep)) for key, value in state.items()]
        if type(state) is dict:
            return dict(made)
        copied = copy.copy(state)  # an OrderedDict of a module keeps its metadata
        copied.update(made)
        return copied
    if type(state) in (list, tuple):
        return type(state)(gathered(value, keep) for value in state)
    return state
