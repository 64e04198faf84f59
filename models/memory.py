"""What a training step of a pair will take, before it takes it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from lit_safe.types import MemoryEstimate
from models.backbone import Backbone


def memory_estimate(
    policy: Backbone, reference: Iterable[nn.Parameter], *, tokens: int, scored: int, checkpointed: bool
) -> MemoryEstimate:
    """Estimate one optimizer step.

    Args:
        policy: The model that trains.
        reference: Parameters of the model it is compared with, some or all of which may be the policy's.
        tokens: Tokens in a micro-batch, padding included.
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
    layers = config.num_hidden_layers
    kept = layers * tokens * config.hidden_size * size + layer if checkpointed else layers * layer
    return MemoryEstimate(
        weights=_bytes(own),
        reference=_bytes(p for p in reference if id(p) not in shared),
        gradients=trained,
        optimizer=2 * trained,
        activations=kept,
        logits=3 * 4 * scored * policy.head.weight_VD.shape[0],  # logits, softmax, gradient in fp32
    )


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)
