"""Optimizers of the trainable parameters."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn


def gentle_adamw(params: Any) -> torch.optim.Optimizer:
    """AdamW with learning rate 1e-6, no weight decay, as in configs/base.yaml. Torch's 1e-3 ruins language models."""
    return torch.optim.AdamW(params, lr=1e-6, weight_decay=0.0)


def optimizer_over(
    build: OptimizerCallable, parameters: Sequence[nn.Parameter], *, decay_norms: bool
) -> torch.optim.Optimizer:
    """Build an optimizer without weight decay on norms and biases (the parameters with one dimension).

    Adam and AdamW then update all weights in one kernel, unless the optimizer's own settings say otherwise.

    Norms and biases set the scale of activations, so decay towards 0 is not a sensible prior for them. Transformers'
    Trainer excludes them too. An optimizer without any weight decay has one parameter group.

    Args:
        build: Builds an optimizer from parameters or parameter groups.
        parameters: The trainable parameters.
        decay_norms: Whether weight decay also applies to norms and biases.
    """
    made = build(parameters)
    vectors = [p for p in parameters if p.ndim < 2]
    if decay_norms or not vectors or not made.defaults.get("weight_decay"):
        return _fused(made)
    matrices = [p for p in parameters if p.ndim >= 2]
    groups = [{"params": matrices}] if matrices else []
    return _fused(build([*groups, {"params": vectors, "weight_decay": 0.0}]))


def _fused(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Let torch's Adam and AdamW use one kernel where it exists and neither ``fused`` nor ``foreach`` is set.

    On a CPU the default makes a dozen passes over weights and moments, and memory bandwidth bounds each of them.
    """
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        return optimizer
    for group in optimizer.param_groups:
        free = group["fused"] is None and group["foreach"] is None and not group["differentiable"]
        if free and all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in group["params"]):
            group["fused"] = True
    return optimizer
