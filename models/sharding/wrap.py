"""A backbone whose weights are divided over ranks. All ranks must call these functions together.

Each decoder layer is a unit of torch's FSDP2: its weights are gathered before it computes and given back after it. The
embeddings, the last norm and the head are one more unit, at the root. It is gathered at the first pass of a step and
stays whole until the step's backward pass, so the log-prob op has the head's whole weight for every micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from models.backbone import Backbone
from models.sharding.plan import ShardingPlan


def shard(module: nn.Module, plan: ShardingPlan) -> None:
    """Divide the weights of ``module`` that are not divided yet. They are freed but for this rank's part."""
    offload: OffloadPolicy = CPUOffloadPolicy(pin_memory=plan.device.type != "cpu") if plan.offload else OffloadPolicy()
    fully_shard(module, mesh=plan.mesh, offload_policy=offload)


@torch.no_grad()
def make_root(backbone: Backbone, plan: ShardingPlan) -> None:
    """Make ``backbone``, whose layers are sharded, the root. A pass begins in ``_decode``, or in ``forward``."""
    shard(backbone, plan)
    register_fsdp_forward_method(backbone, "_decode")
    training = backbone.training
    backbone.eval()  # the first pass decides which unit is the root, and allocates memory outside inference mode
    backbone.response_hidden(backbone.few_tokens())
    backbone.train(training)


def reshard(backbone: nn.Module | None) -> None:
    """Give back every whole weight of ``backbone``. Does nothing to one that is not sharded."""
    for unit in _units(backbone):
        unit.reshard()


@contextmanager
def whole_weights(*backbones: nn.Module | None) -> Iterator[None]:
    """A block in which every weight is whole on every rank, so that ranks may compute different numbers of passes.

    It needs memory for the whole models. They are gathered once, however many passes the block makes. Weights must not
    be changed in it.
    """
    units = [unit for backbone in backbones for unit in _units(backbone)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        roots = {id(backbone) for backbone in backbones}
        for unit in units:
            if id(unit) not in roots:
                unit.set_reshard_after_forward(True, recurse=False)
            unit.reshard()


def _units(backbone: nn.Module | None) -> list[FSDPModule]:
    return [] if backbone is None else [module for module in backbone.modules() if isinstance(module, FSDPModule)]
