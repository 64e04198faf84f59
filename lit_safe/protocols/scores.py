"""The interface between ``ScoreModel`` and the model that it trains.

Letters: N sequences, D hidden width, K outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from lit_safe.types import MemoryEstimate, ModelFacts, PackedSequences


@runtime_checkable
class ScoringModel(Protocol):
    """A trunk with a score for each output: the interface for ``ScoreModel``. Implementations are ``nn.Module``s."""

    outputs: tuple[str, ...]

    @property
    def frozen(self) -> bool:
        """Whether only the heads train."""

    @property
    def weight_KD(self) -> Tensor:
        """[K, D] weights of the hidden states."""

    def name_outputs(self, outputs: Sequence[str]) -> None:
        """Set the names of the K outputs, before ``load``."""

    def load(self) -> None:
        """Read the trunk and make the heads. Further calls do nothing."""

    def load_tokenizer(self) -> Any:
        """The tokenizer."""

    def features(self, sequences: PackedSequences) -> Tensor:
        """[N, D] hidden states of the last tokens."""

    def score_features(self, hidden_ND: Tensor) -> Tensor:
        """[N, K] fp32 scores of hidden states."""

    def set_scale(self, scale_D: Tensor) -> None:
        """Divide hidden states by ``scale_D`` [D] before the heads."""

    def trunk_digest(self) -> str:
        """A hash of everything that the hidden states of a frozen trunk depend on."""

    def stop_at(self, ids: Iterable[int]) -> None:
        """Keep the tokens that end responses."""

    def facts(self) -> ModelFacts:
        """The facts about this model for reports."""

    def memory_estimate(self, tokens: int, scored: int) -> MemoryEstimate:
        """Bytes of a training step."""

    def save_pretrained(self, folder: str, *, adapter_only: bool = False, weight_KD: Tensor | None = None) -> None:
        """Write a Hugging Face sequence-classification folder, with other head weights if given."""
