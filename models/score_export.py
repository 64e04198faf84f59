"""Writing a score model as a Hugging Face sequence-classification folder.

Letters: D hidden width, K outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

from models.backbone import Backbone
from models.layers import decoder_of
from models.modes import open_to_readers

SHARD = "5GB"
PAD = "<|pad|>"


def save_classifier(
    trunk: Backbone,
    tokenizer: transformers.PreTrainedTokenizerBase,
    folder: str,
    outputs: Sequence[str],
    weight_KD: Tensor,
    stop_ids: Collection[int],
) -> None:
    """Write trunk and heads so that ``AutoModelForSequenceClassification.from_pretrained`` computes equal scores.

    A stock sequence classifier reads the last token that is not padding, wherever the padding is. Many chat models pad
    with their stop token, so the classifier would read one token too early. The folder therefore has a pad token that
    ends no response: the tokenizer's own if it does not, else a special token that does not, else a new one.

    A low-rank adapter is merged into a copy. All weights are written in the widest type among them.

    Args:
        trunk: The language model.
        tokenizer: Its tokenizer. The folder's copy has the pad token.
        folder: Folder to write.
        outputs: Names of the K outputs (``id2label``).
        weight_KD: Weights [K, D] of the last hidden state.
        stop_ids: Tokens at which sequences end.

    Raises:
        ValueError: If transformers has no sequence classifier of this architecture with a plain linear head.
    """
    lm, adapted = trunk.causal_lm, trunk.model is not trunk.causal_lm
    kind = max({parameter.dtype for parameter in trunk.parameters()}, key=lambda dtype: dtype.itemsize)
    if adapted:
        merged = copy.deepcopy(trunk.model)
        for parameter in merged.parameters():
            parameter.data = parameter.data.to(kind)
        lm = merged.merge_and_unload()
    name = type(lm).__name__
    tokenizer = copy.deepcopy(tokenizer)
    config = copy.deepcopy(lm.config)
    config.id2label = dict(enumerate(outputs))
    config.label2id = {output: k for k, output in enumerate(outputs)}
    config.problem_type = "regression"
    config.dtype = kind
    pad = set_pad(tokenizer, stop_ids)
    config.get_text_config().pad_token_id = config.pad_token_id = None  # a new one has no row in the embedding yet
    with torch.random.fork_rng(devices=[]):
        try:
            classifier = transformers.AutoModelForSequenceClassification.from_config(config)
        except ValueError:
            raise ValueError(f"transformers has no sequence classifier for {name}: use another model") from None
    head = getattr(classifier, "score", None)
    if not isinstance(head, nn.Linear) or head.weight.shape != weight_KD.shape:
        raise ValueError(f"the sequence classifier of {name} has no linear head of {list(weight_KD.shape)} named score")
    state = {key: value.detach().cpu() for key, value in decoder_of(lm).state_dict().items()}
    getattr(classifier, classifier.base_model_prefix).load_state_dict(state)
    classifier.to(kind)
    head.weight.data = weight_KD.detach().cpu().to(torch.promote_types(kind, torch.float32))
    if len(tokenizer) > classifier.get_input_embeddings().weight.shape[0]:  # a new pad token, which is never read
        classifier.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    classifier.config.get_text_config().pad_token_id = classifier.config.pad_token_id = pad
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    classifier.save_pretrained(folder, max_shard_size=SHARD)
    tokenizer.save_pretrained(folder)
    open_to_readers(place)


def set_pad(tokenizer: transformers.PreTrainedTokenizerBase, stop_ids: Collection[int]) -> int:
    """Give ``tokenizer`` a pad token that ends no text, in place. Returns its id."""
    ends = {*stop_ids, tokenizer.eos_token_id}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in ends:
        return int(tokenizer.pad_token_id)
    added = tokenizer.added_tokens_decoder
    free = [i for i, token in added.items() if token.special and i not in ends and i != tokenizer.bos_token_id]
    if free:
        tokenizer.pad_token = added[min(free)].content
    else:
        tokenizer.add_special_tokens({"pad_token": PAD})
    return int(tokenizer.pad_token_id)
