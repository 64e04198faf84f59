"""The policy and its reference, as a LightningModule trains and compares them.

Letters: N sequences, R response positions, D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any, get_args

import torch
import transformers
from torch import Tensor, nn

from lit_safe.phases import phase
from lit_safe.precision import TrainableDtype
from lit_safe.types import (
    MemoryEstimate,
    ModelFacts,
    ModelLimits,
    PackedSequences,
    SequenceLogp,
    SequenceStats,
    TokenScores,
    TrunkStorage,
)
from models.adaptation import Adaptation, Full
from models.adapter import check_adapter
from models.backbone import Backbone, Layout
from models.digest import digest, trunk_digest
from models.export import eos_ids, save_pretrained
from models.facts import model_facts
from models.layouts import LayoutChoice, lay_out
from models.load_checks import SHARDED, check_tokens, say_padded, say_router_loss, verify_layout
from models.memory import memory_estimate
from models.policy_reader import PolicyReader
from models.reference import FrozenCopy, MadeAgain, NoReference, OpenReference, Reference
from models.response_tree import tree_logp
from models.sampling import generate
from models.sharding.pair import ShardablePair
from models.sources import ModelSource
from models.token_scores import token_scores
from models.trainable_state import keep_trainable
from models.trunk_check import find_trunk
from ops.sequence_logratio import support_logratio, token_stats


class PolicyReference(ShardablePair):
    """A policy that trains and a reference that does not.

    ``state_dict`` holds only the trained parameters, and ``load_state_dict`` takes exactly those. Everything else is
    read from ``source`` again; a fingerprint in the state checks that it is the same.

    Args:
        source: Source of the policy's initial weights and of its tokenizer.
        adaptation: Which parameters train; all of them by default.
        reference: The model that the policy is compared with; by default a frozen copy of the policy, or none if the
            objective needs none.
        backend: Log-prob backend, or ``auto``.
        layout: ``padded`` batches, ``packed`` rows without padding, or ``shared`` rows with each prompt once. ``auto``
            is ``shared`` if the model can compute it, else ``padded``.
        gradient_checkpointing: Recompute activations in the backward pass. It saves memory and takes a third more time.
        disable_dropout: Set the dropout of the model (not of a LoRA adapter) to 0.
        trainable_dtype: Type of the weights that train, whatever the checkpoint's type. Use ``bfloat16`` only with an
            optimizer that rounds stochastically or keeps fp32 masters: plain AdamW at 1e-6 would change 1 % of them.
    """

    def __init__(
        self,
        source: ModelSource,
        adaptation: Adaptation | None = None,
        reference: Reference | None = None,
        backend: str = "auto",
        layout: LayoutChoice = "auto",
        gradient_checkpointing: bool = False,
        disable_dropout: bool = True,
        trainable_dtype: TrainableDtype = "float32",
    ) -> None:
        super().__init__()
        self.source = source
        self.adaptation = adaptation or Full()
        self.reference = reference or FrozenCopy()
        self._chose_reference = reference is not None
        self.backend = backend
        self._layout: Layout = "shared" if layout == "auto" else layout
        self._any_layout = layout == "auto"
        self.gradient_checkpointing = gradient_checkpointing
        self.disable_dropout = disable_dropout
        if trainable_dtype not in get_args(TrainableDtype):
            raise ValueError(f"trainable_dtype must be one of {get_args(TrainableDtype)}, got {trainable_dtype!r}")
        if not disable_dropout and self.trunk_storage() is not None:
            raise ValueError(
                "adaptation.cache_trunk: frozen layers with dropout have no fixed output: set disable_dropout"
            )
        self.trainable_dtype = trainable_dtype
        self.policy: Backbone | None = None
        self._verified: set[Layout] = set()
        self._open_reference: OpenReference | None = None
        self._tokenizer: transformers.PreTrainedTokenizerBase | None = None
        self._reader = PolicyReader(source, self.adaptation, backend, disable_dropout, trainable_dtype)
        self._data_stops: frozenset[int] = frozenset()

    @property
    def layout(self) -> Layout:
        """Layout of the sequences for the model and the reference. It can be changed at any time.

        Raises:
            ValueError: On setting an unknown layout, or one in which the loaded model cannot separate sequences.
        """
        return self._layout

    @layout.setter
    def layout(self, layout: Layout) -> None:
        if layout not in get_args(Layout):
            raise ValueError(f"layout must be one of {get_args(Layout)}, got {layout!r}")
        if layout == "shared" and self.sharded:
            raise ValueError(f"layout 'shared' is not possible: {SHARDED}")
        if self.policy is not None:
            self.policy.layout = layout
            if layout not in self._verified:
                try:
                    self.policy.verify()
                except ValueError:
                    self.policy.layout = self._layout
                    raise
                self._verified.add(layout)
        self._layout = layout

    @property
    def has_reference(self) -> bool:
        return not isinstance(self.reference, NoReference)

    def without_reference(self) -> None:
        """Make no reference on loading, unless the user has chosen one. Does nothing once the pair is loaded."""
        if self.policy is None and not self._chose_reference:
            self.reference = NoReference()

    def load(self) -> None:
        """Read the policy, mark the parameters that train, and make the reference. Idempotent."""
        if self.policy is not None:
            return
        if self.sharded and self._layout == "shared":
            say_padded(SHARDED, asked=not self._any_layout)
            self._layout = "padded"
        policy = self._reader.read(self._layout)
        if policy.model is not policy.causal_lm:
            check_adapter(policy.model)
        verify_layout(policy, training=self.disable_dropout, asked=not self._any_layout)
        self._layout = policy.layout
        self._verified = {self._layout}
        if self.gradient_checkpointing:
            policy.checkpoint_activations()
        say_router_loss(policy)
        check_tokens(self.source, self.load_tokenizer, getattr(self.reference, "source", None))
        if self.disable_dropout and not self.sharded:  # with dropout, no layer has the same output twice
            find_trunk(policy, asked=self.trunk_storage() is not None)
        policy.train()  # models are loaded in evaluation mode, which silently disables checkpointing
        self._open_reference = self._opened(policy)
        self.policy = policy
        self.reshard()
        keep_trainable(self)

    def free_reference(self) -> None:
        """Give back the memory of a reference with a model of its own. It is read again when something asks for it."""
        if isinstance(self.reference, MadeAgain) and self._open_reference is not None:
            self._open_reference = None

    def load_tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        """The policy's tokenizer, read once."""
        if self._tokenizer is None:
            self._tokenizer = self.source.load_tokenizer()
        return self._tokenizer

    def laid_out(self, sequences: PackedSequences) -> PackedSequences:
        """The sequences with the rows of the models' input. For sequences on the CPU, nothing is read from a device."""
        return sequences._replace(laid_out=lay_out(sequences, self._layout))

    def policy_logp(self, sequences: PackedSequences) -> Tensor:
        """[N] summed response log-probs of the policy, fp32 nats, with gradient if enabled."""
        return self._loaded()(sequences)

    @torch.no_grad()
    def reference_logp(self, sequences: PackedSequences) -> Tensor:
        """[N] summed response log-probs of the reference, fp32 nats, never with gradient."""
        with phase("reference", whole=True), self._both()[1]() as reference:
            return reference(sequences)

    def both_logp(self, sequences: PackedSequences) -> SequenceLogp:
        """The results of ``policy_logp`` and ``reference_logp``. Models that share a head pass through it in one call.

        They share it if the head is frozen, as with adapters and last layers.
        """
        policy, open_reference = self._both()
        sequences = self._with_trunk(sequences)
        with open_reference() as reference:
            one_head = policy.shares_head(reference)
        if not one_head:
            return SequenceLogp(self.policy_logp(sequences), self.reference_logp(sequences))
        rows = policy.response_hidden(sequences)
        with torch.no_grad(), open_reference() as reference:
            reference_RD = reference.response_hidden(sequences).hidden_RD
        return policy.score_beside(rows, reference_RD)

    def table_logp(
        self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], which: str, rows: int = 512
    ) -> Tensor:
        """[P, R] float64: the result of ``<which>_logp`` for every response to every prompt (``tree_logp``)."""
        opened = self._both()[1]() if which == "reference" else nullcontext(self._loaded())
        with opened as backbone, backbone.computing():
            return tree_logp(backbone, prompts, responses, rows)

    @torch.no_grad()
    def sequence_stats(self, sequences: PackedSequences) -> SequenceStats:
        """Response log-probs under both models, KL and entropy, from one pass of each model, without gradient.

        Without a reference, its log-probs and the KL are NaN.
        """
        policy, open_reference = self._both()
        sequences = self._with_trunk(sequences)
        mine = policy.response_hidden(sequences)
        head = policy.at_head(mine.hidden_RD)
        if not self.has_reference:
            stats = token_stats(head, head, mine.target_R, backend=self.backend)
            logp_N, _, _, entropy_N = map(mine.sums, stats)
            unknown_N = torch.full_like(logp_N, torch.nan)
            return SequenceStats(logp_N, unknown_N, unknown_N, entropy_N)
        with open_reference() as reference:
            theirs_RD = reference.response_hidden(sequences).hidden_RD
            stats = token_stats(head, reference.at_head(theirs_RD), mine.target_R, backend=self.backend)
        return SequenceStats(*map(mine.sums, stats))

    def token_scores(self, sequences: PackedSequences, kl_at: Tensor | None) -> TokenScores:
        """Log-probs of the targets, and KL at those that ``kl_at`` counts: see ``models.token_scores``."""
        return token_scores(*self._both(), sequences, kl_at)

    def support_logratio(self, sequences: PackedSequences, floor: float) -> Tensor:
        """[N] sums over response positions of min(0, log of policy / reference) of the mass of plausible tokens.

        A token is plausible if the reference gives it at least ``floor``; if there is none, the likeliest token is.
        Nats, with gradient if enabled.
        """
        policy, open_reference = self._both()
        sequences = self._with_trunk(sequences)
        mine = policy.response_hidden(sequences)
        with open_reference() as reference:
            with torch.no_grad():
                theirs_RD = reference.response_hidden(sequences).hidden_RD
            kept_R = support_logratio(policy.at_head(mine.hidden_RD), reference.at_head(theirs_RD), floor)
        return mine.sums(kept_R)

    def generate(
        self, prompts: Sequence[Sequence[int]], uniforms: Tensor, temperature: float = 1.0, reference: bool = False
    ) -> list[list[int]]:
        """Sample a response to each prompt from the policy or the reference; see ``models.sampling.generate``."""
        opened = self._both()[1]() if reference else nullcontext(self._loaded())
        with opened as backbone, backbone.computing():
            stop_ids = sorted(self.stop_tokens())
            return generate(backbone.causal_lm, prompts, uniforms, temperature=temperature, stop_ids=stop_ids)

    def stop_at(self, ids: Iterable[int]) -> None:
        """Also end responses at these tokens, which the data's template puts after an answer. The state holds them."""
        self._data_stops |= frozenset(ids)

    def stop_tokens(self) -> frozenset[int]:
        """Every token that ends a response: those of ``stop_at``, of the generation config, and the tokenizer's eos."""
        end = self.load_tokenizer().eos_token_id
        own = eos_ids(self._loaded().causal_lm.generation_config)
        return self._data_stops | own | ({end} if end is not None else set())

    def facts(self) -> ModelFacts:
        """The description of this pair in reports."""
        return model_facts(self._loaded(), self.source, self.reference)

    def save_pretrained(self, folder: str, *, adapter_only: bool = False) -> None:
        """Write the policy as a Hugging Face folder (safetensors): merged, or only its adapter."""
        stop_ids = self.stop_tokens()
        save_pretrained(self._loaded(), self.load_tokenizer(), folder, adapter_only=adapter_only, stop_ids=stop_ids)

    def memory_estimate(self, tokens: int, scored: int) -> MemoryEstimate:
        """Bytes of a training step with ``tokens`` in a micro-batch, of which ``scored`` are response tokens."""
        policy, held = self._loaded(), list[nn.Parameter]()
        if self._open_reference is not None and self.has_reference:
            with self._open_reference() as reference:
                held = list(reference.parameters())
        size = {"tokens": tokens, "scored": scored, "sharers": self.sharers}
        try:
            return memory_estimate(policy, held, checkpointed=self.gradient_checkpointing, **size)
        finally:
            self.reshard()  # the estimate makes passes

    def base_fingerprint(self) -> str:
        """A hash of the weights as read from ``source``, from at most 1024 numbers of each tensor."""
        self._loaded()
        return self._reader.base

    def reference_digest(self) -> str:
        """A hash of everything that the reference's log-probs depend on, including every bit of its weights."""
        policy, open_reference = self._both()
        trained = [p for p in policy.parameters() if p.requires_grad]  # none does while an adapter is off
        with open_reference() as reference:
            return digest(reference, trained)

    def trunk_storage(self) -> TrunkStorage | None:
        """Where training stores the hidden states below the layers that train; None if it stores none."""
        asked = getattr(self.adaptation, "trunk_storage", None)
        return None if asked is None else asked()

    def trunk_digest(self) -> str:
        """A hash of everything that the results of ``trunk_states`` depend on besides their sequences."""
        return trunk_digest(self._loaded())

    def trunk_states(self, sequences: PackedSequences) -> Tensor:
        """[T, D] hidden states of every token below the layers that train, without gradient."""
        return self._loaded().trunk_states(sequences)

    def _with_trunk(self, sequences: PackedSequences) -> PackedSequences:
        """The sequences with the states of the frozen layers, if policy and reference both run on them."""
        policy, open_reference = self._both()
        if sequences.trunk is not None or policy.trunk is None or not self.has_reference:
            return sequences
        with open_reference() as reference:
            shared = reference.trunk is not None
        return sequences._replace(trunk=policy.trunk_states(sequences)) if shared else sequences

    def limits(self) -> ModelLimits | None:
        """Longest sequence and vocabulary of the policy; None before it is loaded."""
        return None if self.policy is None else self.policy.limits()

    def get_extra_state(self) -> dict[str, Any]:
        return {"base_fingerprint": self._reader.base, "stop_ids": sorted(self._data_stops)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if state["base_fingerprint"] != self.base_fingerprint():
            raise ValueError(
                f"this checkpoint was trained from other weights than {self.source.describe()} holds now: "
                f"fingerprint {state['base_fingerprint']}, here {self._reader.base}"
            )
        self.stop_at(state.get("stop_ids", ()))  # checkpoints of an earlier version lack them

    def _loaded(self) -> Backbone:
        if self.policy is None:
            raise RuntimeError("the pair is not loaded: call load() (a LightningModule's configure_model does)")
        return self.policy

    def _both(self) -> tuple[Backbone, OpenReference]:
        policy = self._loaded()
        if self._open_reference is None:
            self._open_reference = self._opened(policy)
        return policy, self._open_reference
