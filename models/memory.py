"""Estimates the memory of a pair's training step in advance."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from lit_safe.types import MemoryEstimate
from models.activations import saved_for_backward
from models.backbone import Backbone
from models.layers import layers_of
from models.sharding.plan import units_of
from ops.sequence_logratio.slabs import BLOCK_BYTES

HOLES = {False: 1.0, True: 1.5}
"""Memory that a CPU's C library holds between activations, as a share of them: without and with an adapter.

A small tensor that is kept, such as the inner one of a low-rank layer, lies where a large one was freed, and the next
large one does not fit beside it. Measured on random Llamas under glibc. Without holes (each large tensor mapped by
itself, MALLOC_MMAP_THRESHOLD_=131072) a step of LoRA took half of the memory and 1.4 times the CPU time.
"""


def memory_estimate(
    policy: Backbone,
    reference: Iterable[nn.Parameter],
    *,
    tokens: int,
    scored: int,
    checkpointed: bool,
    sharers: int = 1,
) -> MemoryEstimate:
    """Estimate the memory of an optimizer step at its peak, in bytes.

    Weights, reference and the two moments of AdamW (Kingma and Ba 2015, arXiv:1412.6980; 2 numbers for each weight that
    trains) are held throughout. The backward pass of a later micro-batch holds its activations, the head's blocks, and
    the gradients of the earlier ones. A step of one micro-batch counts the same on a CPU: activations are freed while
    gradients appear, but the allocator seldom returns such small pieces to the system. What it holds between them is
    counted as ``holes``, which the gradients fill.

    Saving a checkpoint and the fused optimizer make no copies.

    Args:
        policy: The model that trains, on its device.
        reference: Parameters of the reference. Some or all of them may be the policy's own.
        tokens: Tokens in a micro-batch, including padding.
        scored: Response tokens among them.
        checkpointed: Whether activations are recomputed in the backward pass.
        sharers: Number of ranks that hold each weight together; 1 if each rank holds all of them.
    """
    own = list(policy.parameters())
    shared = {id(p) for p in own}
    trained = _bytes(p for p in own if p.requires_grad)
    activations = _activations(policy, tokens, checkpointed)
    share = HOLES[policy.model is not policy.causal_lm] if policy.device.type == "cpu" else 0.0
    whole = MemoryEstimate(
        weights=_bytes(own),
        reference=_bytes(p for p in reference if id(p) not in shared),
        gradients=trained,
        optimizer=2 * trained,
        activations=activations,
        logits=_logits(policy, scored),
        buckets=trained if _ranks() > 1 else 0,
        holes=max(0, int(share * activations) - trained - _head_gradient(policy)),
    )
    return whole if sharers == 1 else _shared(whole, policy, sharers)


def _shared(whole: MemoryEstimate, policy: Backbone, sharers: int) -> MemoryEstimate:
    """The estimate of one of the ranks that share weights, gradients and moments.

    ``buckets`` is what is whole for a while: the embeddings and the head with their gradients, the layer that computes
    with its gradients, and the layer that is gathered next. The embeddings and the head of a reference with weights of
    its own stay whole from its first pass on, because no backward pass gives them back.
    """
    layers = [list(unit.parameters()) for unit in units_of(policy.causal_lm)]
    sizes = [(_bytes(layer), _bytes(p for p in layer if p.requires_grad)) for layer in layers]
    root = whole.weights - sum(size for size, _ in sizes)
    root_gradient = whole.gradients - sum(gradient for _, gradient in sizes)
    root_reference = whole.reference * root // max(whole.weights, 1)
    most, gradient = max(size for size, _ in sizes), max(gradient for _, gradient in sizes)
    return whole._replace(
        weights=-(-whole.weights // sharers),
        reference=-(-whole.reference // sharers),
        gradients=-(-whole.gradients // sharers),
        optimizer=-(-whole.optimizer // sharers),
        buckets=root + root_gradient + root_reference + 2 * most + gradient,
    )


def _activations(policy: Backbone, tokens: int, checkpointed: bool) -> int:
    """What the decoder keeps for ``tokens`` tokens.

    With checkpointing it is the input of each layer, and everything of the layer that is recomputed (Chen et al. 2016,
    arXiv:1604.06174).
    """
    saved = saved_for_backward(policy)
    whole = saved.each * tokens + saved.fixed
    layers = _kept_layers(policy)
    if not checkpointed or not layers:
        return whole
    width, size = policy.causal_lm.config.get_text_config().hidden_size, next(policy.parameters()).element_size()
    return layers * tokens * width * size + whole // layers


def _logits(policy: Backbone, scored: int) -> int:
    """What the head needs for ``scored`` rows, and its gradient before it is added to those of earlier micro-batches.

    The gradient of a tied head waits for that of the embedding, so there are two. By then activations are freed, but a
    CPU's allocator seldom returns such small pieces to the system.

    The plain backend holds logits, their softmax and their gradient. The others hold a block of each, a slab of the
    head in the type of the products, and the slopes and the gradient of hidden states in fp32.
    """
    weight_VD = policy.head.weight_VD
    vocabulary, width = weight_VD.shape
    logits = 3 * 4 * scored * vocabulary
    if policy.backend != "reference":
        block = BLOCK_BYTES.get(policy.device.type, BLOCK_BYTES["cpu"])
        logits = min(logits, 4 * block + 2 * 4 * scored * width)
    return logits + _head_gradient(policy)


def _head_gradient(policy: Backbone) -> int:
    weight_VD = policy.head.weight_VD
    tied = policy.causal_lm.get_input_embeddings().weight is weight_VD
    return (2 if tied else 1) * weight_VD.nbytes if weight_VD.requires_grad else 0


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
