"""Which parameters of a language model train."""

from __future__ import annotations

import logging
import re
import warnings
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
import transformers
from torch import nn

from lit_safe.types import TrunkStorage
from models.adapter import check_reach
from models.extras import require
from models.layers import layers_of, modules_after
from models.quantised import is_quantised, made_trainable, refuse_quantised

log = logging.getLogger(__name__)

IGNORED = (
    "Model (has|with) `tie_word_embeddings",  # both this and the next case are refused at load
    "target_(modules|parameters)=.* were set but no",
    "Unsupported layer type",  # single parameters of a module are adapted
    "The following (rank|alpha)_pattern keys",  # caused by peft's own translation of expert layers
)
"""Beginnings of peft's warnings that do not apply here."""


@runtime_checkable
class Adaptation(Protocol):
    """Marks or adds the parameters that train, and freezes the rest.

    It may have a method ``trunk_storage``, as ``LastLayers`` does.
    """

    def apply(self, model: transformers.PreTrainedModel) -> nn.Module:
        """``model``, changed in place, or the peft model around it. Its outputs are unchanged."""


@dataclass(frozen=True)
class Full:
    """Every parameter trains."""

    def apply(self, model: transformers.PreTrainedModel) -> nn.Module:
        refuse_quantised(model, "Full")
        return model.requires_grad_(True)


@dataclass(frozen=True)
class LastLayers:
    """The last decoder layers train. The layers below are frozen and shared with a frozen reference.

    Args:
        k: Number of layers.
        head: Also train the head and the modules between it and the last layer, such as the final norm. A tied head is
            also the input embedding.
        cache_trunk: Compute the hidden states below the last layers once for every training token, before the first
            step, and store them on disk. Steps then run the last layers alone. Rollouts run the whole model.
        trunk_dir: Folder of the stored states. Runs with the same frozen weights share it.
        trunk_dtype: Type of the stored states: ``computed`` keeps every bit, ``bfloat16`` rounds each number once.
        trunk_max_gib: Maximum size of the stored states in GiB. A run that needs more is refused before it starts.
    """

    k: int
    head: bool = False
    cache_trunk: bool = False
    trunk_dir: str = "runs/trunk_states"
    trunk_dtype: Literal["computed", "bfloat16"] = "computed"
    trunk_max_gib: float = 16.0

    def trunk_storage(self) -> TrunkStorage | None:
        """Where training stores the states of the frozen layers, None if it does not."""
        if not self.cache_trunk:
            return None
        return TrunkStorage(self.trunk_dir, self.trunk_dtype == "bfloat16", self.trunk_max_gib)

    def apply(self, model: transformers.PreTrainedModel) -> nn.Module:
        refuse_quantised(model, "LastLayers")
        layers = layers_of(model)
        if not 1 <= self.k <= len(layers):
            raise ValueError(f"k must be 1 to {len(layers)}, the layers of {type(model).__name__}; got {self.k}")
        model.requires_grad_(False)
        layers[-self.k :].requires_grad_(True)
        if self.head:
            model.get_output_embeddings().requires_grad_(True)
            for module in modules_after(model):
                module.requires_grad_(True)
        return model


@dataclass(frozen=True)
class LoRA:
    """Low-rank updates of linear layers through peft (Hu et al. 2021, arXiv:2106.09685). The base is frozen.

    Args:
        r: Rank.
        alpha: The update is scaled by ``alpha / r``.
        dropout: Dropout on the adapter's input. Above 0 the policy does not equal its reference at step 0.
        target_modules: ``all-linear`` (all but the head; also routers and experts that peft supports), a regular
            expression, or a list of name endings. The log lists the adapted modules.
        target_parameters: Name endings of parameters that do not belong to a layer of their own, such as fused experts
            (``mlp.experts.gate_up_proj``) and routers (``mlp.router.weight``). They support neither dropout nor DoRA.
        modules_to_save: Name endings of modules of which a full copy trains, such as norms or the input embedding.
            A tied head keeps its original weights.
        rslora: Scale by ``alpha / sqrt(r)`` instead.
        dora: Also train the norm of each weight row (Liu et al. 2024, arXiv:2402.09353).
        seed: Seed of the initial adapter weights.
    """

    r: int = 16
    alpha: float = 32
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    target_parameters: list[str] | None = None
    modules_to_save: list[str] | None = None
    rslora: bool = False
    dora: bool = False
    seed: int = 0

    def apply(self, model: transformers.PreTrainedModel) -> nn.Module:
        peft = require("peft", extra="lora", reason="LoRA")

        if is_quantised(model):
            model = made_trainable(model)
        config = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.target_modules,
            target_parameters=self.target_parameters,
            modules_to_save=self.modules_to_save,
            use_rslora=self.rslora,
            use_dora=self.dora,
            # GPT-2's layers store their weights transposed
            fan_in_fan_out=any(isinstance(m, transformers.pytorch_utils.Conv1D) for m in model.modules()),
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            for known in IGNORED:
                warnings.filterwarnings("ignore", known)
            torch.random.default_generator.manual_seed(self.seed)  # `torch.manual_seed` also seeds GPUs
            try:
                adapted = peft.get_peft_model(model, config)
            except ValueError as fault:
                raise ValueError(self._refusal(model, str(fault))) from None
        if self.target_modules == "all-linear":
            check_reach(adapted)
        log.info("adapter on %s", ", ".join(_adapted(adapted)))
        return adapted

    def _refusal(self, model: transformers.PreTrainedModel, fault: str) -> str:
        """The reason why peft refuses the configuration, in one line."""
        name = type(model).__name__
        if "ParamWrapper" in fault:
            asked = "dropout 0" if self.dropout else "dora: false"
            return f"LoRA on fused parameters of {name} (experts, routers) needs {asked}, or other target_modules"
        if "is not supported" in fault:
            module = fault.split("Target module ", 1)[-1].split("(", 1)[0]
            return (
                f"target_modules names a {module} of {name}, which has no low-rank form: train it whole with "
                "modules_to_save, or name its weights in target_parameters"
            )
        return f"target_modules fits nothing in {name}: {fault.splitlines()[0]}"


def _adapted(model: nn.Module) -> list[str]:
    """Names, within a layer, of the modules that have an adapter or train in full."""
    names = set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = re.sub(r"\.(lora_\w+|base_layer|modules_to_save|default)(?=\.|$)", "", name)
            plain = re.sub(r"^base_model\.model\.(.*\.\d+\.)?", "", plain)
            names.add(plain.removesuffix(".weight"))
    return sorted(names)
