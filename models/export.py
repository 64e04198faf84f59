"""Writing a policy as a Hugging Face folder."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from pathlib import Path

import transformers

from models.backbone import Backbone
from models.modes import open_to_readers

SHARD = "5GB"  # of weights in a file at most

IGNORED = (
    "Input and output embeddings are no longer tied after merging",  # a copy of the embedding trained whole
    "Could not find a config file in",  # a base model that is no folder
    "Setting `save_embedding_layers` to `True`",  # an adapter on the embedding is stored with it
)
"""Beginnings of peft's warnings that tell a user nothing to do."""


def save_pretrained(
    policy: Backbone,
    tokenizer: transformers.PreTrainedTokenizerBase,
    folder: str,
    *,
    adapter_only: bool,
    stop_ids: Iterable[int] = (),
) -> None:
    """Write weights as safetensors, with tokenizer, chat template and generation config; modes are the umask's.

    All weights are written in the widest type among them. So an fp32 adapter over a bf16 base is merged in fp32: bf16
    would round most of a small update away. An adapter is merged into a copy of the model, since unmerging would not
    give the trained weights back to the bit. ``stop_ids`` stand in the generation config beside its own, so that
    ``generate`` stops where training did.

    Raises:
        ValueError: If ``adapter_only`` and there is no adapter.
    """
    has_adapter = policy.model is not policy.causal_lm
    if adapter_only and not has_adapter:
        raise ValueError("adapter_only needs an adapter: set adaptation to models.adaptation.LoRA")
    model = policy.model
    if not adapter_only:
        kinds = {parameter.dtype for parameter in policy.parameters()}
        if has_adapter or len(kinds) > 1:
            model = copy.deepcopy(policy.model)
            for parameter in model.parameters():
                parameter.data = parameter.data.to(max(kinds, key=lambda kind: kind.itemsize))
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        for known in IGNORED:
            warnings.filterwarnings("ignore", known, UserWarning)
        if has_adapter and not adapter_only:
            model = model.merge_and_unload()
        model.save_pretrained(folder, **({} if adapter_only else {"max_shard_size": SHARD}))
    tokenizer.save_pretrained(folder)
    # last: it takes the place of the model's own, and an adapter has none
    _stopping_at(stop_ids, policy.causal_lm.generation_config).save_pretrained(folder)
    open_to_readers(place)


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
