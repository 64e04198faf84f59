"""The layers at the bottom of a decoder that never change. Their output, the trunk state, is computed once.

The library's own decoder runs in every case, with its embedding, masks and rotary code. The layers that are left out
pass on a tensor in place of a computation, so that every other layer keeps its number, its type and its mask.

Letters: K rows of the decoder's input, S longest of them, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from models.layers import layers_of, modules_after, replaced, returned_tuples


@dataclass(frozen=True)
class Trunk:
    """The first layers of a decoder, none of which trains.

    Args:
        depth: Number of layers, at least 1 and fewer than the decoder has.
        tuples: For each layer of the decoder, whether it returns a tuple that begins with the hidden states.
    """

    depth: int
    tuples: tuple[bool, ...]

    @classmethod
    def of(cls, model: transformers.PreTrainedModel) -> Trunk | None:
        """The frozen layers at the bottom of ``model``, or None if there are none or their input trains.

        Raises:
            ValueError: If its layers do not run once each and in order.
        """
        depth = frozen_layers(model)
        if not depth:
            return None
        return cls(depth, returned_tuples(model))

    @contextmanager
    def given(self, model: transformers.PreTrainedModel, state_KSD: Tensor) -> Iterator[None]:
        """A block in which the first layers compute nothing, and the next one reads ``state_KSD``."""
        layers = list(layers_of(model))
        forwards: dict[nn.Module, Callable[..., Any]] = {
            layer: self._passing(number, lambda hidden_KSD: hidden_KSD)
            for number, layer in enumerate(layers[: self.depth])
        }
        # a state kept in a smaller type than the decoder's is widened
        forwards[layers[0]] = self._passing(
            0, lambda hidden_KSD: state_KSD.to(torch.promote_types(state_KSD.dtype, hidden_KSD.dtype))
        )
        with replaced(forwards):
            yield

    @contextmanager
    def alone(self, model: transformers.PreTrainedModel) -> Iterator[list[Tensor]]:
        """A block in which only the first layers compute. The list receives their output [K, S, D] of each pass."""
        layers, seen = list(layers_of(model)), []

        def keep(hidden_KSD: Tensor) -> Tensor:
            seen.append(hidden_KSD)
            return hidden_KSD

        forwards = {
            layers[number]: self._passing(number, keep if number == self.depth else lambda hidden_KSD: hidden_KSD)
            for number in range(self.depth, len(layers))
        }
        with replaced(forwards):
            yield seen

    def _passing(self, number: int, then: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        """A layer's forward function that returns ``then`` of its hidden states."""

        def forward(*given: Any, **named: Any) -> Any:
            hidden_KSD = then(given[0] if given else named["hidden_states"])
            return (hidden_KSD,) if self.tuples[number] else hidden_KSD

        return forward


def frozen_layers(model: transformers.PreTrainedModel) -> int:
    """Number of layers at the bottom whose output no trainable parameter changes; all but the last at most."""
    try:
        layers = layers_of(model)
    except ValueError:
        return 0
    frozen = [not any(p.requires_grad for p in layer.parameters()) for layer in layers]
    depth = min(frozen.index(False) if False in frozen else len(layers), len(layers) - 1)
    if not depth:
        return 0
    above = parameters_above(model, depth)
    return depth if all(p in above for p in model.parameters() if p.requires_grad) else 0


def parameters_above(model: transformers.PreTrainedModel, depth: int) -> set[nn.Parameter]:
    """The parameters that have no part in the output of the first ``depth`` layers. A tied head has one."""
    above = [*layers_of(model)[depth:], *modules_after(model), model.get_output_embeddings()]
    return {p for module in above for p in module.parameters()} - set(model.get_input_embeddings().parameters())
