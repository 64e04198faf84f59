"""Which model is the reference. It is never a submodule: not in checkpoints, the optimizer or ``parameters()``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from models.backbone import Backbone, no_dropout
from models.sources import ModelSource

OpenReference = Callable[[], AbstractContextManager[Backbone]]
"""A context within which the returned backbone answers as the reference, on the policy's device."""


@runtime_checkable
class Reference(Protocol):
    """Says what the policy is compared with."""

    def attach(self, policy: Backbone) -> OpenReference:
        """Make the reference of a policy that has not trained yet."""

    def describe(self) -> str:
        """What a report says of it."""


@dataclass(frozen=True)
class FrozenCopy:
    """The policy as it was when loaded. Tensors that do not train are shared with the policy, not copied.

    Args:
        dtype: Type of the copy's weights: the policy's own, or a smaller one that saves memory and makes margins at
            step 0 merely close to 0. Nothing is shared across types.
    """

    dtype: Literal["policy", "float32", "bfloat16"] = "policy"

    def attach(self, policy: Backbone) -> OpenReference:
        same = self.dtype == "policy"
        shared = [p for p in policy.parameters() if not p.requires_grad] if same else []
        frozen = _freeze(copy.deepcopy(policy, {id(p): p for p in shared}))
        if not same:
            frozen.to(getattr(torch, self.dtype))

        @contextmanager
        def opened() -> Iterator[Backbone]:
            _follow(frozen, policy, dtype=same)
            yield frozen

        return opened

    def describe(self) -> str:
        return "the policy as loaded, frozen" + ("" if self.dtype == "policy" else f" in {self.dtype}")


@dataclass(frozen=True)
class AdapterOff:
    """The policy with its adapter switched off: no second model in memory."""

    def attach(self, policy: Backbone) -> OpenReference:
        if not hasattr(policy.model, "disable_adapter"):
            raise ValueError("reference AdapterOff needs an adapter: set adaptation to models.adaptation.LoRA")

        @contextmanager
        def opened() -> Iterator[Backbone]:
            with policy.model.disable_adapter():
                yield policy

        return opened

    def describe(self) -> str:
        return "the policy with its adapter off"


@dataclass(frozen=True)
class Checkpoint:
    """Another model, such as the export of a previous stage. Margins at step 0 are then not 0.

    Args:
        source: Where it comes from. Its vocabulary must be the policy's.
    """

    source: ModelSource

    def attach(self, policy: Backbone) -> OpenReference:
        model = self.source.load_model()
        no_dropout(model)
        frozen = Backbone(model, backend=policy.backend, layout=policy.layout)
        mine, theirs = policy.head.weight_VD.shape[0], frozen.head.weight_VD.shape[0]
        if mine != theirs:
            raise ValueError(f"the reference has a vocabulary of {theirs} tokens, the policy one of {mine}")
        frozen.verify()
        _freeze(frozen)

        @contextmanager
        def opened() -> Iterator[Backbone]:
            _follow(frozen, policy, dtype=False)
            yield frozen

        return opened

    def describe(self) -> str:
        return str(self.source.describe())


def _freeze(backbone: Backbone) -> Backbone:
    return backbone.eval().requires_grad_(False)


def _follow(frozen: Backbone, policy: Backbone, *, dtype: bool) -> None:
    """Bring ``frozen`` to the policy's device, and to its types: a precision plugin may have moved or cast it."""
    if not dtype:
        frozen.to(policy.device)
        return
    copies: Iterator[Tensor] = chain(frozen.parameters(), frozen.buffers())
    for mine, theirs in zip(copies, chain(policy.parameters(), policy.buffers()), strict=True):
        mine.data = mine.data.to(device=theirs.device, dtype=theirs.dtype)
