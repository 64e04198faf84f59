"""The optimizer over what trains."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn


def gentle_adamw(params: Any) -> torch.optim.Optimizer:
    """AdamW at 1e-6 without weight decay, as configs/base.yaml has it: torch's own 1e-3 ruins a language model."""
    return torch.optim.AdamW(params, lr=1e-6, weight_decay=0.0)


def optimizer_over(
    build: OptimizerCallable, parameters: Sequence[nn.Parameter], *, decay_norms: bool
) -> torch.optim.Optimizer:
    """An optimizer whose weight decay spares norms and biases, which are the parameters of one dimension.

    They are few and set the scale of what passes them: decay towards 0 is no prior for them (as in transformers'
    Trainer). An optimizer without weight decay has one group of parameters.

    Args:
        build: Makes an optimizer of parameters, or of groups of them.
        parameters: What trains.
        decay_norms: Whether norms and biases decay too.
    """
    made = build(parameters)
    vectors = [p for p in parameters if p.ndim < 2]
    if decay_norms or not vectors or not made.defaults.get("weight_decay"):
        return made
    matrices = [p for p in parameters if p.ndim >= 2]
    groups = [{"params": matrices}] if matrices else []
    return build([*groups, {"params": vectors, "weight_decay": 0.0}])
