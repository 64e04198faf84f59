"""What the training code, the rollouts and the commands ask of a model. Three interfaces, by who calls.

Letters: N sequences, T tokens, D hidden width. Log-probs are sums over a response's tokens, in nats, fp32.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from lit_safe.types import (
    MemoryEstimate,
    ModelFacts,
    PackedSequences,
    SequenceLogp,
    SequenceStats,
    TokenScores,
    TrunkStorage,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@runtime_checkable
class LogRatios(Protocol):
    """Scores responses under a policy and its reference. Training, evaluation and cost estimates call it."""

    def policy_logp(self, sequences: PackedSequences) -> Tensor:
        """[N] summed response log-probs of the policy, fp32 nats, with gradient where enabled."""

    def reference_logp(self, sequences: PackedSequences) -> Tensor:
        """[N] summed response log-probs of the reference, fp32 nats, never with gradient."""

    def reference_digest(self) -> str:
        """A hash of the reference's weights and configuration, which determine its log-probs up to rounding."""

    def both_logp(self, sequences: PackedSequences) -> SequenceLogp:
        """The results of ``policy_logp`` and ``reference_logp``. One combined call may be cheaper than two."""

    def sequence_stats(self, sequences: PackedSequences) -> SequenceStats:
        """Response log-probs under both models, KL and entropy, from one pass of each model. Never with gradient."""

    def support_logratio(self, sequences: PackedSequences, floor: float) -> Tensor:
        """[N] sums over response positions of min(0, log(policy mass / reference mass)) of plausible tokens.

        A token is plausible if the reference gives it a probability of at least ``floor``. The mass is the total
        probability of these tokens. In nats, with gradient where enabled.
        """


@runtime_checkable
class Responder(Protocol):
    """Answers prompts, as policy or as reference. Rollouts call it."""

    def generate(
        self, prompts: Sequence[Sequence[int]], uniforms: Tensor, temperature: float = 1.0, reference: bool = False
    ) -> list[list[int]]:
        """Sample a response to each prompt. All random numbers are in ``uniforms`` [n, max_new_tokens], in [0, 1).

        A response ends with its stop token, or after ``max_new_tokens`` tokens. With ``reference``, the reference
        answers instead of the policy.
        """

    def stop_at(self, ids: Iterable[int]) -> None:
        """Add tokens that end a response, e.g. those that the data's chat template appends. Saved in the state."""

    def stop_tokens(self) -> frozenset[int]:
        """All tokens that end a response: from ``stop_at``, the generation config and the tokenizer's end of sequence.

        A response is complete if its last token is one of them.
        """


@runtime_checkable
class Kept(Protocol):
    """Loads, describes and saves a model. The LightningModules and the commands call it."""

    def load(self) -> None:
        """Build or read both models. Further calls do nothing."""

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The policy's tokenizer."""

    def facts(self) -> ModelFacts:
        """The facts about this pair for reports."""

    def memory_estimate(self, tokens: int, scored: int) -> MemoryEstimate:
        """Bytes of a training step with ``tokens`` tokens in a micro-batch, ``scored`` of them in responses."""

    def save_pretrained(self, folder: str, *, adapter_only: bool = False) -> None:
        """Write the policy as a Hugging Face folder (safetensors): merged, or only its adapter."""


@runtime_checkable
class HasTrunk(Protocol):
    """A pair whose policy may have frozen layers at the bottom. Training asks for it and does without it."""

    def trunk_storage(self) -> TrunkStorage | None:
        """Where training stores their output; None if it does not."""

    def trunk_digest(self) -> str:
        """A hash of everything that ``trunk_states`` depends on besides the sequences."""

    def trunk_states(self, sequences: PackedSequences) -> Tensor:
        """[T, D] their output for every token, without gradient."""


@runtime_checkable
class MayLackReference(Protocol):
    """A pair that can do without a reference. Training asks it to, before it is loaded, if the objective needs none.

    Without a reference, ``sequence_stats`` gives NaN for what compares the two models, and all else that reads the
    reference raises a ValueError.
    """

    has_reference: bool

    def without_reference(self) -> None:
        """Make no reference on loading, unless the user has chosen one. Does nothing once the pair is loaded."""


def has_reference(pair: object) -> bool:
    """Whether the pair has a reference, as it does unless it says otherwise."""
    return bool(getattr(pair, "has_reference", True))


@runtime_checkable
class ScoresTokens(Protocol):
    """A pair that gives a number for each scored token. Token objectives ask for it."""

    def token_scores(self, sequences: PackedSequences, kl_at: Tensor | None) -> TokenScores:
        """Log-probs of the R targets, and KL(policy || reference) at those that ``kl_at`` [K] counts; None: nowhere.

        Both have gradients to the policy where enabled. The reference runs only if some position is asked for.
        """


@runtime_checkable
class LaysOut(Protocol):
    """A pair that computes its models' rows on the host. Training asks for it and does without it."""

    def laid_out(self, sequences: PackedSequences) -> PackedSequences:
        """The sequences with ``laid_out``, for the pair's present layout."""


@runtime_checkable
class FreesReference(Protocol):
    """A pair whose reference need not stay in memory. Training asks for it and does without it."""

    def free_reference(self) -> None:
        """Give back the memory of the reference. Whatever asks for the reference later reads it again."""


@runtime_checkable
class Shardable(Protocol):
    """A pair whose weights can be divided over ranks. A sharded strategy asks for it."""

    def shard_over(self, plan: Any) -> None:
        """Divide both models when they are loaded, as ``plan`` says (``models.sharding.plan``)."""

    def whole_weights(self) -> AbstractContextManager[None]:
        """A block in which ranks may compute different numbers of passes. All ranks must enter it."""

    def reshard(self) -> None:
        """Give back the weights that passes without gradient have left whole, before anything reads or changes them."""


@runtime_checkable
class ScoringResponder(LogRatios, Responder, Protocol):
    """Answers prompts and scores responses: what an evaluation, a cost estimate and an anchor need."""


class HasPair(Protocol):
    """A LightningModule, or anything else with a pair."""

    @property
    def pair(self) -> ScoringResponder:
        """The policy and its reference."""


@runtime_checkable
class PairModel(ScoringResponder, Kept, Protocol):
    """A policy and its reference: what a LightningModule trains. Implementations are ``torch.nn.Module``s.

    Constructors do no I/O. ``load`` does it on the first call; further calls do nothing.
    """
