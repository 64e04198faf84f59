"""Estimates the memory of a pair's training step in advance."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from lit_safe.types import MemoryEstimate
from models.backbone import Backbone
from models.layers import layers_of
from ops.sequence_logratio.slabs import BLOCK_BYTES


def memory_estimate(
    policy: Backbone, reference: Iterable[nn.Parameter], *, tokens: int, scored: int, checkpointed: bool
) -> MemoryEstimate:
    """Estimate the memory of one optimizer step.

    Args:
        policy: The model that trains, on its device.
        reference: Parameters of the reference. Some or all of them may be the policy's own.
        tokens: Tokens in a micro-batch, including padding.
        scored: Response tokens among them.
        checkpointed: Whether activations are recomputed in the backward pass.
    """
    own = list(policy.parameters())
    shared = {id(p) for p in own}
    trained = _bytes(p for p in own if p.requires_grad)
    config = policy.causal_lm.config.get_text_config()
    size = own[0].element_size()
    # Korthikanti et al. 2022, arXiv:2205.05198, eq. 1 without attention scores: 17 numbers per token, layer and width
    layer = 17 * tokens * config.hidden_size * size
    layers = _kept_layers(policy)
    kept = layers * tokens * config.hidden_size * size + layer if checkpointed else layers * layer
    logits = 3 * 4 * scored * policy.head.weight_VD.shape[0]  # logits, softmax, gradient in fp32
    if policy.backend != "reference":
        # a block of each, a slab of the head in their type, and the slopes and gradient of hidden states in fp32
        block = BLOCK_BYTES.get(policy.device.type, BLOCK_BYTES["cpu"])
        logits = min(logits, 4 * block + 2 * 4 * scored * config.hidden_size)
    return MemoryEstimate(
        weights=_bytes(own),
        reference=_bytes(p for p in reference if id(p) not in shared),
        gradients=trained,
        optimizer=2 * trained,
        activations=kept,
        logits=logits,
        buckets=trained if _ranks() > 1 else 0,
    )


def _kept_layers(policy: Backbone) -> int:
    """Number of layers whose activations are stored for the backward pass: all from the first one that trains."""
    lm = policy.causal_lm
    count: int = lm.config.get_text_config().num_hidden_layers
    if any(p.requires_grad for p in lm.get_input_embeddings().parameters()):
        return count
    try:
        layers = layers_of(lm)
    except ValueError:
        return count
    frozen = [not any(p.requires_grad for p in layer.parameters()) for layer in layers]
    return count - (frozen.index(False) if False in frozen else count)


def _ranks() -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)
