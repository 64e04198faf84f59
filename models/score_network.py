"""A language model's trunk with a linear score for each output, read at the end of the sequence.

Letters: N sequences, T tokens, D hidden width, K outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, get_args

import torch
import transformers
from torch import Tensor, nn

from lit_safe.precision import TrainableDtype, hold
from lit_safe.types import IGNORE, MemoryEstimate, ModelFacts, ModelLimits, PackedSequences
from models.adaptation import Adaptation
from models.adapter import check_adapter
from models.backbone import Backbone, Layout, no_dropout
from models.digest import digest, fingerprint
from models.layers import layers_of
from models.memory import memory_estimate
from models.score_export import save_classifier
from models.sources import ModelSource
from models.trainable_state import keep_trainable


class ScoreNetwork(nn.Module):
    """Scores of whole sequences: ``score = head @ (hidden / scale)``, with the hidden state of the last token.

    The hidden state is that after the model's final norm, so a Hugging Face sequence classifier computes the same
    scores. There is no bias, because these classifiers have none.

    Args:
        source: Source of the language model. Its own head is not used.
        adaptation: Which parameters of the trunk train; null trains the score heads alone, on a frozen trunk. Then
            hidden states are computed once (``lit_safe/training/feature_cache.py``).
        layers: Number of decoder layers to keep, counted from the first; null keeps all. Middle layers may tell harm
            better than the last, and fewer layers are faster.
        layout: ``padded`` batches, or ``packed`` rows without padding.
        gradient_checkpointing: Recompute activations in the backward pass.
        disable_dropout: Set the dropout of the model (not of a LoRA adapter) to 0.
        trainable_dtype: Type of the weights that train.
    """

    scale_D: Tensor

    def __init__(
        self,
        source: ModelSource,
        adaptation: Adaptation | None = None,
        layers: int | None = None,
        layout: Layout = "padded",
        gradient_checkpointing: bool = False,
        disable_dropout: bool = True,
        trainable_dtype: TrainableDtype = "float32",
    ) -> None:
        super().__init__()
        if layers is not None and layers < 1:
            raise ValueError(f"layers must be at least 1, or null for all, got {layers}")
        if trainable_dtype not in get_args(TrainableDtype):
            raise ValueError(f"trainable_dtype must be one of {get_args(TrainableDtype)}, got {trainable_dtype!r}")
        self.source = source
        self.adaptation = adaptation
        self.layers = layers
        self.layout: Layout = layout
        self.gradient_checkpointing = gradient_checkpointing
        self.disable_dropout = disable_dropout
        self.trainable_dtype = trainable_dtype
        self.outputs: tuple[str, ...] = ()
        self.trunk: Backbone | None = None
        self.head: nn.Linear | None = None
        self._tokenizer: transformers.PreTrainedTokenizerBase | None = None
        self._fingerprint = ""
        self._stops: frozenset[int] = frozenset()

    @property
    def frozen(self) -> bool:
        """Whether only the score heads train, so that a sequence's hidden state never changes."""
        return self.adaptation is None

    def name_outputs(self, outputs: Sequence[str]) -> None:
        """Set the names of the K outputs. It comes before ``load``.

        Raises:
            ValueError: If there is none, or a name appears twice.
        """
        if not outputs or len(set(outputs)) < len(outputs):
            raise ValueError(f"a score model needs outputs with different names, got {list(outputs)}")
        self.outputs = tuple(outputs)

    def load(self) -> None:
        """Read the trunk, mark the parameters that train, and make the heads, all zero. Idempotent."""
        if self.trunk is not None:
            return
        if not self.outputs:
            raise RuntimeError("name_outputs comes before load")
        model = self.source.load_model()
        if self.disable_dropout:
            no_dropout(model)
        self._fingerprint = fingerprint(model)
        keep_layers(model, self.layers)
        if self.adaptation is None:
            trunk = Backbone(model.requires_grad_(False), layout=self.layout)
        else:
            trunk = Backbone(self.adaptation.apply(model), layout=self.layout)
            unused = trunk.causal_lm.get_output_embeddings()
            embedding = trunk.causal_lm.get_input_embeddings()
            for parameter in unused.parameters():
                if all(parameter is not other for other in embedding.parameters()):
                    parameter.requires_grad_(False)
            if trunk.model is not trunk.causal_lm:
                check_adapter(trunk.model)
        hold(trunk.parameters(), self.trainable_dtype)
        trunk.verify(training=self.disable_dropout)
        if self.gradient_checkpointing:
            trunk.checkpoint_activations()
        trunk.train()
        width = trunk.causal_lm.config.get_text_config().hidden_size
        self.trunk = trunk
        self.head = nn.Linear(width, len(self.outputs), bias=False)
        nn.init.zeros_(self.head.weight)
        self.register_buffer("scale_D", torch.ones(width))
        keep_trainable(self)

    def load_tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        """The model's tokenizer, read once."""
        if self._tokenizer is None:
            self._tokenizer = self.source.load_tokenizer()
        return self._tokenizer

    def features(self, sequences: PackedSequences) -> Tensor:
        """[N, D] fp32 hidden states of each sequence's last token, with gradient if the trunk trains."""
        trunk, _ = self._loaded()
        last_N = sequences.cu_seqlens[1:].long() - 1
        target_T = torch.full_like(sequences.target, IGNORE)
        target_T[last_N] = 0  # marks the position; any token will do
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return trunk.response_hidden(sequences._replace(target=target_T, laid_out=None)).hidden_RD.float()

    def score_features(self, hidden_ND: Tensor) -> Tensor:
        """[N, K] fp32 scores of ``features``."""
        _, head = self._loaded()
        with torch.autocast(hidden_ND.device.type, enabled=False):
            return nn.functional.linear(hidden_ND.float() / self.scale_D, head.weight.float())

    def forward(self, sequences: PackedSequences) -> Tensor:
        """[N, K] fp32 scores."""
        return self.score_features(self.features(sequences))

    @torch.no_grad()
    def set_scale(self, scale_D: Tensor) -> None:
        """Divide hidden states by ``scale_D`` [D], so that units of different size train alike. Heads must be zero."""
        self._loaded()
        self.scale_D.copy_(scale_D)

    @property
    def weight_KD(self) -> Tensor:
        """[K, D] float64 weights of the hidden states themselves, with the scale folded in."""
        _, head = self._loaded()
        return head.weight.detach().double() / self.scale_D.double()

    def trunk_digest(self) -> str:
        """A hash of everything that ``features`` depend on if the trunk is frozen."""
        return digest(self._loaded()[0])

    def stop_at(self, ids: Iterable[int]) -> None:
        """Keep the tokens that end the data's responses. Scores are read there."""
        self._stops |= frozenset(ids)

    def stop_tokens(self) -> frozenset[int]:
        """The tokens of ``stop_at``."""
        return self._stops

    def facts(self) -> ModelFacts:
        """The description of this model in reports."""
        trunk, head = self._loaded()
        description = self.source.describe()
        parameters = list(self.parameters())
        count = trunk.causal_lm.config.get_text_config().num_hidden_layers
        return ModelFacts(
            source=f"{description}, {count} layers, scores {', '.join(self.outputs)}",
            reference="none",
            parameters=sum(p.numel() for p in parameters),
            trainable=sum(p.numel() for p in parameters if p.requires_grad),
            dtype=str(head.weight.dtype).removeprefix("torch."),
            backend="none",
            licence=description.licence,
        )

    def memory_estimate(self, tokens: int, scored: int) -> MemoryEstimate:
        """Bytes of a training step with ``tokens`` in a micro-batch. ``scored`` is not used: there are no logits."""
        estimate = memory_estimate(
            self._loaded()[0], [], tokens=tokens, scored=0, checkpointed=self.gradient_checkpointing
        )
        return estimate._replace(activations=0, logits=0) if self.frozen else estimate._replace(logits=0)

    def limits(self) -> ModelLimits | None:
        """Longest sequence and vocabulary; None before the trunk is loaded."""
        if self.trunk is None:
            return None
        lm = self.trunk.causal_lm
        positions = getattr(lm.config.get_text_config(), "max_position_embeddings", None)
        return ModelLimits(lm.get_input_embeddings().weight.shape[0], positions)

    def save_pretrained(self, folder: str, *, adapter_only: bool = False, weight_KD: Tensor | None = None) -> None:
        """Write a Hugging Face sequence-classification folder; see ``models.score_export``.

        Args:
            folder: Folder to write.
            adapter_only: Must be false: the folder holds the merged model.
            weight_KD: Weights of the heads, for example calibrated ones; the trained ones by default.

        Raises:
            ValueError: If ``adapter_only``.
        """
        if adapter_only:
            raise ValueError("a score model is written as a whole folder: leave adapter_only out")
        trunk, _ = self._loaded()
        weight = self.weight_KD if weight_KD is None else weight_KD
        save_classifier(trunk, self.load_tokenizer(), folder, self.outputs, weight, self._stops)

    def get_extra_state(self) -> dict[str, Any]:
        return {"fingerprint": self._fingerprint, "stop_ids": sorted(self._stops), "outputs": list(self.outputs)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if state["fingerprint"] != self._fingerprint:
            raise ValueError(
                f"this checkpoint was trained from other weights than {self.source.describe()} holds now: "
                f"fingerprint {state['fingerprint']}, here {self._fingerprint}"
            )
        if tuple(state["outputs"]) != self.outputs:
            raise ValueError(
                f"this checkpoint scores {', '.join(state['outputs'])}; the configured model and data ask for "
                f"{', '.join(self.outputs)}: use the run's own losses and annotator"
            )
        self.stop_at(state["stop_ids"])

    def _loaded(self) -> tuple[Backbone, nn.Linear]:
        if self.trunk is None or self.head is None:
            raise RuntimeError("the score model is not loaded: call load() (a LightningModule's configure_model does)")
        return self.trunk, self.head


def keep_layers(model: transformers.PreTrainedModel, layers: int | None) -> None:
    """Keep the first ``layers`` decoder layers of a model, in place. None keeps all.

    Raises:
        ValueError: If the model has fewer.
    """
    if layers is None:
        return
    stack = layers_of(model)
    if layers > len(stack):
        raise ValueError(f"layers must be 1 to {len(stack)}, the layers of {type(model).__name__}; got {layers}")
    del stack[layers:]
    config = model.config.get_text_config()
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[:layers]
