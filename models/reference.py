"""The choice of the reference. It is never a submodule: not in checkpoints, the optimizer or ``parameters()``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Literal, Protocol, runtime_checkable

import torch
import transformers
from torch import Tensor, nn

from models.adapter import beyond_adapter
from models.backbone import Backbone, no_dropout
from models.sources import ModelSource

OpenReference = Callable[[], AbstractContextManager[Backbone]]
"""A context within which the returned backbone computes the reference, on the policy's device."""


@runtime_checkable
class Reference(Protocol):
    """Defines the model that the policy is compared with.

    The returned backbone has a ``trunk`` only if its first layers compute exactly what the policy's frozen layers do.

    It may have an attribute ``own``: whether it is the untouched policy itself, so that margins at step 0 are 0. The
    default is True. One that holds a model of its own may have the method of ``MadeAgain``.
    """

    def attach(self, policy: Backbone) -> OpenReference:
        """Make the reference of a policy that has not trained yet."""

    def describe(self) -> str:
        """The description for reports."""


@runtime_checkable
class MadeAgain(Protocol):
    """A reference whose model need not stay in memory."""

    def again(self, policy: Backbone, as_loaded: Callable[[], Backbone]) -> OpenReference:
        """The reference of a policy that may have trained. ``as_loaded`` reads the policy's first weights again."""


@dataclass(frozen=True)
class FrozenCopy:
    """The policy as it was when loaded. Tensors that do not train are shared with the policy, not copied.

    Margins at step 0 are exactly 0. If products are computed in bf16 (``trainer.precision: bf16-mixed``), matrices that
    a bf16 checkpoint holds stay in bf16, which is exact. Norms and embeddings have the policy's type.

    Args:
        dtype: Type of the copy's weights: the policy's own, or a smaller one that saves memory and makes margins at
            step 0 only approximately 0. Nothing is shared across types.
    """

    dtype: Literal["policy", "float32", "bfloat16"] = "policy"

    def attach(self, policy: Backbone) -> OpenReference:
        return self._opens(copy.deepcopy(policy, {id(p): p for p in self._shared(policy)}), policy)

    def again(self, policy: Backbone, as_loaded: Callable[[], Backbone]) -> OpenReference:
        frozen, shared = as_loaded(), {id(p) for p in self._shared(policy)}
        for module, theirs in zip(frozen.modules(), policy.modules(), strict=True):
            module._parameters.update({name: p for name, p in theirs._parameters.items() if id(p) in shared})
        frozen.trunk = policy.trunk
        return self._opens(frozen, policy)

    def _shared(self, policy: Backbone) -> list[nn.Parameter]:
        return [p for p in policy.parameters() if not p.requires_grad] if self.dtype == "policy" else []

    def _opens(self, frozen: Backbone, policy: Backbone) -> OpenReference:
        same, shared = self.dtype == "policy", self._shared(policy)
        _freeze(frozen)
        small = _in_bf16(frozen, shared) if same else frozenset()
        if not same:
            frozen.trunk = None  # its own layers round otherwise than the policy's
            for parameter in frozen.parameters():  # buffers keep their type: bf16 would round the rotary frequencies
                parameter.data = parameter.data.to(getattr(torch, self.dtype))

        @contextmanager
        def opened() -> Iterator[Backbone]:
            _follow(frozen, policy, small, dtype=same)
            yield frozen

        return opened

    @property
    def own(self) -> bool:
        return self.dtype == "policy"

    def describe(self) -> str:
        return "the policy as loaded, frozen" + ("" if self.dtype == "policy" else f" in {self.dtype}")


@dataclass(frozen=True)
class AdapterOff:
    """The policy with its adapter switched off, without a second model in memory."""

    def attach(self, policy: Backbone) -> OpenReference:
        if not hasattr(policy.model, "disable_adapter"):
            raise ValueError("reference AdapterOff needs an adapter: set adaptation to models.adaptation.LoRA")
        left = beyond_adapter(policy.model)
        if left:
            raise ValueError(
                f"reference AdapterOff: {left[0]} trains and stays when the adapter is off (one of {len(left)}): use "
                "reference FrozenCopy, or an adapter with bias 'none'"
            )

        @contextmanager
        def opened() -> Iterator[Backbone]:
            # a reference is deterministic, even if the policy in training mode has dropout or router jitter
            training = [module for module in policy.modules() if module.training]
            policy.eval()
            try:
                with policy.model.disable_adapter():
                    yield policy
            finally:
                for module in training:
                    module.training = True

        return opened

    @property
    def own(self) -> bool:
        return True

    def describe(self) -> str:
        return "the policy with its adapter off"


@dataclass(frozen=True)
class NoReference:
    """No model at all, for an objective that compares the policy with none. Whatever reads the reference fails."""

    def attach(self, policy: Backbone) -> OpenReference:
        def opened() -> AbstractContextManager[Backbone]:
            raise ValueError(
                "this run has no reference, because its objective needs none: set model.pair.init_args.reference (for "
                "example {class_path: models.reference.FrozenCopy}) for what measures against one"
            )

        return opened

    @property
    def own(self) -> bool:
        return False

    def describe(self) -> str:
        return "none: the objective needs no reference"


@dataclass(frozen=True)
class Checkpoint:
    """Another model, such as the export of a previous stage. Margins at step 0 are then not 0.

    It computes in the policy's types, so that a checkpoint compared with itself has margins of 0.

    Args:
        source: Source of the model. Its vocabulary must equal the policy's.
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
        embedding = policy.causal_lm.get_input_embeddings().weight
        small: frozenset[int] = frozenset()
        if embedding.dtype == torch.float32:  # as it is for a policy that trains all its weights
            frozen.float()
            small = _in_bf16(frozen, [])

        @contextmanager
        def opened() -> Iterator[Backbone]:
            _follow(frozen, policy, small, dtype=False)
            yield frozen

        return opened

    def again(self, policy: Backbone, as_loaded: Callable[[], Backbone]) -> OpenReference:
        return self.attach(policy)

    @property
    def own(self) -> bool:
        return False

    def describe(self) -> str:
        return str(self.source.describe())


def _freeze(backbone: Backbone) -> Backbone:
    return backbone.eval().requires_grad_(False)


@torch.no_grad()
def _in_bf16(frozen: Backbone, shared: Iterable[nn.Parameter]) -> frozenset[int]:
    """Store weights in bf16 that autocast would round to the same numbers; returns the ids of these parameters.

    A weight qualifies if it belongs to a linear layer, bf16 represents its numbers exactly, and only the product reads
    it.
    """
    kept = {id(p) for p in shared}
    kept |= {id(m.weight) for m in frozen.modules() if isinstance(m, nn.Embedding)}  # a tied head is also an embedding
    small: set[int] = set()
    for module in frozen.modules():
        if not isinstance(module, nn.Linear | transformers.pytorch_utils.Conv1D):
            continue
        weight = module.weight
        if weight.dtype != torch.float32 or id(weight) in kept | small:
            continue
        rounded = weight.bfloat16()
        if torch.equal(rounded.float(), weight):
            weight.data = rounded
            small.add(id(weight))
    return frozenset(small)


def _follow(frozen: Backbone, policy: Backbone, small: Collection[int], *, dtype: bool) -> None:
    """Move ``frozen`` to the policy's device and layout, and with ``dtype`` to its types (a plugin may have cast it).

    Parameters in ``small`` stay in bf16 for products in bf16, and become fp32 for other products.
    """
    frozen.layout = policy.layout
    device = policy.device
    rounds = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.bfloat16
    copies: Iterator[Tensor] = chain(frozen.parameters(), frozen.buffers())
    theirs = chain(policy.parameters(), policy.buffers()) if dtype else None
    for mine in copies:
        like = None if theirs is None else next(theirs)
        place, wanted = (device, mine.dtype) if like is None else (like.device, like.dtype)
        if id(mine) in small:
            if mine.dtype == torch.bfloat16 and rounds:
                wanted = mine.dtype
            elif like is None:
                wanted = torch.float32
        if mine.device != place or mine.dtype != wanted:
            mine.data = mine.data.to(device=place, dtype=wanted)
