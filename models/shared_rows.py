"""Rows in which a prompt stands once, before all its responses: the attention mask of every layer.

A token sees its prompt and its own response up to itself, as far as its layer lets a token see. What a layer lets it
see is asked of the library: the mask that the layer gets for a plain row of the same length, read at the tokens'
positions. Windows, chunks and layer types thereby need no code of their own.

Letters: K rows of the decoder's input, S longest of them, P positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from models.layers import decoder_of, layers_of, replaced, returned_tuples
from models.library_masks import packing

Forward = Callable[..., Any]

ROUND = 64  # masks are made for a multiple of this length, so that few lengths are asked for
TAKE_A_MASK = ("sdpa", "eager", "flex_attention")
"""Implementations of attention in transformers that read any mask. On a GPU ``flex_attention`` skips hidden blocks."""


class PlainMasks:
    """What each layer of a model lets a token of a plain row see. It is asked for once for each length."""

    def __init__(self) -> None:
        self._length = 0
        self._of_layer: list[int] = []
        self._seen_PP: list[Tensor] = []

    def at(
        self, model: transformers.PreTrainedModel, length: int, device: torch.device
    ) -> tuple[list[int], list[Tensor]]:
        """For each layer the index of its mask, and the masks [P, P], bool with True at visible tokens; P >= length."""
        if length > self._length or self._seen_PP[0].device != device:
            limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or length
            self._ask(model, max(length, min(limit, -(-length // ROUND) * ROUND)), device)
        return self._of_layer, self._seen_PP

    @torch.no_grad()
    def _ask(self, model: transformers.PreTrainedModel, length: int, device: torch.device) -> None:
        layers = list(layers_of(model))
        given: list[Tensor | None] = []
        decoder = decoder_of(model)
        ids = torch.zeros(1, length, dtype=torch.int64, device=device)
        tuples = returned_tuples(model)
        implementation = decoder.config._attn_implementation
        try:
            decoder.config._attn_implementation = "sdpa"  # its masks are bool tensors; no layer computes here
            recording = {layer: _recording(layer, tuples[n], given) for n, layer in enumerate(layers)}
            with replaced(recording), packing(False):
                decoder(input_ids=ids, use_cache=False)
        finally:
            decoder.config._attn_implementation = implementation
        kinds: list[Tensor | None] = []
        self._of_layer, self._seen_PP = [], []
        for mask in given:
            same = [n for n, kind in enumerate(kinds) if kind is mask]
            if not same:
                kinds.append(mask)
                self._seen_PP.append(_visible(mask, length, device))
            self._of_layer.append(same[0] if same else len(kinds) - 1)
        self._length = length


@contextmanager
def separated(
    model: transformers.PreTrainedModel, plain: PlainMasks, branch_KS: Tensor, position_KS: Tensor, longest: int
) -> Iterator[Any]:
    """A block in which no token of a row sees a token of another branch than its own and the prompt.

    Args:
        model: The causal language model.
        plain: What its layers let a token see.
        branch_KS: 0 at prompts, n at the n-th response of a row, -1 at padding.
        position_KS: A token's position in its sequence.
        longest: Tokens of the longest sequence.

    Yields:
        A mask for the decoder, so that it makes none itself. Every layer gets its own mask in any case.

    Raises:
        ValueError: If the model's implementation of attention takes no such mask.
    """
    implementation = model.config.get_text_config()._attn_implementation
    if implementation not in TAKE_A_MASK:
        raise ValueError(f"attention {implementation!r} cannot read any mask, {', '.join(TAKE_A_MASK)} can")
    of_layer, seen_PP = plain.at(model, longest, position_KS.device)
    masks: list[Any]
    if implementation == "flex_attention":
        masks = [_blocks(branch_KS, position_KS, seen) for seen in seen_PP]
    else:
        masks = [mask_of(branch_KS, position_KS, seen) for seen in seen_PP]
    if implementation == "eager":
        dtype = model.get_input_embeddings().weight.dtype
        masks = [torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min) for mask in masks]
    elif implementation == "sdpa" and (products := _products(model)) is not None:
        # of a bool mask, torch makes and keeps such a tensor in every layer
        masks = [torch.zeros_like(mask, dtype=products).masked_fill_(~mask, -torch.inf) for mask in masks]
    layers = layers_of(model)
    forwards: Mapping[nn.Module, Forward] = {
        layer: _with_mask(layer, masks[kind]) for layer, kind in zip(layers, of_layer, strict=True)
    }
    with replaced(forwards):
        yield masks[0]


def _products(model: nn.Module) -> torch.dtype | None:
    """The type in which attention multiplies; None if it is not known, as with weights of several types."""
    kinds = {(p.device.type, p.dtype) for p in model.parameters()}
    kind = next(iter(kinds))[0]
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    found = {dtype for _, dtype in kinds}
    return found.pop() if len(found) == 1 else None


def mask_of(branch_KS: Tensor, position_KS: Tensor, seen_PP: Tensor) -> Tensor:
    """[K, 1, S, S] bool: whether the token of a row sees another one."""
    k = torch.arange(len(branch_KS), device=branch_KS.device)[:, None, None, None]
    s = torch.arange(branch_KS.shape[1], device=branch_KS.device)
    return rule(branch_KS, position_KS, seen_PP)(k, k, s[:, None], s)


def rule(branch_KS: Tensor, position_KS: Tensor, seen_PP: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Whether token ``q`` of row ``k`` sees token ``s``, in any head, as FlexAttention asks for it."""

    def sees(k: Tensor, head: Tensor, q: Tensor, s: Tensor) -> Tensor:
        branch = branch_KS[k, s]
        same = (branch == 0) | (branch == branch_KS[k, q])
        return same & seen_PP[position_KS[k, q], position_KS[k, s]]

    return sees


def _blocks(branch_KS: Tensor, position_KS: Tensor, seen_PP: Tensor) -> BlockMask:
    """The same for FlexAttention."""
    rows, length = branch_KS.shape
    sees = rule(branch_KS, position_KS, seen_PP)
    return create_block_mask(sees, rows, None, length, length, device=branch_KS.device)


def _with_mask(layer: nn.Module, mask: Tensor) -> Forward:
    """The layer's forward function with another mask."""
    forward: Forward = layer.forward
    arguments = inspect.signature(type(layer).forward)

    def masked(*given: Any, **named: Any) -> Any:
        bound = arguments.bind(layer, *given, **named)
        bound.arguments["attention_mask"] = mask
        return forward(*bound.args[1:], **bound.kwargs)

    return masked


def _recording(layer: nn.Module, is_tuple: bool, into: list[Tensor | None]) -> Forward:
    """A forward function that keeps the layer's mask and passes on the hidden states."""
    arguments = inspect.signature(type(layer).forward)

    def forward(*given: Any, **named: Any) -> Any:
        bound = arguments.bind(layer, *given, **named)
        into.append(bound.arguments.get("attention_mask"))
        return bound.args[1:2] if is_tuple else bound.args[1]

    return forward


def _visible(mask: Tensor | None, length: int, device: torch.device) -> Tensor:
    """[P, P] from a mask of the library; none is causal."""
    if mask is None:
        return torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return mask[0, 0]
