"""A cache of prompts for generation in which each distinct prompt is computed once, whatever its number of responses.

Letters: n prompts of a batch, d distinct ones, P longest prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
import transformers
from torch import Tensor

from models.backbone import decoder_of


def shared_cache(
    model: transformers.PreTrainedModel, prompts: Sequence[Sequence[int]], ids_nP: Tensor, mask_nP: Tensor
) -> transformers.DynamicCache | None:
    """The cache of all prompt tokens but the last, for ``model.generate``, which computes the last one itself.

    Args:
        model: In evaluation mode.
        prompts: Token ids. Equal ones share a row of the computation.
        ids_nP: The same prompts, padded on the left.
        mask_nP: 1 for their tokens, 0 for padding.

    Returns:
        The cache; None if no prompt is repeated, the prompts have one token, or the model's cache holds more than keys
        and values of each token (a recurrent state, an encoder), which cannot be cut before the last token.
    """
    first: dict[tuple[int, ...], int] = {}
    row_n = [first.setdefault(tuple(prompt), len(first)) for prompt in prompts]
    if len(first) == len(prompts) or ids_nP.shape[1] < 2 or not _keys_and_values(model):
        return None
    kept_d = torch.tensor([row_n.index(row) for row in range(len(first))], device=ids_nP.device)
    ids_dP, mask_dP = ids_nP[kept_d, :-1], mask_nP[kept_d, :-1]
    decoder = decoder_of(model)
    accepted = inspect.signature(decoder.forward).parameters
    cache = transformers.DynamicCache(config=model.config.get_text_config())
    # transformers renames the argument one architecture at a time from 5.24 on; 5.40 drops the old name
    given = {"cache" if "cache" in accepted else "past_key_values": cache}
    if "position_ids" in accepted:
        given["position_ids"] = (mask_dP.cumsum(-1) - 1).clamp(min=0)  # as `generate` computes it
    decoder(input_ids=ids_dP, attention_mask=mask_dP, use_cache=True, **given)
    cache.batch_select_indices(torch.tensor(row_n, device=ids_nP.device))
    return cache


def _keys_and_values(model: transformers.PreTrainedModel) -> bool:
    """Whether all that the model remembers of a token is its keys and values."""
    config = model.config
    if getattr(model, "_is_stateful", False) or config.is_encoder_decoder:
        return False
    layers = transformers.DynamicCache(config=config.get_text_config()).layers
    plain = (transformers.cache_utils.DynamicLayer, transformers.cache_utils.DynamicSlidingWindowLayer)
    return all(type(layer) in plain for layer in layers)
