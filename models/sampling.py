"""Sampling with explicit random numbers: token t of prompt n depends on ``uniforms[n, t]`` and on no other randomness.

Letters: n prompts, P longest prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import transformers
from torch import Tensor
from transformers.generation import utils

from models.shared_prompts import shared_cache

# the name of generate's argument; transformers 5.24 renames it and 6 drops the old name
CACHE = "cache" if "cache" in getattr(utils, "ALL_CACHE_NAMES", ("cache",)) else "past_key_values"


class InverseCDF(transformers.LogitsProcessor):
    """Inverse-CDF sampling: allows only the first token whose cumulative probability exceeds the step's uniform number.

    Args:
        uniforms: [n, steps] in [0, 1).
        temperature: Divides the logits. 0 takes the most likely token, the limit of small temperatures.
        begin: Number of tokens before the first step.
    """

    def __init__(self, uniforms: Tensor, temperature: float, begin: int) -> None:
        self.uniforms = uniforms
        self.temperature = temperature
        self.begin = begin
        self.finite_n1: Tensor | None = None  # whether all logits of a row were finite; None before the first step

    def check(self) -> None:
        """Raise a ValueError if logits were not finite. Called once at the end: reading a result makes a GPU wait."""
        if self.finite_n1 is not None and not bool(self.finite_n1.all()):
            row = int((~self.finite_n1).nonzero()[0, 0])
            raise ValueError(
                f"the logits of the model that samples are not finite (prompt {row} of {len(self.finite_n1)}): its "
                "weights are NaN or infinite, or its activations exceed their dtype (float16 holds up to 65504)"
            )

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.temperature == 0:
            finite_n1 = scores.amax(-1, keepdim=True).isfinite()  # a NaN is the largest
            self.finite_n1 = finite_n1 if self.finite_n1 is None else self.finite_n1 & finite_n1
            return scores  # generate takes the largest
        step = input_ids.shape[1] - self.begin
        place = exact_device(scores.device)
        cumulative_nV = (scores.to(place).double() / self.temperature).softmax(-1).cumsum(-1)
        total_n1 = cumulative_nV[:, -1:].contiguous()
        self.finite_n1 = total_n1.isfinite() if self.finite_n1 is None else self.finite_n1 & total_n1.isfinite()
        wanted_n1 = self.uniforms[:, step : step + 1].to(total_n1) * total_n1
        drawn_n1 = torch.searchsorted(cumulative_nV, wanted_n1, right=True)
        last_n1 = torch.searchsorted(cumulative_nV, total_n1)  # the product above can round up to the total
        # for NaN, both indices are outside the vocabulary, which ends in an assertion on CUDA
        chosen_n1 = torch.minimum(drawn_n1, last_n1).clamp(max=scores.shape[-1] - 1).to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen_n1, 0.0)


def exact_device(device: torch.device) -> torch.device:
    """The device for cumulative sums in float64 of scores on ``device``.

    This is the CPU for Apple's GPUs, which have no float64, and for CUDA with deterministic algorithms, for which its
    cumulative sum raises an error.
    """
    inexact = device.type == "mps" or (device.type == "cuda" and torch.are_deterministic_algorithms_enabled())
    return torch.device("cpu") if inexact else device


@torch.no_grad()
def generate(
    model: transformers.PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    uniforms: Tensor,
    *,
    temperature: float,
    stop_ids: Sequence[int],
    share_prompts: bool = True,
) -> list[list[int]]:
    """Sample one response to each prompt, all in one batch padded on the left. Equal prompts are computed once.

    Args:
        model: The model. Its mode (training or evaluation) is restored afterwards.
        prompts: Token ids of each prompt, none empty.
        uniforms: [n, max_new_tokens] in [0, 1): all random numbers; no global generator is used.
        temperature: Divides the logits. 0 takes the most likely token of each step (greedy decoding).
        stop_ids: Tokens that end a response. The first one drawn is the response's last token.
        share_prompts: Compute each distinct prompt once. If false, once for each response; results are the same up to
            rounding.

    Returns:
        Token ids of each response.

    Raises:
        ValueError: If shapes, numbers or the temperature are invalid, a response could exceed the model's positions, or
            logits are not finite.
    """
    if not prompts:
        return []
    steps = _check(model, prompts, uniforms, temperature)
    width = max(map(len, prompts))
    ids_nP = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=model.device)
    mask_nP = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    config = transformers.GenerationConfig(
        max_new_tokens=steps,
        do_sample=False,  # greedy over the one token that InverseCDF allows
        eos_token_id=list(stop_ids) or None,
        pad_token_id=stop_ids[0] if stop_ids else 0,
        use_cache=True,
    )
    shipped, was_training = model.generation_config, model.training
    model.generation_config = config  # keeps out the model's own settings (repetition penalty, ...)
    model.eval()
    sampler = InverseCDF(uniforms.to(exact_device(model.device)), temperature, width)
    try:
        cache = shared_cache(model, prompts, ids_nP, mask_nP) if share_prompts else None
        out = model.generate(
            input_ids=ids_nP,
            attention_mask=mask_nP,
            generation_config=config,
            logits_processor=[sampler],
            **({} if cache is None else {CACHE: cache}),
        )
    finally:
        model.generation_config = shipped
        model.train(was_training)
    sampler.check()
    return [_until_stop(row, frozenset(stop_ids)) for row in out[:, width:].tolist()]


def _until_stop(ids: list[int], stop_ids: frozenset[int]) -> list[int]:
    end = next((i + 1 for i, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[:end]


def _check(
    model: transformers.PreTrainedModel, prompts: Sequence[Sequence[int]], uniforms: Tensor, temperature: float
) -> int:
    """Check the arguments and return the number of steps."""
    if uniforms.ndim != 2 or len(uniforms) != len(prompts) or uniforms.shape[1] == 0:
        raise ValueError(f"need uniforms [{len(prompts)}, max_new_tokens >= 1], got {tuple(uniforms.shape)}")
    if not bool(((uniforms >= 0) & (uniforms < 1)).all()):
        raise ValueError("uniforms must lie in [0, 1)")
    if not temperature >= 0:
        raise ValueError(f"temperature must be >= 0, got {temperature}")
    if empty := [i for i, prompt in enumerate(prompts) if len(prompt) == 0]:
        raise ValueError(f"prompt {empty[0]} has no tokens")
    longest = max(map(len, prompts)) + uniforms.shape[1]
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise ValueError(f"prompt and response may take {longest} tokens; {type(model).__name__} has {limit} positions")
    return uniforms.shape[1]
