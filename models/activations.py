"""Measures what a decoder keeps for its backward pass, by running it on a few tokens.

No formula covers every architecture, adapter, attention kernel and autocast. The tensors that autograd saves do.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lit_safe.sharded import local
from lit_safe.types import IGNORE, PackedSequences
from models.backbone import Backbone
from models.layouts import lay_out

FEW = 8  # tokens of the shorter of two passes; the longer one has twice as many


class Saved(NamedTuple):
    """Bytes that autograd keeps: ``each`` for every token, and ``fixed`` for a pass (casts of weights, for example)."""

    each: int
    fixed: int


_FOUND: WeakKeyDictionary[Backbone, dict[Hashable, Saved]] = WeakKeyDictionary()
"""What was measured, so that an estimate for another size runs nothing."""


def saved_for_backward(policy: Backbone) -> Saved:
    """What the decoder keeps for its backward pass, without checkpointing, and without the weights themselves.

    Two passes of 8 and 16 tokens give the line through them. A tensor that grows with the square of a sequence's
    length, such as the probabilities of eager attention, is counted at this length only. Fused attention keeps none.
    """
    kind = policy.device.type
    rounds = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    products = torch.get_autocast_dtype(kind) if rounds else None
    key = products, policy.layout, sum(p.requires_grad for p in policy.parameters())
    if key not in (found := _FOUND.setdefault(policy, {})):
        found[key] = _line(policy)
    return found[key]


def _line(policy: Backbone) -> Saved:
    flags = {module: module.training for module in policy.modules()}
    policy.eval()  # transformers checkpoints only in training mode, and nothing draws random numbers
    try:
        short, long = (_saved(policy, FEW * times) for times in (1, 2))
    finally:
        for module, flag in flags.items():
            module.training = flag
    each = max(0, long - short) // FEW
    return Saved(each, max(0, short - FEW * each))


def _saved(policy: Backbone, tokens: int) -> int:
    """Bytes of the distinct tensors that are saved in one pass over a sequence of ``tokens`` tokens."""
    weights = _storages(policy)
    kept: dict[int, torch.UntypedStorage] = {}  # it holds them, so that no address is used twice

    def note(tensor: Tensor) -> None:
        """A hook that gave the tensor back would tie a node to its own output: a cycle that no collector sees."""
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, _nothing):
        policy.response_hidden(_sequence(tokens, policy))
    weights |= _storages(policy)  # those of a sharded model's root are whole by now; its layers have been given back
    return sum(storage.nbytes() for address, storage in kept.items() if address not in weights)


def _nothing(packed: None) -> Tensor:
    raise AssertionError("nothing is kept for a backward pass here")


def _storages(policy: Backbone) -> set[int]:
    return {local(p).untyped_storage()._cdata for p in policy.parameters()}


def _sequence(tokens: int, policy: Backbone) -> PackedSequences:
    """One sequence of token 0, the last position scored. Its rows are known, so nothing is read from the device."""
    target_T = torch.full((tokens,), IGNORE)
    target_T[-1] = 0
    position_T = torch.arange(tokens)
    bounds_N1 = torch.tensor([0, tokens], dtype=torch.int32)
    host = PackedSequences(torch.zeros_like(position_T), target_T, position_T, bounds_N1)
    laid = lay_out(host, policy.layout)
    moved: dict[str, Any] = {
        name: part.to(policy.device) for name, part in laid._asdict().items() if isinstance(part, Tensor)
    }
    return PackedSequences(*(part.to(policy.device) for part in host[:4]))._replace(laid_out=laid._replace(**moved))
