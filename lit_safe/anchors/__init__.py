"""Terms beside a pairwise objective that keep the policy where the pairs say nothing.

A pairwise loss fixes log-ratios up to a constant per prompt. Responses that no pair holds absorb that constant, and the
policy may leave its reference's support while every curve of the loss looks well. An anchor holds the constant.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lit_safe.types import PackedBatch, Pair

if TYPE_CHECKING:
    from lit_safe.module import PreferenceAlignment


class Anchor:
    """An additional term of the training loss, for any objective. A subclass overrides either method, or both."""

    def prepare(self, module: "PreferenceAlignment", data: Any) -> None:
        """Called once before the first step of a fit, resumed or not: draw and score what the term needs."""

    def on_pairs(self, module: "PreferenceAlignment", batch: PackedBatch, policy: Pair) -> Tensor | None:
        """[B] nats to add to each pair's loss, from the policy's log-probs; dropped pairs are left out."""
        return None

    def on_step(self, module: "PreferenceAlignment", step: int) -> list[Callable[[], Tensor]]:
        """This rank's shares [] of a term of the whole optimizer step, each for one forward and backward pass.

        A share is computed when called; every rank has as many.
        """
        return []

    def logged(self) -> dict[str, Tensor]:
        """What the last step measured, by name; logged under ``train/``. Tensors, so that no step waits for them."""
        return {}
