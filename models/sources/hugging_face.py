"""Models in Hugging Face format: from the hub, from a folder, or from a GGUF file."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
import transformers
import yaml
from transformers.utils import cached_file, find_adapter_config_file

from models.adapter import check_adapter
from models.extras import require
from models.quantised import settings_of
from models.sources.source import Description

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class HuggingFace:
    """Any causal language model from the hub or a folder. Reads safetensors or GGUF and never runs remote code.

    A repository that holds only a LoRA adapter gives its base model with the adapter merged in. With ``dtype: auto`` it
    is merged in fp32, because bf16 would round away most of a small update.

    Args:
        name_or_path: Hub id, or a folder.
        revision: Branch, tag or commit on the hub.
        dtype: Type of the weights; ``auto`` takes the checkpoint's own, and float32 for a GGUF file.
        attn_implementation: ``sdpa``, ``eager``, ``flash_attention_2``, ...; null lets the library choose.
        gguf_file: Name of a GGUF file inside ``name_or_path``.
        quantization: ``nf4`` holds the decoder's linear layers in 4 bits with double quantisation (bitsandbytes), for
            LoRA (arXiv:2305.14314). Products are in bfloat16, or in float32 with ``dtype: float32``.
    """

    name_or_path: str
    revision: str | None = None
    dtype: Dtype = "auto"
    attn_implementation: str | None = None
    gguf_file: str | None = None
    quantization: Literal["nf4"] | None = None

    def __post_init__(self) -> None:
        if self.quantization is not None and self.gguf_file is not None:
            raise ValueError(
                f"quantization {self.quantization}: not of a GGUF file: leave out quantization or gguf_file"
            )

    def load_model(self) -> transformers.PreTrainedModel:
        options = {"revision": self.revision, "dtype": self._dtype(), "trust_remote_code": False}
        if self.attn_implementation is not None:
            options["attn_implementation"] = self.attn_implementation
        if self.gguf_file is not None:
            require("gguf", extra="gguf", reason=f"the GGUF file {self.gguf_file}")
            model = transformers.AutoModelForCausalLM.from_pretrained(
                self.name_or_path, gguf_file=self.gguf_file, **options
            )
            return _forget_quantization(model)
        options["use_safetensors"] = True
        if self.quantization is not None:
            options["quantization_config"] = settings_of(torch.float32 if self.dtype == "float32" else torch.bfloat16)
        if find_adapter_config_file(self.name_or_path, revision=self.revision) is None:
            return transformers.AutoModelForCausalLM.from_pretrained(self.name_or_path, **options)
        if self.quantization is not None:
            raise ValueError(
                f"quantization {self.quantization}: {self.name_or_path} is an adapter, which is merged into its base: "
                "export the merged model first, and quantise its folder"
            )
        peft = require("peft", extra="lora", reason=f"the adapter {self.name_or_path}")

        # peft's auto class is not used: it resizes the embeddings to the tokenizer's length
        adapter = peft.PeftConfig.from_pretrained(self.name_or_path, revision=self.revision)
        options["revision"] = adapter.revision
        if self.dtype == "auto":
            options["dtype"] = torch.float32
        base = transformers.AutoModelForCausalLM.from_pretrained(adapter.base_model_name_or_path, **options)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Model (has|with) `tie_word_embeddings", UserWarning)  # checked below
            warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied", UserWarning)
            adapted = peft.PeftModel.from_pretrained(base, self.name_or_path, revision=self.revision)
            check_adapter(adapted)
            return adapted.merge_and_unload()

    def load_tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        options = {} if self.gguf_file is None else {"gguf_file": self.gguf_file}
        return transformers.AutoTokenizer.from_pretrained(
            self.name_or_path, revision=self.revision, trust_remote_code=False, **options
        )

    def describe(self) -> Description:
        return Description(self.name_or_path, self.revision, self._licence())

    def _dtype(self) -> torch.dtype | str:
        if self.dtype != "auto":
            return getattr(torch, self.dtype)
        return torch.float32 if self.gguf_file is not None else "auto"

    def _licence(self) -> str:
        """The ``license`` of the model card, if a card can be read."""
        card = cached_file(
            self.name_or_path,
            "README.md",
            revision=self.revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if card is None:
            return "unknown"
        with open(card, encoding="utf-8") as file:
            text = file.read()
        head = text.split("---", 2)[1] if text.startswith("---") and text.count("---") >= 2 else ""
        front = yaml.safe_load(head)
        return str(front.get("license", "unknown")) if isinstance(front, dict) else "unknown"


def _forget_quantization(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """Make a model that was read from GGUF an ordinary one.

    Its weights are already dequantized, but transformers 5 keeps its marks of a quantized model and then refuses
    ``save_pretrained``.
    """
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    return model
