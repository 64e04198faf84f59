"""Shared types: the values that data, models, objectives and callbacks exchange.

Letters: B pairs, N sequences (2B for pairs), T packed tokens, C cost constraints, V vocabulary. Log-probabilities are
in nats and fp32. A cost is in the units of its annotator; **> 0 is unsafe**. A reward is in Bradley-Terry nats.

This module imports no other module of this project, so every part can import it cheaply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, TypedDict, runtime_checkable

import torch
from torch import Tensor

IGNORE = -100  # target of a position that is not scored

LabelNeed = Literal["reward", "cost", "flags"]
"""A label that an objective requires: the value of ``reward`` or ``cost``, or only the cost's sign (``flags``)."""

ExtraNeed = Literal["policy_logp", "length", "mismatched_logratio"]
"""A quantity besides log-ratios and labels that an objective requires: a key of ``Extra``."""

Need: TypeAlias = LabelNeed | ExtraNeed

ResponsesFrom = Literal["reference", "model", "people", "unknown"]
"""Who wrote a source's responses: the reference policy, another model, people, or unknown."""


class Pair(NamedTuple):
    """One quantity for both responses of every pair. Each side is [B], or [B, C] for costs of C constraints."""

    chosen: Tensor
    rejected: Tensor

    @property
    def margin(self) -> Tensor:
        """``chosen - rejected``, with the shape of a side."""
        return self.chosen - self.rejected


class Annotation(NamedTuple):
    """The labels of both responses. A missing label is NaN.

    ``draw`` [B] in [0, 1) decides sampled labels (``labels="sampled"``). It is a hash of the run's seed and the pair.
    Training replaces it when the multiplier changes (``lit_safe/training/label_draws.py``).
    """

    reward: Pair
    cost: Pair
    draw: Tensor | None = None

    @property
    def unsafe(self) -> Pair:
        """[B] bool: h = 1[any cost > 0]. A NaN cost counts as safe here; ``fit`` refuses NaN costs that it needs."""
        return Pair(*((c > 0).any(-1) if c.ndim == 2 else c > 0 for c in self.cost))


class Extra(TypedDict, total=False):
    """What an objective may ask for in ``needs`` besides labels. It gets the keys that it asks for."""

    policy_logp: Pair  # [B] nats: sums over a response, with gradient
    length: Pair  # [B] int64: scored tokens of each response, the stop token included
    mismatched_logratio: Tensor  # [] nats, without gradient: mean log-ratio of the step's responses to other prompts


NO_EXTRA = Extra()
"""Default of an objective's fourth argument."""


class LaidOut(NamedTuple):
    """N sequences as the K rows of S tokens that a model reads. The host computes it, where sizes are known.

    A model that finds it in its input reads no value of a tensor back from its device. R tokens are scored.
    """

    layout: str
    ids_KS: Tensor
    position_KS: Tensor
    branch_KS: Tensor | None  # 0 at prompts, n at the n-th response after it, -1 at padding; None: no branches
    row_T: Tensor  # the place in the rows of every packed token
    column_T: Tensor
    row_R: Tensor  # the place of every token that predicts a scored one
    column_R: Tensor
    target_R: Tensor  # [R] int64, the scored tokens
    cu_responses_N1: Tensor  # [N+1] int32, bounds of each sequence's scored tokens
    longest: int  # tokens of the longest sequence


class PackedSequences(NamedTuple):
    """N concatenated token sequences, without padding.

    ``target`` is already shifted: ``target[t]`` is the token that position t predicts, or IGNORE if the next token is
    not part of a response. ``cu_seqlens`` [N+1] int32 holds the sequence boundaries, 0 first and T last. ``trunk``, if
    known, holds the hidden states of every token after the model's frozen layers; D is the model's width. ``laid_out``
    holds the same sequences as a model's rows, if the host has made them.
    """

    input_ids: Tensor  # [T] int64
    target: Tensor  # [T] int64
    position: Tensor  # [T] int64, from 0 in each sequence
    cu_seqlens: Tensor  # [N+1] int32
    trunk: Tensor | None = None  # [T, D]
    laid_out: Any = None  # LaidOut


class ChosenPairs(NamedTuple):
    """Some of a batch's pairs: their places [b] int64, and their 2 b sequences."""

    place: Tensor
    sequences: PackedSequences


class PackedBatch(NamedTuple):
    """B preference pairs. Sequence 2i is the chosen response of pair i, sequence 2i + 1 the rejected response."""

    sequences: PackedSequences
    label: Annotation
    pair_id: Tensor  # [B] int64, a hash of the pair's texts in either order
    prompt_id: Tensor  # [B] int64, a hash of the prompt; standard errors are clustered by it
    response_length: Pair  # [B] int64 each: scored tokens, the stop token included
    present: Tensor  # [B] bool: False for a filler row, which is ignored everywhere
    pairs_in_step: Tensor  # [] int64: pairs (without fillers) in this optimizer step, over all micro-batches and ranks
    reference_logp: Pair | None = None  # [B] nats each, if precomputed
    anchored: ChosenPairs | None = None  # those that the run's anchor uses, if it chose them ahead


class ScoredTokens(NamedTuple):
    """What a token objective asks of the R scored tokens of a batch, in their order."""

    weight: Tensor  # [R] fp32
    kl_factor: Tensor | None  # [R] factor of KL(policy || reference); None: no KL
    kl_at: Tensor | None  # [K] int64: the tokens, out of R, whose factor is not 0


class SequenceBatch(NamedTuple):
    """N single sequences for supervised fine-tuning. The fields have the same meaning as in PackedBatch."""

    sequences: PackedSequences
    row_id: Tensor  # [N] int64
    prompt_id: Tensor  # [N] int64
    present: Tensor  # [N] bool
    tokens_in_step: Tensor  # [] int64: scored tokens in this optimizer step, over all micro-batches and ranks
    token_weight: Tensor | None = None  # [T] fp32, read at scored positions; a ``TokenObjective`` gives it its meaning
    tokens: ScoredTokens | None = None  # what the run's token objective asks, if it was computed ahead


class Scored(NamedTuple):
    """An objective's result for each pair: ``loss`` [B] in nats and ``weight`` [B] (0 drops the pair)."""

    loss: Tensor
    weight: Tensor


class Measured(NamedTuple):
    """Values [B] of a quantity and their weights [B] (bool or >= 0). A value with weight 0 may be NaN."""

    value: Tensor
    weight: Tensor

    def pooled(self) -> Measured:
        """One entry [1] with the same mean and total weight."""
        weight = self.weight.to(self.value)
        total = torch.where(weight > 0, self.value * weight, 0).sum()
        return Measured((total / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny))[None], weight.sum()[None])


class SequenceLogp(NamedTuple):
    """[N] response log-probabilities (sums, nats) under the policy (with gradient) and the reference (without)."""

    policy: Tensor
    reference: Tensor


class TokenScores(NamedTuple):
    """The R scored positions, in the order of the sequences: [R] each, in nats, with gradient where enabled."""

    logp: Tensor  # of the target under the policy
    kl: Tensor  # KL(policy || reference) over the full vocabulary; 0 without gradient where it was not asked for


class SequenceStats(NamedTuple):
    """Sums over response positions from a forward pass of both models: [N] each, in nats, without gradient."""

    policy_logp: Tensor
    reference_logp: Tensor
    kl: Tensor  # KL(policy || reference) over the full vocabulary
    entropy: Tensor  # of the policy's next token


class Prompt(NamedTuple):
    """A prompt to answer: its id (a hash of the prompt), its rendered token ids, and its plain text."""

    prompt_id: int
    ids: tuple[int, ...]
    text: str


class ResponseIds(NamedTuple):
    """A response of fine-tuning data: its row's id and name, its prompt as plain text, and its token ids."""

    row_id: int
    name: str
    prompt: str
    ids: tuple[int, ...]


class ScoredResponse(NamedTuple):
    """A response to a prompt as text, with its C costs."""

    prompt: str
    response: str
    cost: tuple[float, ...]


class CostEstimate(NamedTuple):
    """E[cost] under the current policy: ``mean`` and ``stderr`` [] or [C] in cost units, from ``count`` samples.

    ``unsafe`` [] is the share of samples with any cost > 0. ``effective`` is the effective sample size. ``also`` has
    further measurements by logged name. ``samples`` are a few of the scored texts, for people to read. ``clusters`` is
    the number of prompts by which errors are clustered, None if samples are independent. ``bounds`` [2] or [2, C] are a
    lower and an upper one-sided 95 % bound on E[cost]: NaN if there are too few data, None to use Student's t with
    ``stderr``. ``spread`` [] or [C] is the standard deviation of the cost of one response to a random prompt.
    ``within`` [] or [C] is the variance among responses to one prompt, averaged over prompts. Both are None if they are
    unknown.
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
    spread: Tensor | None = None
    within: Tensor | None = None

    def cpu(self) -> CostEstimate:
        """The same on the CPU, where the multiplier moves."""
        bounds, spread, within = (None if v is None else v.cpu() for v in (self.bounds, self.spread, self.within))
        known = self._replace(mean=self.mean.cpu(), stderr=self.stderr.cpu(), unsafe=self.unsafe.cpu())
        return known._replace(bounds=bounds, spread=spread, within=within)


@runtime_checkable
class Objective(Protocol):
    """A pairwise loss. It is a pure function: no logging, no reduction, no device code, no random numbers.

    An objective that names a key of ``Extra`` in ``needs`` takes a fourth argument, ``extra: Extra = NO_EXTRA``. One
    with an attribute ``reference_free = True`` needs no reference: none is loaded, and it gets the policy's log-probs
    in place of log-ratios. Call objectives through ``lit_safe.protocols.objective.score``, which does both.
    """

    @property
    def beta(self) -> float:
        """Factor from a log-ratio to an implicit reward: ``reward = beta * logratio``."""

    @property
    def needs(self) -> tuple[Need, ...]:
        """All labels and keys of ``Extra`` that the loss uses. Every command checks that the data have the labels."""

    @property
    def reads_multiplier(self) -> bool:
        """Whether the loss depends on ``multiplier``. If not, a dual step is refused."""

    def __call__(self, logratio: Pair, label: Annotation, multiplier: Tensor) -> Scored:
        """Score B pairs by their log-ratios [B] in nats. ``multiplier`` is [] for one constraint, [C] for C > 1."""


@runtime_checkable
class TokenObjective(Protocol):
    """A loss of single tokens: a function of the target's NLL, plus a factor on KL(policy || reference).

    It is pure, like ``Objective``. A step's loss is the sum over its scored positions / their number.
    """

    def loss(self, nll: Tensor, weight: Tensor) -> Tensor:
        """[R] losses in nats from the targets' NLLs [R] in nats and the positions' weights [R] (1 without any)."""

    def kl_factor(self, weight: Tensor) -> Tensor | None:
        """[R] factors >= 0 on each position's KL. The KL is computed where the factor is not 0; None reads none."""


@runtime_checkable
class Selective(Protocol):
    """An objective that trains on a subset of the pairs. The others are removed before steps are formed."""

    def keeps(self, label: Annotation) -> Tensor:
        """[B] bool, computed only from the labels: False exactly where the weight is 0 for every policy."""


@runtime_checkable
class CostFunction(Protocol):
    """Scores text: one cost per response, in declared units; > 0 is unsafe."""

    # the annotation is Any instead of Tensor: if __call__ of a protocol returns a class, jsonargparse treats the
    # protocol as a factory of that class and refuses every implementation in a YAML
    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Any:
        """The costs of ``n`` responses to ``n`` prompts, a Tensor [n] or [n, C]."""


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a model for reports. Counts are numbers of parameters; ``source`` is where the model came from."""

    source: str
    reference: str
    parameters: int
    trainable: int
    dtype: str
    backend: str
    licence: str = "unknown"
    own_reference: bool = True  # the untrained policy equals its reference, so margins at step 0 are 0
    has_reference: bool = True


class ModelLimits(NamedTuple):
    """Limits of a model's input: ids < ``vocabulary``, at most ``positions`` tokens (None is any length)."""

    vocabulary: int
    positions: int | None


class TrunkStorage(NamedTuple):
    """Where and how the hidden states below the layers that train are stored."""

    folder: str
    bfloat16: bool  # round them to this type; False keeps the type in which they are computed
    max_gib: float  # states of a run that need more are refused


class MemoryEstimate(NamedTuple):
    """Bytes that a training step holds at its peak. The total counts what is beside the program itself.

    The first four are exact for AdamW. The activations are measured on a few tokens, the logits approximate.
    """

    weights: int
    reference: int  # weights that are not shared with the policy
    gradients: int
    optimizer: int  # two moments per trainable parameter
    activations: int  # what the decoder keeps for the backward pass
    logits: int  # what the head needs, with its gradient if it trains
    buckets: int = 0  # copies of the gradients that ranks exchange
    holes: int = 0  # on a CPU: what the C library holds between activations

    @property
    def total(self) -> int:
        """The sum: the expected peak."""
        return sum(self)
