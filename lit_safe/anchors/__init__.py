"""Terms beside a pairwise objective that keep the policy where the pairs say nothing.

A pairwise loss fixes log-ratios up to a constant per prompt. Responses that no pair holds absorb that constant, and the
policy may leave its reference's support while every curve of the loss looks well. An anchor holds the constant.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from lit_safe.metrics import Measured
from lit_safe.types import PackedBatch, Pair

if TYPE_CHECKING:
    from lit_safe.module import PreferenceAlignment


class Anchor:
    """An additional term of the training loss, for any objective. A subclass overrides either method, or both.

    ``train/loss`` is the objective's loss and the anchor's term together. ``train/loss/objective`` and
    ``train/loss/anchor`` are the two parts. ``eval/loss`` is the objective's loss alone.
    """

    names: ClassVar[tuple[str, ...]] = ()
    """What ``logged`` measures."""

    def prepare(self, module: "PreferenceAlignment", data: Any) -> None:
        """Called once before the first step of a fit, resumed or not: draw and score what the term needs."""

    def on_pairs(self, module: "PreferenceAlignment", batch: PackedBatch, policy: Pair) -> Tensor | None:
        """[B] nats to add to each pair's loss, from the policy's log-probs.

        ``batch.present`` [B] marks the pairs that count: those that are neither fillers nor dropped by the objective.
        What is returned for the others is ignored, and has no gradient.
        """
        return None

    def on_step(self, module: "PreferenceAlignment", step: int) -> list[Callable[[], Tensor]]:
        """This rank's shares [] of a term of the whole optimizer step, each for one forward and backward pass.

        A share is computed when called; every rank has as many.
        """
        return []

    def logged(self) -> dict[str, Measured]:
        """What the last step measured on this rank, for each of ``names``; called once after each step.

        The mean over the logging window and over all ranks is logged under ``train/``.
        """
        return {}
