"""Writing a policy as a Hugging Face folder."""

from __future__ import annotations

import copy

import transformers

from models.backbone import Backbone


def save_pretrained(
    policy: Backbone, tokenizer: transformers.PreTrainedTokenizerBase, folder: str, *, adapter_only: bool
) -> None:
    """Write weights as safetensors, with tokenizer, chat template and generation config.

    An adapter is merged into a copy of the model, since unmerging would not give the trained weights back to the bit.

    Raises:
        ValueError: If ``adapter_only`` and there is no adapter.
    """
    has_adapter = policy.model is not policy.causal_lm
    if adapter_only and not has_adapter:
        raise ValueError("adapter_only needs an adapter: set adaptation to models.adaptation.LoRA")
    model = policy.model
    if has_adapter and not adapter_only:
        model = copy.deepcopy(policy.model).merge_and_unload()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
