"""The policy and its reference: what a LightningModule trains and compares.

Letters: N sequences, R response positions, D hidden width, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any, get_args

import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_safe.precision import TrainableDtype, hold
from lit_safe.types import MemoryEstimate, ModelFacts, ModelLimits, PackedSequences, SequenceLogp, SequenceStats
from models.adaptation import Adaptation, Full
from models.adapter import check_adapter
from models.backbone import Backbone, Layout, no_dropout
from models.digest import digest
from models.export import eos_ids, save_pretrained
from models.load_checks import check_tokens, say_router_loss
from models.memory import memory_estimate
from models.reference import FrozenCopy, OpenReference, Reference
from models.response_tree import tree_logp
from models.sampling import generate
from models.sources import ModelSource
from models.trainable_state import keep_trainable
from ops.sequence_logratio import token_stats

SUPPORT_LOGITS = 2**24  # logits at a time in support_logratio: 64 MiB for each model in fp32


class PolicyReference(nn.Module):
    """A policy that trains and a reference that does not.

    ``state_dict`` holds what trains alone, and ``load_state_dict`` takes exactly that; everything else is what
    ``source`` gives again, which a fingerprint in the state checks.

    Args:
        source: Where the policy's first weights and its tokenizer come from.
        adaptation: Which parameters train; all of them by default.
        reference: What the policy is compared with; a frozen copy of itself by default.
        backend: Log-prob backend, or ``auto``.
        layout: ``padded`` batches, or ``packed`` rows without padding.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, a third more time.
        disable_dropout: Set the dropout of the model (not of a LoRA adapter) to 0.
        trainable_dtype: In which type the weights that train are held, whatever the checkpoint's own. ``bfloat16`` is
            for an optimizer that rounds stochastically or keeps masters: plain AdamW at 1e-6 would move 1 % of them.
    """

    def __init__(
        self,
        source: ModelSource,
        adaptation: Adaptation | None = None,
        reference: Reference | None = None,
        backend: str = "auto",
        layout: Layout = "padded",
        gradient_checkpointing: bool = False,
        disable_dropout: bool = True,
        trainable_dtype: TrainableDtype = "float32",
    ) -> None:
        super().__init__()
        self.source = source
        self.adaptation = adaptation or Full()
        self.reference = reference or FrozenCopy()
        self.backend = backend
        self._layout: Layout = layout
        self.gradient_checkpointing = gradient_checkpointing
        self.disable_dropout = disable_dropout
        if trainable_dtype not in get_args(TrainableDtype):
            raise ValueError(f"trainable_dtype must be one of {get_args(TrainableDtype)}, got {trainable_dtype!r}")
        self.trainable_dtype = trainable_dtype
        self.policy: Backbone | None = None
        self._verified: set[Layout] = set()
        self._open_reference: OpenReference | None = None
        self._tokenizer: transformers.PreTrainedTokenizerBase | None = None
        self._fingerprint = ""
        self._data_stops: frozenset[int] = frozenset()

    @property
    def layout(self) -> Layout:
        """How sequences are laid out for the model; may be set at any time, and the reference goes with it.

        Raises:
            ValueError: On setting one that is unknown, or that the loaded model cannot tell sequences apart in.
        """
        return self._layout

    @layout.setter
    def layout(self, layout: Layout) -> None:
        if layout not in get_args(Layout):
            raise ValueError(f"layout must be one of {get_args(Layout)}, got {layout!r}")
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

    def load(self) -> None:
        """Read the policy, mark what trains, and make the reference. Idempotent."""
        if self.policy is not None:
            return
        model = self.source.load_model()
        if self.disable_dropout:
            no_dropout(model)
        self._fingerprint = _fingerprint(model)
        policy = Backbone(self.adaptation.apply(model), backend=self.backend, layout=self._layout)
        if policy.model is not policy.causal_lm:
            check_adapter(policy.model)
        hold(policy.parameters(), self.trainable_dtype)
        policy.verify(training=self.disable_dropout)
        self._verified = {self._layout}
        if self.gradient_checkpointing:
            policy.checkpoint_activations()
        say_router_loss(policy)
        check_tokens(self.source, self.load_tokenizer, getattr(self.reference, "source", None))
        policy.train()  # models are read in evaluation mode, in which checkpointing is silently off
        self._open_reference = self.reference.attach(policy)
        self.policy = policy
        keep_trainable(self)

    def load_tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        """The policy's tokenizer, read once."""
        if self._tokenizer is None:
            self._tokenizer = self.source.load_tokenizer()
        return self._tokenizer

    def policy_logp(self, sequences: PackedSequences) -> Tensor:
        """[N] summed response log-probs of the policy, fp32 nats, with gradient where enabled."""
        return self._both()[0](sequences)

    @torch.no_grad()
    def reference_logp(self, sequences: PackedSequences) -> Tensor:
        """[N] summed response log-probs of the reference, fp32 nats, never with gradient."""
        with self._both()[1]() as reference:
            return reference(sequences)

    def both_logp(self, sequences: PackedSequences) -> SequenceLogp:
        """What ``policy_logp`` and ``reference_logp`` give; models that end in the same head go through it in one call.

        They do where the head is frozen: adapters, last layers.
        """
        policy, open_reference = self._both()
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
        """[P, R] float64: what ``<which>_logp`` gives of every response to every prompt (``tree_logp``)."""
        policy, open_reference = self._both()
        with open_reference() if which == "reference" else nullcontext(policy) as backbone, backbone.computing():
            return tree_logp(backbone, prompts, responses, rows)

    @torch.no_grad()
    def sequence_stats(self, sequences: PackedSequences) -> SequenceStats:
        """Response log-probs under both, KL and entropy, from one pass of each model, never with gradient."""
        policy, open_reference = self._both()
        mine_RD, target_R, bounds_N1 = policy.response_hidden(sequences)
        with open_reference() as reference:
            theirs_RD, _, _ = reference.response_hidden(sequences)
            stats = token_stats(policy.at_head(mine_RD), reference.at_head(theirs_RD), target_R)
        return SequenceStats(*(_sums(value_R, bounds_N1) for value_R in stats))

    def support_logratio(self, sequences: PackedSequences, floor: float) -> Tensor:
        """[N] sums over response positions of min(0, log of policy / reference) of the mass of plausible tokens.

        Those are the tokens to which the reference gives at least ``floor``, or its likeliest one where there is none.
        Nats, with gradient where enabled.
        """
        policy, open_reference = self._both()
        mine_RD, _, bounds_N1 = policy.response_hidden(sequences)
        rows = max(1, SUPPORT_LOGITS // policy.head.weight_VD.shape[0])
        with open_reference() as reference:
            with torch.no_grad():
                theirs_RD, _, _ = reference.response_hidden(sequences)
            # both models' logits are made again in the backward pass: of a block, only hidden states are kept
            parts = [
                checkpoint(_support, policy, reference, mine_rD, theirs_rD, floor, use_reentrant=False)
                for mine_rD, theirs_rD in zip(mine_RD.split(rows), theirs_RD.split(rows), strict=True)
            ]
        return _sums(torch.cat(parts), bounds_N1)

    def generate(
        self, prompts: Sequence[Sequence[int]], uniforms: Tensor, temperature: float = 1.0, reference: bool = False
    ) -> list[list[int]]:
        """Sample a response to each prompt, from the policy or the reference; see ``models.sampling.generate``."""
        policy, open_reference = self._both()
        with open_reference() if reference else nullcontext(policy) as backbone, backbone.computing():
            stop_ids = sorted(self.stop_tokens())
            return generate(backbone.causal_lm, prompts, uniforms, temperature=temperature, stop_ids=stop_ids)

    def stop_at(self, ids: Iterable[int]) -> None:
        """End responses at these tokens too: those that the data's chat template puts after an answer.

        They are kept in the state, so that a checkpoint's policy stops there without its data.
        """
        self._data_stops |= frozenset(ids)

    def stop_tokens(self) -> frozenset[int]:
        """Every token that ends a response: ``stop_at``'s, the generation config's, the tokenizer's end of sequence."""
        end = self.load_tokenizer().eos_token_id
        own = eos_ids(self._both()[0].causal_lm.generation_config)
        return self._data_stops | own | ({end} if end is not None else set())

    def facts(self) -> ModelFacts:
        """What a report names of this pair."""
        policy, _ = self._both()
        description = self.source.describe()
        parameters = list(policy.parameters())
        return ModelFacts(
            source=str(description),
            reference=self.reference.describe(),
            parameters=sum(p.numel() for p in parameters),
            trainable=sum(p.numel() for p in parameters if p.requires_grad),
            dtype=str(parameters[0].dtype).removeprefix("torch."),
            backend=self.backend,
            licence=description.licence,
            own_reference=getattr(self.reference, "own", True),
        )

    def save_pretrained(self, folder: str, *, adapter_only: bool = False) -> None:
        """Write the policy as a Hugging Face folder (safetensors), merged, or its adapter alone."""
        stop_ids = self.stop_tokens()
        save_pretrained(self._both()[0], self.load_tokenizer(), folder, adapter_only=adapter_only, stop_ids=stop_ids)

    def memory_estimate(self, tokens: int, scored: int) -> MemoryEstimate:
        """Bytes of a training step with ``tokens`` in a micro-batch, ``scored`` of them in responses."""
        policy, open_reference = self._both()
        with open_reference() as reference:
            held = list(reference.parameters())
        return memory_estimate(policy, held, tokens=tokens, scored=scored, checkpointed=self.gradient_checkpointing)

    def base_fingerprint(self) -> str:
        """A hash of the weights as ``source`` gave them, from at most 1024 numbers of each tensor."""
        self._both()
        return self._fingerprint

    def reference_digest(self) -> str:
        """A hash of all that the reference's log-probs depend on, every bit of its weights among it."""
        policy, open_reference = self._both()
        trainable = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        with open_reference() as reference:
            return digest(reference, trainable)

    def limits(self) -> ModelLimits | None:
        """What the policy can read; None before it is loaded."""
        if self.policy is None:
            return None
        lm = self.policy.causal_lm
        positions = getattr(lm.config.get_text_config(), "max_position_embeddings", None)
        return ModelLimits(lm.get_input_embeddings().weight.shape[0], positions)

    def get_extra_state(self) -> dict[str, Any]:
        return {"base_fingerprint": self._fingerprint, "stop_ids": sorted(self._data_stops)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if state["base_fingerprint"] != self.base_fingerprint():
            raise ValueError(
                f"this checkpoint was trained from other weights than {self.source.describe()} holds now: "
                f"fingerprint {state['base_fingerprint']}, here {self._fingerprint}"
            )
        self.stop_at(state.get("stop_ids", ()))  # which checkpoints of an earlier version lack

    def _both(self) -> tuple[Backbone, OpenReference]:
        if self.policy is None or self._open_reference is None:
            raise RuntimeError("the pair is not loaded: call load() (a LightningModule's configure_model does)")
        return self.policy, self._open_reference


def _support(policy: Backbone, reference: Backbone, mine_RD: Tensor, theirs_RD: Tensor, floor: float) -> Tensor:
    """[R] min(0, log of policy / reference) of the mass of the tokens that the reference finds plausible."""
    with torch.no_grad():
        theirs_RV = reference.log_softmax(theirs_RD)
        highest_R1 = theirs_RV.max(-1, keepdim=True).values
        outside_RV = theirs_RV < highest_R1.clamp(max=math.log(floor))
        theirs_R = theirs_RV.masked_fill_(outside_RV, -torch.inf).logsumexp(-1)
    mine_R = policy.log_softmax(mine_RD).masked_fill(outside_RV, -torch.inf).logsumexp(-1)
    return (mine_R - theirs_R).clamp(max=0)


def _sums(value_R: Tensor, bounds_N1: Tensor) -> Tensor:
    """[N] sums of the values between the bounds of each sequence."""
    length_N = bounds_N1.diff().long()
    sequence_R = torch.repeat_interleave(torch.arange(len(length_N), device=value_R.device), length_N)
    return value_R.new_zeros(len(length_N)).index_add(0, sequence_R, value_R)


def _fingerprint(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        sample = parameter.detach().reshape(-1)[:: max(1, parameter.numel() // 1024)][:1024].contiguous()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(sample.cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
