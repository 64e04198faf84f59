"""Models whose frozen layers are held in 4 bits by bitsandbytes (QLoRA, Dettmers et al. 2023, arXiv:2305.14314)."""

from __future__ import annotations

import copy
import logging
import warnings

import torch
import transformers
from torch import Tensor

from models.backbone import Backbone
from models.extras import require

log = logging.getLogger(__name__)


def settings_of(dtype: torch.dtype) -> transformers.BitsAndBytesConfig:
    """nf4 with double quantisation (Dettmers et al. 2023, section 3).

    Args:
        dtype: Type of the products.
    """
    require("bitsandbytes", extra="qlora", reason="quantization: nf4")
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def is_quantised(model: object) -> bool:
    """Whether layers of ``model`` are in 4 bits."""
    return bool(getattr(model, "is_loaded_in_4bit", False))


def made_trainable(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """``model``, frozen, with everything outside its 4-bit layers in fp32, so that an adapter can train on it."""
    peft = require("peft", extra="lora", reason="LoRA")
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # else a pass in evaluation mode packs the weights, and
            module.support_avx512bf16_for_cpu = False  # the passes after it have no gradient
    prepared: transformers.PreTrainedModel = peft.prepare_model_for_kbit_training(
        model, use_gradient_checkpointing=False
    )
    return prepared


def refuse_quantised(model: object, adaptation: str) -> None:
    """Refuse to train weights that are held in 4 bits.

    Raises:
        ValueError: Names the adaptation, and the one that can.
    """
    if is_quantised(model):
        raise ValueError(
            f"adaptation {adaptation} trains weights that quantization: nf4 holds in 4 bits: set adaptation to "
            "models.adaptation.LoRA, or leave quantization out"
        )


@torch.no_grad()
def merged_in_full(policy: Backbone) -> transformers.PreTrainedModel:
    """The policy without 4 bits: the values that its layers hold, in fp32, with the adapter merged in.

    These are the weights that the policy computes with. They are not those of the source, which 4 bits have rounded.
    """
    peft = require("peft", extra="lora", reason="LoRA")
    lm = policy.causal_lm
    config = copy.deepcopy(lm.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model (has|with) `tie_word_embeddings", UserWarning)
        plain = type(lm)(config).float()
        plain.generation_config = lm.generation_config
        (adapter,) = policy.model.peft_config.values()
        around = peft.get_peft_model(plain, copy.deepcopy(adapter))
        mine = dict(policy.model.named_parameters())
        for name, parameter in around.named_parameters():
            parameter.copy_(_value(mine[name]))
        merged: transformers.PreTrainedModel = around.merge_and_unload()
    log.info(
        "the policy's 4-bit layers are written as the values that they hold, in float32, with the adapter merged in"
    )
    return merged


def _value(parameter: Tensor) -> Tensor:
    """The numbers of a parameter, which may be in 4 bits."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return parameter.detach()
    functional = require("bitsandbytes", extra="qlora", reason="quantization: nf4").functional
    values: Tensor = functional.dequantize_4bit(parameter.data, state)
    return values


def count_of(parameter: Tensor) -> int:
    """Number of weights of a parameter, which may be in 4 bits: two in a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(torch.Size(state.shape).numel())
