"""A Hugging Face causal language model in two parts: hidden states at response positions, and the head.

Letters: N sequences, S longest of them, T tokens, R response positions (scored rows), K rows
of the decoder's input, D hidden width, V vocabulary.
"""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, get_args

import torch
import transformers
from torch import Tensor, nn

from lit_safe.phases import phase
from lit_safe.sequences import select_sequences
from lit_safe.types import LaidOut, ModelLimits, PackedSequences, SequenceLogp
from models.adapter import whole_copies
from models.layers import decoder_of
from models.layouts import Layout, lay_out, spread
from models.library_masks import packing
from models.shared_rows import PlainMasks, separated
from models.trunk import Trunk
from ops.sequence_logratio import Head, both_sequence_logp, sequence_logp, token_logp


class ResponseHidden(NamedTuple):
    """Hidden states at the positions that predict a response token, in the order of the sequences."""

    hidden_RD: Tensor
    target_R: Tensor  # int64, the predicted token
    cu_responses_N1: Tensor  # [N+1] int32, bounds of each sequence's rows

    def sums(self, value_R: Tensor) -> Tensor:
        """[N] sums of the values of each sequence's rows."""
        length_N = self.cu_responses_N1.diff().long()
        number_N = torch.arange(len(length_N), device=value_R.device)
        sequence_R = torch.repeat_interleave(number_N, length_N, output_size=len(value_R))
        return value_R.new_zeros(len(length_N)).index_add(0, sequence_R, value_R)


class Unembedding(NamedTuple):
    """The head: logit = softcap(scale * (hidden @ weight.T + bias))."""

    weight_VD: Tensor
    bias_V: Tensor | None
    scale: float
    softcap: float | None


class Backbone(nn.Module):
    """Sums of response log-probs from a causal language model. The head is applied only at response positions.

    Args:
        model: The model, or the peft model around it.
        backend: Name of the log-prob backend, or ``auto``.
        layout: Input layout of the model: ``padded`` on the right as a batch, ``packed`` end to end as one row, or
            ``shared``: a prompt once, before its responses.
    """

    def __init__(self, model: nn.Module, *, backend: str = "auto", layout: Layout = "padded") -> None:
        super().__init__()
        if layout not in get_args(Layout):
            raise ValueError(f"layout must be one of {get_args(Layout)}, got {layout!r}")
        self.model: Any = model
        self.backend = backend
        self.layout = layout
        self.place: torch.device | None = None
        self.trunk: Trunk | None = None
        """The frozen layers, once ``models.trunk_check.find_trunk`` has checked that their output can replace them."""
        self._plain_masks = PlainMasks()
        self._whole_copies = self.model is not self.causal_lm and whole_copies(model)

    @property
    def causal_lm(self) -> transformers.PreTrainedModel:
        """The model itself, without a peft model around it (its layers may contain an adapter)."""
        return self.model if isinstance(self.model, transformers.PreTrainedModel) else self.model.get_base_model()

    @property
    def device(self) -> torch.device:
        """Device of the computation: that of the weights, unless ``place`` says otherwise."""
        return next(self.parameters()).device if self.place is None else self.place

    @property
    def head(self) -> Unembedding:
        """The head's weights and the fixed functions after it."""
        linear = self.causal_lm.get_output_embeddings()
        if not isinstance(linear, nn.Linear):
            raise ValueError(
                f"the head of {self._name} is a {type(linear).__name__}; only a plain linear head can be scored at "
                "response positions (leave the head out of the adapter's target_modules and modules_to_save)"
            )
        config = self.causal_lm.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
        scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite
        return Unembedding(linear.weight, linear.bias, float(scale), getattr(config, "final_logit_softcapping", None))

    def limits(self) -> ModelLimits:
        """Longest sequence and vocabulary."""
        positions = getattr(self.causal_lm.config.get_text_config(), "max_position_embeddings", None)
        return ModelLimits(self.causal_lm.get_input_embeddings().weight.shape[0], positions)

    def forward(self, sequences: PackedSequences) -> Tensor:
        """[N] summed log-probs of the scored tokens, fp32 nats.

        Raises:
            ValueError: If a sequence is longer than the model has positions, or the weights are fp16 on a CPU.
        """
        hidden_RD, target_R, cu_responses_N1 = self.response_hidden(sequences)
        with phase("head"):
            hidden_RD, weight_VD, bias_V, scale, softcap = self.at_head(hidden_RD)
            return sequence_logp(
                hidden_RD,
                weight_VD,
                target_R,
                cu_seqlens_N1=cu_responses_N1,
                bias_V=bias_V,
                scale=scale,
                softcap=softcap,
                backend=self.backend,
            )

    def score_beside(self, rows: ResponseHidden, reference_RD: Tensor) -> SequenceLogp:
        """[N] log-probs of ``rows`` and, without gradient, of a reference that shares this head, in one call.

        Args:
            rows: The result of ``response_hidden``.
            reference_RD: The reference's hidden states at the same positions.
        """
        with phase("head"):
            policy = self.at_head(rows.hidden_RD)
            reference = policy._replace(hidden_TD=reference_RD.to(policy.hidden_TD.dtype))
            return SequenceLogp(
                *both_sequence_logp(
                    policy, reference, rows.target_R, cu_seqlens_N1=rows.cu_responses_N1, backend=self.backend
                )
            )

    def response_hidden(self, sequences: PackedSequences) -> ResponseHidden:
        """The last hidden states at positions whose target is scored.

        If the sequences have trunk states and this model has that trunk, only the layers above it run.
        """
        with phase("policy forward" if torch.is_grad_enabled() else "reference"):
            laid = self.laid_out(sequences)
            hidden_KSD = self._decode(laid, sequences.trunk)
            return ResponseHidden(hidden_KSD[laid.row_R, laid.column_R], laid.target_R, laid.cu_responses_N1)

    def laid_out(self, sequences: PackedSequences) -> LaidOut:
        """The rows of this model's input. Those that the sequences hold are taken, if they are in its layout.

        Raises:
            ValueError: If a sequence is longer than the model has positions, or the weights are fp16 on a CPU.
        """
        laid: LaidOut | None = sequences.laid_out
        if laid is None or laid.layout != self.layout:
            laid = lay_out(sequences, self.layout)
        self._check(laid)
        return laid

    def shares_head(self, other: Backbone) -> bool:
        """Whether both models use the same head weights in memory; they then differ only before the head."""
        mine, theirs = self.head, other.head
        return mine.weight_VD is theirs.weight_VD and mine.bias_V is theirs.bias_V

    def token_logp(self, hidden_RD: Tensor, target_R: Tensor) -> Tensor:
        """[R] fp32 log-probs of the targets after ``hidden_RD``."""
        return token_logp(target_T=target_R, backend=self.backend, **self.at_head(hidden_RD)._asdict())

    def log_softmax(self, hidden_RD: Tensor) -> Tensor:
        """[R, V] fp32 log-probs of every token after ``hidden_RD``. Use it for few rows at a time, since V is large.

        It is for computations that need the whole distribution: several next tokens of one row, or the mass of a set of
        tokens. For known targets, use ``token_logp``, which does not materialise [R, V].
        """
        head = self.at_head(hidden_RD)
        with torch.autocast(hidden_RD.device.type, enabled=False):
            bias_V = None if head.bias_V is None else head.bias_V.float()
            weight_VD = head.weight_VD
            if weight_VD.is_cuda:  # on CUDA the op computes products in the hidden states' type
                weight_VD = weight_VD.to(head.hidden_TD.dtype)
            logit_RV = nn.functional.linear(head.hidden_TD.float(), weight_VD.float(), bias_V) * head.scale
            if head.softcap is not None:
                logit_RV = head.softcap * torch.tanh(logit_RV / head.softcap)
            return logit_RV.log_softmax(-1)

    @torch.no_grad()
    def trunk_states(self, sequences: PackedSequences) -> Tensor:
        """[T, D] hidden states of every token after the frozen layers, in the type in which the decoder keeps them.

        Raises:
            ValueError: If this model has no trunk that was checked.
        """
        if self.trunk is None:
            raise ValueError(f"{self._name} has no frozen layers whose states can be kept")
        laid = self.laid_out(sequences)
        with self.trunk.alone(self.causal_lm) as states:
            self._decode(laid)
        return states[-1][laid.row_T, laid.column_T]  # the last pass: the first one of a length also asks for masks

    @torch.no_grad()
    def verify(self, training: bool = False) -> None:
        """Compare with the model's own logits on a few tokens, each sequence alone.

        Hidden states of the same computation must reproduce its logits up to the rounding of the logits' type. Hidden
        states of this layout, and of training mode, come from other computations, in which every bf16 layer rounds.

        Args:
            training: Whether training mode must give the same result. Set it to False if dropout is wanted.

        Raises:
            ValueError: This architecture has an unsupported computation between hidden state and logit, between the
                rows of this layout, or in training mode. The message names the architecture.
        """
        flags = {module: module.training for module in self.modules()}
        self.eval()
        sequences = self.few_tokens()
        alone = [select_sequences(sequences, torch.tensor([n], device=self.device)) for n in range(2)]
        try:
            with self.computing():
                own_TV = torch.cat(
                    [self.causal_lm(input_ids=one.input_ids[None], use_cache=False).logits[0] for one in alone]
                )
        except RuntimeError as fault:
            kinds = sorted({str(p.dtype).removeprefix("torch.") for p in self.parameters()})
            if len(kinds) == 1:
                raise
            raise ValueError(
                f"{self._name} does not compute with weights in {', '.join(kinds)} on this device "
                f"({str(fault).splitlines()[0]}): read it with dtype: float32"
            ) from fault
        found = {"alone": torch.cat([self._decode(lay_out(one, "packed"))[0] for one in alone])}
        found["laid out"] = self.response_hidden(sequences).hidden_RD
        if training:
            self.train()
            with torch.random.fork_rng(devices=[]):
                found["in training mode"] = self.response_hidden(sequences).hidden_RD
        for module, flag in flags.items():
            module.training = flag
        products: list[torch.dtype] = [own_TV.dtype]
        products += [kind for module in self.modules() if (kind := vars(module).get("compute_dtype"))]  # 4-bit layers
        rounds = min(kind.itemsize for kind in products) < 4
        size, own_TV = 1 + own_TV.abs().max().item(), own_TV.float().log_softmax(-1)
        for name, hidden_TD in found.items():
            apart = (self.log_softmax(hidden_TD) - own_TV).abs().max().item()
            # two roundings to bf16 change a logit and the sum by up to 2^-9 of their size each
            if not apart <= size * (1e-4 if not rounds else 4e-3 if name == "alone" else 5e-2):
                raise ValueError(
                    f"{self._name}: log-probs from hidden states and head are off its own logits by {apart:.3g} nats, "
                    f"{name}, in layout {self.layout!r}; this architecture needs support in models/backbone.py"
                    + (" (layout 'padded' may work)" if self.layout == "packed" and name == "laid out" else "")
                )

    def few_tokens(self) -> PackedSequences:
        """Two sequences of 5 and 3 tokens that begin alike, all scored."""
        ids_T = torch.linspace(1, self.head.weight_VD.shape[0] - 1, 8).long()
        ids_T[5] = ids_T[0]
        position_T, bounds_N1 = torch.tensor([*range(5), *range(3)]), torch.tensor([0, 5, 8], dtype=torch.int32)
        return PackedSequences(*(part.to(self.device) for part in (ids_T, ids_T, position_T, bounds_N1)))

    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass instead of storing them."""
        model = self.causal_lm
        renamed = getattr(
            model, "activation_checkpointing_enable", None
        )  # the name in later versions of transformers 5
        (renamed or model.gradient_checkpointing_enable)({"use_reentrant": False})

    def at_head(self, hidden_RD: Tensor) -> Head:
        """Hidden states and head in the types in which they are multiplied.

        Under autocast the op casts the head one slab at a time. No copy of it is made, and its gradient is fp32.
        """
        head = self.head
        kind = hidden_RD.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else head.weight_VD.dtype
        return Head(hidden_RD.to(dtype), head.weight_VD, head.bias_V, head.scale, head.softcap)

    def computing(self) -> AbstractContextManager[Any]:
        """Autocast to the smaller type if the weights have two types and nothing else sets the type of their products.

        Examples are a bf16 trunk below layers that train in fp32, and a norm that trains in full beside an adapter.
        Low-rank weights have their own casts.
        """
        kind = self.device.type
        dtypes = {p.dtype for p in self.parameters()}
        if len(dtypes) == 1 or (self.model is not self.causal_lm and not self._whole_copies):
            return nullcontext()
        if torch.is_autocast_enabled(kind):
            return nullcontext()
        return torch.autocast(kind, min(dtypes, key=lambda dtype: dtype.itemsize), cache_enabled=False)

    @property
    def _name(self) -> str:
        return type(self.causal_lm).__name__

    def _decode(self, laid: LaidOut, trunk_TD: Tensor | None = None) -> Tensor:
        """[K, S, D] the decoder's last hidden states."""
        decoder = decoder_of(self.causal_lm)
        given = {"input_ids": laid.ids_KS, "use_cache": False}
        if "position_ids" in inspect.signature(decoder.forward).parameters:
            given["position_ids"] = laid.position_KS
        known: AbstractContextManager[None] = nullcontext()
        if trunk_TD is not None and self.trunk is not None:
            known = self.trunk.given(self.causal_lm, spread(trunk_TD, laid))
        apart: AbstractContextManager[Any] = packing(laid.layout == "packed")
        if laid.branch_KS is not None:
            apart = separated(self.causal_lm, self._plain_masks, laid.branch_KS, laid.position_KS, laid.longest)
        with self.computing(), apart as mask, known:
            return decoder(**given, attention_mask=mask).last_hidden_state

    def _check(self, laid: LaidOut) -> None:
        parameter = next(self.parameters())
        if parameter.dtype == torch.float16 and parameter.device.type == "cpu":
            raise ValueError("float16 weights on a CPU lose log-probs to rounding: set dtype: float32 or bfloat16")
        limit = self.limits().positions
        if limit is not None and laid.longest > limit:
            raise ValueError(f"a sequence of {laid.longest} tokens exceeds the {limit} positions of {self._name}")


def no_dropout(model: nn.Module) -> None:
    """Set every dropout probability and router jitter of ``model`` to 0, including those stored as plain numbers."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if ("drop" in name or "jitter" in name) and isinstance(value, float):
                setattr(module, name, 0.0)
