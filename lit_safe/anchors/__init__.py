"""Anchors: extra loss terms that limit the policy's drift from the reference on responses outside the pairs.

A pairwise loss determines log-ratios only up to a constant per prompt. Probability mass can therefore move to responses
that are in no pair. The policy may leave the reference's support although the loss curves look good. An anchor fixes
this constant.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from torch import Tensor

from lit_safe.protocols.pair import ScoringResponder
from lit_safe.types import ChosenPairs, Measured, Objective, PackedBatch, Pair


class Anchored(Protocol):
    """The part of the LightningModule that an anchor uses."""

    @property
    def seed(self) -> int:
        """The run's seed."""

    @property
    def pair(self) -> ScoringResponder:
        """The policy and its reference."""

    @property
    def objective(self) -> Objective:
        """The objective of the run."""

    @property
    def multiplier(self) -> Tensor:
        """[] or [C] nats per cost unit."""


class Anchor:
    """An extra term of the training loss, for any objective. Subclasses override ``on_pairs``, ``on_step`` or both.

    ``train/loss`` is the sum of the objective's loss and the anchor's term. ``train/loss/objective`` and
    ``train/loss/anchor`` are the two parts. ``eval/loss`` is only the objective's loss.
    """

    names: ClassVar[tuple[str, ...]] = ()
    """Names of the quantities that ``logged`` returns."""

    reads_reference: ClassVar[bool] = False
    """Whether the term needs the reference. It is then loaded even if the objective needs none, and stays in memory."""

    def prepare(self, module: Anchored, data: Any) -> None:
        """Draw and score what the term needs. Called once before the first step of every fit, also when resumed."""

    def choose(self, module: Anchored, batch: PackedBatch) -> ChosenPairs | None:
        """The pairs of a batch on the host that ``on_pairs`` will use, so that a step need not read which they are.

        None leaves it to ``on_pairs``.
        """
        return None

    def on_pairs(self, module: Anchored, batch: PackedBatch, policy: Pair) -> Tensor | None:
        """[B] nats to add to the pairs' losses, computed from the policy's log-probs. None adds nothing.

        ``batch.present`` [B] is True for pairs that are neither fillers nor dropped by the objective. Values returned
        for the other pairs are ignored and get no gradient.
        """
        return None

    def on_step(self, module: Anchored, step: int) -> list[Callable[[], Tensor]]:
        """This rank's parts [] of a loss term for the whole optimizer step.

        Each part is computed when it is called, and gets its own forward and backward pass. All ranks must return
        equally many parts.
        """
        return []

    def logged(self) -> dict[str, Measured]:
        """The values of the last step on this rank, by ``names``. Called once after each step.

        Their means over the logging window and all ranks are logged under ``train/``.
        """
        return {}
