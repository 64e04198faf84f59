"""How a model is divided over ranks, and its units: the parts whose weights are whole at the same time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import transformers
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from models.layers import layers_of


class ShardingPlan(NamedTuple):
    """How a pair divides its models. The strategy of the trainer makes it."""

    mesh: DeviceMesh
    """One dimension: the ranks that share each weight."""
    device: torch.device
    """The device of this rank's computations."""
    offload: bool = False
    """Keep this rank's part of the weights, and its optimizer, in the memory of the CPU."""


def units_of(model: transformers.PreTrainedModel) -> list[nn.Module]:
    """The decoder layers, first to last. Everything else (embeddings, last norm, head) is one more unit.

    They are the modules of the classes in the model's ``_no_split_modules``, which transformers' own division of models
    over devices uses, or else the list of decoder layers.

    Raises:
        ValueError: If the model has neither. The message names the model's class.
    """
    names = {name for part in model.modules() for name in _listed(getattr(part, "_no_split_modules", None))}
    found = _outermost(m for m in model.modules() if type(m).__name__ in names)
    if found:
        return found
    try:
        return list(layers_of(model))
    except ValueError:
        raise ValueError(
            f"{type(model).__name__} cannot be sharded: it has no layers of a class in _no_split_modules, and no list "
            "of decoder layers: use --trainer.strategy ddp, or another architecture"
        ) from None


def _listed(names: object) -> list[str]:
    return [str(name) for name in names] if isinstance(names, Iterable) and not isinstance(names, str) else []


def _outermost(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The modules that lie in no other of them."""
    found = list(modules)
    inside = {id(part) for module in found for part in module.modules() if part is not module}
    return [module for module in found if id(module) not in inside and any(True for _ in module.parameters())]
