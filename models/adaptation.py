"""Which parameters of a language model train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import transformers
from torch import nn

from models.extras import require


@runtime_checkable
class Adaptation(Protocol):
    """Marks or adds what trains, and freezes the rest."""

    def apply(self, model: transformers.PreTrainedModel) -> nn.Module:
        """``model``, changed in place, or the peft model around it. It computes what it computed before."""


@dataclass(frozen=True)
class Full:
    """Every parameter trains."""

    def apply(self, model: transformers.PreTrainedModel) -> nn.Module:
        return model.requires_grad_(True)


@dataclass(frozen=True)
class LastLayers:
    """The last decoder layers train; what is below them is frozen, and shared with a frozen reference.

    Args:
        k: How many layers.
        head: Train the head and the final norm too. A tied head is the input embedding as well.
    """

    k: int
    head: bool = False

    def apply(self, model: transformers.PreTrainedModel) -> nn.Module:
        layers = _layers(model)
        if not 1 <= self.k <= len(layers):
            raise ValueError(f"k must be 1 to {len(layers)}, the layers of {type(model).__name__}; got {self.k}")
        model.requires_grad_(False)
        layers[-self.k :].requires_grad_(True)
        if self.head:
            model.get_output_embeddings().requires_grad_(True)
            for name, module in model.base_model.named_children():
                if "norm" in name or "ln_f" in name:
                    module.requires_grad_(True)
        return model


@dataclass(frozen=True)
class LoRA:
    """Low-rank updates of linear layers through peft (Hu et al. 2021, arXiv:2106.09685); the base is frozen.

    Args:
        r: Rank.
        alpha: The update is scaled by ``alpha / r``.
        dropout: Dropout on the adapter's input. Above 0 the policy is no longer equal to its reference at step 0.
        target_modules: ``all-linear`` (all but the head), a regular expression, or a list of name endings.
        rslora: Scale by ``alpha / sqrt(r)`` instead.
        seed: The first adapter weights are a function of it.
    """

    r: int = 16
    alpha: float = 32
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    rslora: bool = False
    seed: int = 0

    def apply(self, model: transformers.PreTrainedModel) -> nn.Module:
        peft = require("peft", extra="lora", reason="LoRA")

        config = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.target_modules,
            use_rslora=self.rslora,
            # GPT-2's layers hold their weights transposed
            fan_in_fan_out=any(isinstance(m, transformers.pytorch_utils.Conv1D) for m in model.modules()),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return peft.get_peft_model(model, config)


def _layers(model: transformers.PreTrainedModel) -> nn.ModuleList:
    count = model.config.get_text_config().num_hidden_layers
    lists = [m for m in model.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of {count} decoder layers; use Full or LoRA")
    return lists[0]
