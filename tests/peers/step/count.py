"""Counts the floating-point operations of the matrix products that a step asks for, with the same hooks on both sides.

Letters: K rows of a batch, S their length, D width, R scored rows of the head, V vocabulary.
"""

from typing import Any

import torch
import transformers
from torch import Tensor, nn


class Operations:
    """Adds up the operations of the models that it watches.

    A forward pass takes 2 operations a weight and token, a backward pass 4, and attention 4 K S² D_heads a layer in a
    forward pass and twice that in a backward one, as if no mask left any part out. Padding counts, and so does a
    forward pass that activation checkpointing repeats. Logits that a head computes again in its backward pass do not.

    Attributes:
        done: Operations so far.
    """

    def __init__(self) -> None:
        self.done = 0.0

    def watch(self, model: transformers.PreTrainedModel) -> None:
        """Count every pass through the layers of a decoder, all of which have the same shape."""
        config: Any = model.config
        layers: Any = model.base_model.layers
        linears = [part for part in layers[0].modules() if isinstance(part, nn.Linear)]
        weights = sum(linear.weight.numel() for linear in linears)
        heads = config.num_attention_heads * (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )

        def forward(hidden_KSD: Tensor) -> float:
            rows, length = hidden_KSD.shape[:2]
            return len(layers) * (2.0 * weights * rows * length + 4.0 * heads * rows * length**2)

        # inside the layer, because checkpointing repeats what is inside it
        def before(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            self.done += forward(arguments[0])

        def after(_: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            output_KSD = output[0] if isinstance(output, tuple) else output
            self._backward(2 * forward(output_KSD), output_KSD)

        linears[0].register_forward_pre_hook(before)
        layers[0].register_forward_hook(after)

    def head(self, hidden_RD: Tensor, vocabulary: int) -> None:
        """Count a pass of hidden states through the head."""
        rows, width = hidden_RD.shape
        self.done += 2.0 * rows * width * vocabulary
        self._backward(4.0 * rows * width * vocabulary, hidden_RD)

    def _backward(self, operations: float, tensor: Tensor) -> None:
        """Count ``operations`` once the backward pass reaches ``tensor``."""

        def reached(_: Tensor) -> None:
            self.done += operations

        if torch.is_grad_enabled() and tensor.requires_grad:
            tensor.register_hook(reached)
