"""Writing a policy as a Hugging Face folder."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import transformers

from models.backbone import Backbone


def save_pretrained(
    policy: Backbone,
    tokenizer: transformers.PreTrainedTokenizerBase,
    folder: str,
    *,
    adapter_only: bool,
    stop_ids: Iterable[int] = (),
) -> None:
    """Write weights as safetensors, with tokenizer, chat template and generation config.

    An adapter is merged into a copy of the model, since unmerging would not give the trained weights back to the bit.
    ``stop_ids`` stand in the generation config beside its own, so that ``generate`` stops where training did.

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
    # last: it takes the place of the model's own, and an adapter has none
    _stopping_at(stop_ids, policy.causal_lm.generation_config).save_pretrained(folder)


def eos_ids(config: transformers.GenerationConfig | None) -> frozenset[int]:
    """The stop tokens of a generation config, which may name one, several or none."""
    named = None if config is None else config.eos_token_id
    return frozenset([] if named is None else [named] if isinstance(named, int) else named)


def _stopping_at(ids: Iterable[int], config: transformers.GenerationConfig | None) -> transformers.GenerationConfig:
    """A copy of ``config`` that stops at ``ids`` too."""
    found = transformers.GenerationConfig() if config is None else copy.deepcopy(config)
    stops = sorted({*ids, *eos_ids(found)})
    found.eos_token_id = stops if len(stops) > 1 else next(iter(stops), None)
    return found
