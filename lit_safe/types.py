"""The words that every part speaks: what crosses between data, models, objectives and callbacks.

Letters: B pairs, N sequences (2B for pairs), T packed tokens, C cost constraints, V vocabulary. Log-probabilities are
in nats and fp32. A cost is in the units of its annotator and **> 0 is unsafe**; a reward is in Bradley-Terry nats.

This module imports torch and nothing of ours, so that it is cheap to import everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE = -100  # the target of a position that is not scored

Need = Literal["reward", "cost", "flags"]
"""A label an objective cannot do without: ``reward`` and ``cost`` by value, ``flags`` the sign of the cost alone."""

ResponsesFrom = Literal["reference", "model", "people", "unknown"]
"""Who wrote a source's responses: the reference policy itself, another model, people, or nobody says."""


class Pair(NamedTuple):
    """One quantity for both responses of every pair. Each side is [B], or [B, C] for costs of C constraints."""

    chosen: Tensor
    rejected: Tensor

    @property
    def margin(self) -> Tensor:
        """``chosen - rejected``, of the shape of a side."""
        return self.chosen - self.rejected


class Annotation(NamedTuple):
    """What is known of both responses before training. NaN where a label is absent.

    ``draw`` [B] in [0, 1) decides sampled labels (``labels="sampled"``). It is a hash of the run's seed and the pair.
    Training replaces it when the multiplier moves (``lit_safe/label_draws.py``).
    """

    reward: Pair
    cost: Pair
    draw: Tensor | None = None

    @property
    def unsafe(self) -> Pair:
        """[B] bool: h = 1[any cost > 0]. A NaN cost counts as safe here; ``fit`` refuses it where it matters."""
        return Pair(*((c > 0).any(-1) if c.ndim == 2 else c > 0 for c in self.cost))


class PackedSequences(NamedTuple):
    """N token sequences laid end to end, without padding.

    ``target`` is already shifted: ``target[t]`` is the token that position t predicts, IGNORE where the next token is
    not part of a response. ``cu_seqlens`` [N+1] int32 holds the sequence boundaries, 0 first and T last.
    """

    input_ids: Tensor  # [T] int64
    target: Tensor  # [T] int64
    position: Tensor  # [T] int64, from 0 in each sequence
    cu_seqlens: Tensor  # [N+1] int32


class PackedBatch(NamedTuple):
    """B preference pairs. Sequence 2i is the chosen response of pair i, sequence 2i + 1 the rejected one."""

    sequences: PackedSequences
    label: Annotation
    pair_id: Tensor  # [B] int64, a hash of the pair's texts, whichever is chosen
    prompt_id: Tensor  # [B] int64, a hash of the prompt: the cluster of standard errors
    response_length: Pair  # [B] int64 each: scored tokens, the stop token included
    present: Tensor  # [B] bool: False for a filler row, which counts for nothing anywhere
    pairs_in_step: Tensor  # [] int64: true pairs in this optimizer step over all micro-batches and ranks
    reference_logp: Pair | None = None  # [B] nats each, where the reference was scored beforehand


class SequenceBatch(NamedTuple):
    """N single sequences for supervised fine-tuning; the fields mean what they mean in PackedBatch."""

    sequences: PackedSequences
    row_id: Tensor  # [N] int64
    prompt_id: Tensor  # [N] int64
    present: Tensor  # [N] bool
    tokens_in_step: Tensor  # [] int64: scored tokens in this optimizer step over all micro-batches and ranks


class Scored(NamedTuple):
    """What an objective says of each pair: ``loss`` [B] nats, ``weight`` [B] (0 drops the pair)."""

    loss: Tensor
    weight: Tensor


class SequenceLogp(NamedTuple):
    """[N] summed response log-probabilities in nats: of the policy (with gradient) and of the reference (without)."""

    policy: Tensor
    reference: Tensor


class SequenceStats(NamedTuple):
    """[N] sums over response positions of what a pass over both models tells, in nats, without gradient."""

    policy_logp: Tensor
    reference_logp: Tensor
    kl: Tensor  # KL(policy || reference) over the full vocabulary
    entropy: Tensor  # of the policy's next token


class Prompt(NamedTuple):
    """One prompt to answer: its id (a hash of it), its token ids as rendered, and its plain text."""

    prompt_id: int
    ids: tuple[int, ...]
    text: str


class ScoredResponse(NamedTuple):
    """A response to a prompt as text, with its costs (C of them)."""

    prompt: str
    response: str
    cost: tuple[float, ...]


class CostEstimate(NamedTuple):
    """E[cost] under the current policy: ``mean`` and ``stderr`` [] or [C] in cost units, from ``count`` samples.

    ``unsafe`` [] is the share of samples with any cost > 0; ``effective`` the effective sample size. ``also`` holds
    what else the pass measured, by logged name; ``samples`` a few of the scored texts, for people to read; ``clusters``
    the prompts that errors are clustered by, None where samples are independent; ``bounds`` [2] or [2, C] what E[cost]
    lies above and below with 95 % each, NaN where too little is known, None where Student's t of ``stderr`` does.
    """

    mean: Tensor
    stderr: Tensor
    count: int  # type: ignore[assignment]  # shadows tuple.count
    unsafe: Tensor
    effective: float
    also: Mapping[str, float] = MappingProxyType({})
    samples: tuple[ScoredResponse, ...] = ()
    clusters: int | None = None
    bounds: Tensor | None = None


@runtime_checkable
class Objective(Protocol):
    """A pairwise loss. Pure: no logging, no reduction, no device code, no random source."""

    @property
    def beta(self) -> float:
        """What turns a log-ratio into an implicit reward: ``reward = beta * logratio``."""

    @property
    def needs(self) -> tuple[Need, ...]:
        """All labels that the loss reads. Every command checks that the data have them."""

    @property
    def reads_multiplier(self) -> bool:
        """Whether the loss depends on ``multiplier``. A dual step is refused where it does not."""

    def __call__(self, logratio: Pair, label: Annotation, multiplier: Tensor) -> Scored:
        """Score B pairs from their log-ratios [B] in nats; ``multiplier`` is [] for one constraint, [C] for C > 1."""


@runtime_checkable
class Selective(Protocol):
    """An objective that trains on some pairs alone: the others leave the training data before steps are made."""

    def keeps(self, label: Annotation) -> Tensor:
        """[B] bool, a function of the labels alone: False exactly where the weight is 0 for every policy."""


@runtime_checkable
class CostFunction(Protocol):
    """Scores text: one cost in declared units for each response, > 0 is unsafe."""

    # jsonargparse takes a protocol whose __call__ returns a class for a factory of that class's instances, and then
    # refuses every implementation in a YAML: so the annotation is Any, and not the Tensor that it is
    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Any:
        """Costs, a Tensor [n] or [n, C], of ``n`` responses to ``n`` prompts."""


@dataclass(frozen=True)
class ModelFacts:
    """What a report has to name of a model: counts are parameters, ``source`` where it came from."""

    source: str
    reference: str
    parameters: int
    trainable: int
    dtype: str
    backend: str
    licence: str = "unknown"
    own_reference: bool = True  # an untouched policy is its own reference: margins at step 0 are 0


class ModelLimits(NamedTuple):
    """What a model can read: ids below ``vocabulary``, sequences of at most ``positions`` (None is any length)."""

    vocabulary: int
    positions: int | None


class MemoryEstimate(NamedTuple):
    """Bytes of a training step. The first four are exact for AdamW in the weights' own dtype, the next two rough."""

    weights: int
    reference: int  # what is not shared with the policy
    gradients: int
    optimizer: int  # two moments for each trainable number
    activations: int  # of the layers that gradients flow through
    logits: int
    buckets: int = 0  # copies of the gradients that several ranks send each other

    @property
    def total(self) -> int:
        """Their sum: the peak to expect."""
        return sum(self)


@runtime_checkable
class PairModel(Protocol):
    """The policy and its reference, as a LightningModule sees them. Implementations are ``torch.nn.Module``s.

    Constructors do no I/O; ``load`` does it once and may be called again freely.
    """

    def load(self) -> None:
        """Build or read both models. Idempotent."""

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that belongs to the policy."""

    def policy_logp(self, sequences: PackedSequences) -> Tensor:
        """[N] summed response log-probs of the policy, fp32 nats, with gradient where enabled."""

    def reference_logp(self, sequences: PackedSequences) -> Tensor:
        """[N] summed response log-probs of the reference, fp32 nats, never with gradient."""

    def reference_digest(self) -> str:
        """A hash of all that the reference's log-probs depend on but rounding: its weights and its configuration."""

    def both_logp(self, sequences: PackedSequences) -> SequenceLogp:
        """What ``policy_logp`` and ``reference_logp`` give, which may take less together than one after the other."""

    def sequence_stats(self, sequences: PackedSequences) -> SequenceStats:
        """Response log-probs under both, KL and entropy, from one pass of each model, never with gradient."""

    def support_logratio(self, sequences: PackedSequences, floor: float) -> Tensor:
        """[N] sums over response positions of min(0, log of policy / reference) of the mass of plausible tokens.

        Those are the tokens to which the reference gives at least ``floor``. Nats, with gradient where enabled.
        """

    def generate(
        self, prompts: Sequence[Sequence[int]], uniforms: Tensor, temperature: float = 1.0, reference: bool = False
    ) -> list[list[int]]:
        """Sample a response to each prompt; ``uniforms`` [n, max_new_tokens] in [0, 1) is all the randomness.

        A response ends with its stop token where it reached one within ``max_new_tokens``. ``reference`` lets the
        reference answer instead of the policy.
        """

    def stop_at(self, ids: Iterable[int]) -> None:
        """End responses at these tokens too, which the data's chat template puts after an answer; kept in the state."""

    def stop_tokens(self) -> frozenset[int]:
        """Every token that ends a response: ``stop_at``'s, the generation config's, the tokenizer's end of sequence.

        A response is complete if one of them is its last token.
        """

    def facts(self) -> ModelFacts:
        """What a report names of this pair."""

    def memory_estimate(self, tokens: int, scored: int) -> MemoryEstimate:
        """Bytes of a training step with ``tokens`` in a micro-batch, ``scored`` of them in responses."""

    def save_pretrained(self, folder: str, *, adapter_only: bool = False) -> None:
        """Write the policy as a Hugging Face folder (safetensors), merged, or its adapter alone."""
