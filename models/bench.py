"""Times sampling with prompts shared among their responses against prompts computed for each, side by side.

    python -m models.bench --prompts 4 --samples 8 --prompt-tokens 128 --new-tokens 32

Both sides take turns on the same prompts and random numbers, and each time is the median of the rounds. The command
prints the share of responses that are equal: rounding can change a token whose random number lies at its edge.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import transformers

from lit_safe.hashing import hash64, uniforms
from models.sampling import generate
from models.sources import HuggingFace

SHAPE = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
         "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}  # fmt: skip
"""SmolLM2-135M's."""


def main() -> None:
    """Print seconds of both sides, their ratio, and the share of equal responses."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", help="folder or hub id; random weights in SmolLM2-135M's shape by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--prompts", type=int, default=4, help="distinct prompts of a batch")
    parser.add_argument("--samples", type=int, default=8, help="responses to each")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    random = given.model is None
    model = (
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))
        if random
        else HuggingFace(given.model).load_model()
    )
    model = model.to(given.device, getattr(torch, given.dtype)).eval()
    compare(model, given.prompts, given.samples, given.prompt_tokens, given.new_tokens, given.rounds)


def compare(
    model: transformers.PreTrainedModel, prompts: int, samples: int, prompt_tokens: int, new_tokens: int, rounds: int
) -> None:
    """Time both sides in turns, after one round that warms up."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    distinct = [[hash64("bench", p, t) % vocabulary for t in range(prompt_tokens)] for p in range(prompts)]
    asked = [prompt for prompt in distinct for _ in range(samples)]
    numbers = uniforms(len(asked) * new_tokens, "bench").reshape(len(asked), new_tokens)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    responses: dict[bool, list[list[int]]] = {}
    for turn in range(rounds + 1):
        for shared in seconds:
            _wait(model.device)
            started = time.perf_counter()
            responses[shared] = generate(model, asked, numbers, temperature=1.0, stop_ids=[], share_prompts=shared)
            _wait(model.device)
            if turn:
                seconds[shared].append(time.perf_counter() - started)
    shared_time, apart = (statistics.median(seconds[side]) for side in (True, False))
    equal = sum(a == b for a, b in zip(responses[True], responses[False], strict=True)) / len(asked)
    print(
        f"{len(asked)} responses of {new_tokens} tokens to {prompts} prompts of {prompt_tokens} tokens, {model.device}"
    )
    print(
        f"each prompt once per response {apart:.3f} s, once per prompt {shared_time:.3f} s: {apart / shared_time:.2f}x"
    )
    print(f"equal responses {100 * equal:.0f} %")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
