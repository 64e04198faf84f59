"""Checks that an exported folder holds the trained policy, by comparing their log-probs.

Letters: N sequences, S tokens of a sequence, V vocabulary.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from lit_safe.execution.quiet import device_of
from lit_safe.protocols.pair import PairModel
from lit_safe.types import IGNORE, PackedSequences

TEXTS = (
    "The river rises in the hills and reaches the sea near an old town.",
    "Q: How much is 17 times 23? A: 391, because 17 * 20 is 340 and 17 * 3 is 51.",
    "def mean(numbers):\n    return sum(numbers) / len(numbers)\n",
    "I am sorry, but I cannot help with that. Is there anything else that you would like to know?",
)
"""Texts on which every export is compared, encoded with the exported tokenizer."""

TOKENS = 64  # maximum length of a text


class Comparison(NamedTuple):
    """The largest difference in nats per token, and the largest that rounding can cause."""

    gap: float
    bound: float

    @property
    def same(self) -> bool:
        """Whether rounding explains the difference. False for NaN."""
        return self.gap <= self.bound


def compare_folder(pair: PairModel, folder: Path, held_out: PackedSequences | None) -> Comparison:
    """Compare a policy with its exported folder, on fixed texts and held-out responses.

    The weights of both are cast to at least fp32, which is exact for every weight. The log-probs must then agree up to
    the rounding of fp32 products, whatever dtype the policy normally computes in.

    The tolerance is derived as follows. A dot product computed in blocks has a relative error of a few units u (2^-24
    in fp32). A model with L layers adds 2 L + 1 such products. Independent errors grow with the square root of their
    number, to about sqrt(2 L + 1) u of a logit. A log-prob is the difference of a logit and the logarithm of a sum,
    which is at most log V larger than the largest logit. The sum over tokens rounds at the size of the log-probs. With
    a safety factor of 4, the bound is 8 sqrt(2 L + 1) u (1 + log V + largest logit) nats per token.

    Args:
        pair: The loaded policy, in evaluation mode. The comparison runs on its device. Its weights are cast in place.
        folder: A full model, or only an adapter.
        held_out: Further sequences to compare on, or None.
    """
    assert isinstance(pair, nn.Module)
    dtype = max((p.dtype for p in pair.parameters()), key=lambda one: one.itemsize)
    dtype = torch.promote_types(dtype, torch.float32)
    pair.to(dtype)
    for part in pair.modules():
        if getattr(part, "compute_dtype", None) is not None:  # a layer in 4 bits, whose weights stay as they are
            vars(part)["compute_dtype"] = dtype
    device = device_of(pair)
    model = _read(pair, folder, dtype).to(device, dtype).eval()
    config = model.config.get_text_config()
    gap = largest = 0.0
    for sequences in [fixed(pair.load_tokenizer(), config), *([] if held_out is None else [held_out])]:
        sequences = move_data_to_device(sequences, device)
        with torch.no_grad():
            ours_N = pair.policy_logp(sequences).cpu().double()
        theirs_N, logit = plain_logp(model, sequences)
        scored = sequences.target.cpu() != IGNORE
        tokens_N = torch.stack([part.sum() for part in scored.split(sequences.cu_seqlens.diff().tolist())])
        gap_N = (ours_N - theirs_N).abs() / tokens_N.clamp(min=1)
        gap, largest = max(gap, float(gap_N.nan_to_num(torch.inf).max())), max(largest, logit)
    unit = torch.finfo(dtype).eps / 2
    size = 1 + math.log(config.vocab_size) + largest
    return Comparison(gap, 8 * (2 * config.num_hidden_layers + 1) ** 0.5 * unit * size)


def plain_logp(model: Any, sequences: PackedSequences) -> tuple[Tensor, float]:
    """[N] float64 response log-probs in nats by plain transformers, one sequence at a time, and the largest logit."""
    sums, largest = [], 0.0
    for start, end in itertools.pairwise(sequences.cu_seqlens.tolist()):
        with torch.no_grad():
            logits_SV = model(input_ids=sequences.input_ids[start:end][None]).logits[0]
        largest = max(largest, float(logits_SV.abs().max()))
        target_S = sequences.target[start:end].cpu()
        scored_S = target_S != IGNORE
        logp_SV = logits_SV.cpu()[scored_S].double().log_softmax(-1)  # Apple's GPUs have no float64
        sums.append(logp_SV.gather(-1, target_S[scored_S][:, None]).sum())
    return torch.stack(sums), largest


def fixed(tokenizer: Any, config: Any) -> PackedSequences:
    """``TEXTS`` with all tokens except the first scored, cut to the model's maximum length."""
    positions = min(TOKENS, getattr(config, "max_position_embeddings", None) or TOKENS)
    rows: list[Sequence[int]] = []
    for text in TEXTS:
        ids = [number for number in tokenizer(text)["input_ids"] if number < config.vocab_size]
        rows += [ids[:positions]] if len(ids) > 1 else []
    flat = [number for ids in rows for number in ids]
    target = [number for ids in rows for number in [*ids[1:], IGNORE]]
    position = [place for ids in rows for place in range(len(ids))]
    bounds = torch.tensor([0, *itertools.accumulate(map(len, rows))], dtype=torch.int32)
    return PackedSequences(torch.tensor(flat), torch.tensor(target), torch.tensor(position), bounds)


def first(sequences: PackedSequences, count: int) -> PackedSequences:
    """The first ``count`` sequences."""
    bounds = sequences.cu_seqlens[: count + 1]
    end = int(bounds[-1])
    ids, target, position = (tensor[:end] for tensor in sequences[:3])
    return PackedSequences(ids, target, position, bounds)


def _read(pair: Any, folder: Path, dtype: torch.dtype) -> Any:
    """Load the folder with plain transformers. For an adapter, the base model comes from the pair's source.

    The base model is cast first, because peft would round an adapter's full copies (modules_to_save) to its dtype.
    """
    if (folder / "adapter_config.json").exists():
        from peft import PeftModel  # installed, because there is an adapter

        return PeftModel.from_pretrained(pair.source.load_model().to(dtype), str(folder))
    from transformers import AutoModelForCausalLM  # takes seconds to import; only exports need it

    return AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
