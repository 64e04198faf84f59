"""Writing a policy as a Hugging Face folder."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from pathlib import Path

import transformers

from models.backbone import Backbone
from models.modes import open_to_readers
from models.quantised import is_quantised, merged_in_full

SHARD = "5GB"  # maximum size of a file of weights

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Settings of a generation config that have no effect without ``do_sample``."""
BEAMS = ("early_stopping", "length_penalty")
"""Settings that have no effect with one beam."""

IGNORED = (
    "Input and output embeddings are no longer tied after merging",  # a full copy of the embedding was trained
    "Could not find a config file in",  # the base model is not a folder
    "Setting `save_embedding_layers` to `True`",  # the embedding is stored with its adapter
)
"""Beginnings of peft's warnings that need no action by the user."""


def save_pretrained(
    policy: Backbone,
    tokenizer: transformers.PreTrainedTokenizerBase,
    folder: str,
    *,
    adapter_only: bool,
    stop_ids: Iterable[int] = (),
) -> None:
    """Write weights as safetensors, with tokenizer, chat template and generation config. File modes follow the umask.

    All weights are written in the widest type among them. An fp32 adapter over a bf16 base is thus merged in fp32,
    because bf16 would round away most of a small update. An adapter is merged into a copy of the model, because
    unmerging would not restore the trained weights exactly. ``stop_ids`` are added to those of the generation config,
    so that ``generate`` stops where training did.

    Raises:
        ValueError: If ``adapter_only`` and there is no adapter.
    """
    has_adapter = policy.model is not policy.causal_lm
    if adapter_only and not has_adapter:
        raise ValueError("adapter_only needs an adapter: set adaptation to models.adaptation.LoRA")
    model = policy.model
    if is_quantised(policy.causal_lm) and not adapter_only:
        model, has_adapter = merged_in_full(policy), False
    elif not adapter_only:
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
        lm = model if isinstance(model, transformers.PreTrainedModel) else policy.causal_lm
        shipped = lm.generation_config
        stopping = _stopping_at(stop_ids, shipped)
        lm.generation_config = stopping  # written with the model, too
        try:
            model.save_pretrained(folder, **({} if adapter_only else {"max_shard_size": SHARD}))
        finally:
            lm.generation_config = shipped
    tokenizer.save_pretrained(folder)
    stopping.save_pretrained(folder)  # an adapter writes none
    open_to_readers(place)


def eos_ids(config: transformers.GenerationConfig | None) -> frozenset[int]:
    """The stop tokens of a generation config, which may have one, several or none."""
    named = None if config is None else config.eos_token_id
    return frozenset([] if named is None else [named] if isinstance(named, int) else named)


def _stopping_at(ids: Iterable[int], config: transformers.GenerationConfig | None) -> transformers.GenerationConfig:
    """A copy of ``config`` with ``ids`` as additional stop tokens, in a form that transformers writes.

    Some models come with settings of a way of decoding that they do not use, such as ``do_sample: false`` with
    ``temperature: 0.9``. Transformers reads such a config, but refuses to write it. These settings have no effect, so
    they are left out.
    """
    found = transformers.GenerationConfig() if config is None else copy.deepcopy(config)
    try:
        found.validate(strict=True)
    except ValueError:
        plain = transformers.GenerationConfig()
        for name in (*(() if found.do_sample else SAMPLING), *(() if (found.num_beams or 1) > 1 else BEAMS)):
            setattr(found, name, getattr(plain, name, None))
    stops = sorted({*ids, *eos_ids(found)})
    found.eos_token_id = stops if len(stops) > 1 else next(iter(stops), None)
    return found
