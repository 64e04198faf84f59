"""Reads a model so that no rank ever holds it whole beyond its parts, except the first one, which reads it.

Every rank builds the model on the meta device, where it has no numbers. Then one unit at a time (a decoder layer) gets
its weights from the first rank and is sharded, which frees all of it but this rank's part.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
import transformers
from torch import Tensor, nn

from lit_safe.precision import TrainableDtype, hold
from models.adaptation import Adaptation
from models.backbone import Backbone, no_dropout
from models.digest import fingerprint
from models.layouts import Layout
from models.sharding.plan import ShardingPlan, units_of
from models.sharding.wrap import make_root, shard

T = TypeVar("T")


class Outline(NamedTuple):
    """What the other ranks must know to build the same model without its numbers."""

    kind: type[transformers.PreTrainedModel]
    config: transformers.PretrainedConfig
    generation: transformers.GenerationConfig | None
    dtypes: dict[str, torch.dtype]
    trains: dict[str, bool]
    base: str
    first: str


def read_sharded(
    load: Callable[[], transformers.PreTrainedModel],
    adaptation: Adaptation,
    plan: ShardingPlan,
    *,
    backend: str,
    layout: Layout,
    disable_dropout: bool,
    trainable_dtype: TrainableDtype,
) -> tuple[Backbone, str, str]:
    """The sharded policy, and the fingerprints of its weights before and after adaptation. All ranks must call this.

    Args:
        load: Reads the model. Only the first rank calls it.
        adaptation: Marks or adds the parameters that train.
        plan: The ranks and their devices.
        backend: Of the backbone.
        layout: Of the backbone.
        disable_dropout: Set every dropout to 0.
        trainable_dtype: Type of the weights that train.

    Raises:
        Exception: What ``load`` raises on the first rank, on every rank.
        ValueError: If the model's layers cannot be found, or the model cannot be built without its numbers.
    """
    values: dict[str, Tensor] = {}  # the first rank's

    def read() -> Outline:
        model = load()
        units_of(model)  # refuses it before anything is shared
        base = fingerprint(model)
        source = Backbone(adaptation.apply(model), backend=backend, layout=layout)
        values.update({**dict(source.named_buffers()), **dict(source.named_parameters())})
        dtypes = {name: p.dtype for name, p in source.named_parameters()}
        trains = {name: p.requires_grad for name, p in source.named_parameters()}
        lm = source.causal_lm
        return Outline(type(lm), lm.config, lm.generation_config, dtypes, trains, base, fingerprint(source))

    outline = _of_first(read)
    backbone = _outlined(outline, adaptation, backend, layout, trainable_dtype)
    if disable_dropout:
        no_dropout(backbone)
    for unit in units_of(backbone.causal_lm):
        _fill(backbone, unit, values, plan)
        shard(unit, plan)
    _fill(backbone, backbone, values, plan)
    backbone.place = plan.device
    make_root(backbone, plan)  # the root is left whole, as verifying needs it
    return backbone, outline.base, outline.first


def _outlined(
    outline: Outline, adaptation: Adaptation, backend: str, layout: Layout, trainable_dtype: TrainableDtype
) -> Backbone:
    """The model on the meta device, with the types and the marks of the one that was read."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = outline.kind(outline.config)
        model.tie_weights()
        model.generation_config = outline.generation
        backbone = Backbone(adaptation.apply(model.eval()), backend=backend, layout=layout)
    found = dict(backbone.named_parameters())
    apart = sorted(found.keys() ^ outline.dtypes.keys())
    if apart:
        raise ValueError(
            f"{outline.kind.__name__} cannot be sharded: built from its configuration it has other weights than the "
            f"model that was read ({apart[0]} is one of {len(apart)}): use --trainer.strategy ddp"
        )
    for name, parameter in found.items():
        parameter.data = torch.empty_like(parameter, dtype=outline.dtypes[name], device="meta")
        parameter.requires_grad_(outline.trains[name])
    hold(backbone.parameters(), trainable_dtype)
    return backbone


@torch.no_grad()
def _fill(backbone: Backbone, unit: nn.Module, values: dict[str, Tensor], plan: ShardingPlan) -> None:
    """Replace what lies on the meta device in ``unit`` by the first rank's numbers, which then forgets its own."""
    names = {id(tensor): name for name, tensor in chain(backbone.named_parameters(), backbone.named_buffers())}
    made: dict[int, Any] = {}  # by the identity of the old tensor: tied names share one
    for module in unit.modules():
        for store in (module._parameters, module._buffers):
            for key, old in store.items():
                if old is None or not old.is_meta:
                    continue
                if id(old) not in made:
                    new = _shared(old, values.pop(names[id(old)], None), plan)
                    made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                store[key] = made[id(old)]


def _shared(like: Tensor, mine: Tensor | None, plan: ShardingPlan) -> Tensor:
    """The first rank's numbers ``mine``, in the type of ``like``, on every rank's device."""
    if mine is None:
        found = torch.empty(like.shape, dtype=like.dtype, device=plan.device)
    else:
        found = mine.detach().to(plan.device, like.dtype, copy=True).contiguous()
        mine.data = mine.new_empty(0)  # the model that was read loses it
    dist.broadcast(found, src=0)
    return found


def _of_first(make: Callable[[], T]) -> T:
    """What ``make`` returns or raises on the first rank, on every rank."""
    told: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            told[0] = make()
        except Exception as error:
            known = error if type(error).__module__ == "builtins" else RuntimeError(f"{type(error).__name__}: {error}")
            dist.broadcast_object_list([None, known], src=0)
            raise
    dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    found: T = told[0]
    return found
