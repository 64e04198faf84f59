"""Names the parts of a Hugging Face causal language model: its decoder and the decoder's layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import nn

from models.library_masks import packing

FAULTS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)
"""What layers raise if they miss something that other layers would have left for them, or cannot read a mask."""


def decoder_of(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """The model below its head.

    Raises:
        ValueError: If the model does not name that part.
    """
    for decoder in (model.base_model, getattr(model, "model", None)):
        if isinstance(decoder, transformers.PreTrainedModel) and decoder is not model:
            return decoder  # the second: Llama4's text model names a part that it does not have
    raise ValueError(f"{type(model).__name__} names no decoder below its head: use another architecture")


def layers_of(model: transformers.PreTrainedModel) -> nn.ModuleList:
    """The decoder layers, first to last.

    Raises:
        ValueError: If the model does not hold them in one list.
    """
    count = model.config.get_text_config().num_hidden_layers
    lists = [m for m in decoder_of(model).modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of {count} decoder layers; use Full or LoRA")
    return lists[0]


@torch.no_grad()
def modules_after(model: transformers.PreTrainedModel) -> list[nn.Module]:
    """The modules that run after the last layer and before the head, found by running a token; their place varies."""
    layers, decoder, after = layers_of(model), decoder_of(model), []
    done = False

    def finished(*given: object) -> None:
        nonlocal done
        done = True

    def seen(module: nn.Module, *given: object) -> None:
        if done and module._parameters:
            after.append(module)

    inside = {id(module) for module in layers.modules()}
    handles = [layers[-1].register_forward_hook(finished)]
    handles += [m.register_forward_hook(seen) for m in decoder.modules() if id(m) not in inside]
    try:
        run_token(model)
    finally:
        for handle in handles:
            handle.remove()
    return after


@torch.no_grad()
def run_token(model: transformers.PreTrainedModel) -> None:
    """Run one token through the decoder in evaluation mode, for the hooks that the caller has set."""
    training = [module for module in model.modules() if module.training]
    try:
        ids = torch.ones(1, 1, dtype=torch.int64, device=next(model.parameters()).device)
        with packing(False):
            decoder_of(model).eval()(input_ids=ids, use_cache=False)
    finally:
        for module in training:
            module.training = True


def returned_tuples(model: transformers.PreTrainedModel) -> tuple[bool, ...]:
    """For each layer, whether it returns a tuple that begins with the hidden states.

    Raises:
        ValueError: If the layers do not all run, once each and in order.
    """
    layers = layers_of(model)
    found: list[tuple[int, bool]] = []
    handles = [
        layer.register_forward_hook(lambda m, _, out, n=n: found.append((n, isinstance(out, tuple))))
        for n, layer in enumerate(layers)
    ]
    try:
        run_token(model)
    finally:
        for handle in handles:
            handle.remove()
    if [number for number, _ in found] != list(range(len(layers))):
        raise ValueError(f"the layers of {type(model).__name__} do not run once each and in order")
    return tuple(is_tuple for _, is_tuple in found)


@contextmanager
def replaced(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """A block in which each module computes the given function. The modules' hooks still run."""
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module, own in before.items():
            if own is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = own
