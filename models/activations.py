"""Measures what a decoder keeps for its backward pass, by running it on a few tokens.

No formula covers every architecture, adapter, attention kernel and autocast. The tensors that autograd saves do.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lit_safe.types import IGNORE, PackedSequences
from models.backbone import Backbone

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
    products = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
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
    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # it holds them, so that no address is used twice

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        policy.response_hidden(_sequence(tokens, policy.device))
    return sum(storage.nbytes() for storage in kept.values())


def _sequence(tokens: int, device: torch.device) -> PackedSequences:
    """One sequence of token 0, the last position scored."""
    target_T = torch.full((tokens,), IGNORE, device=device)
    target_T[-1] = 0
    position_T = torch.arange(tokens, device=device)
    bounds_N1 = torch.tensor([0, tokens], dtype=torch.int32, device=device)
    return PackedSequences(torch.zeros_like(position_T), target_T, position_T, bounds_N1)
