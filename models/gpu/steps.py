"""Times whole training steps of a pair with random weights: forward and backward passes, and the optimizer.

Letters: N sequences, T tokens, R scored positions.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor

from lit_safe.sequences import pack_sequences
from lit_safe.types import PackedSequences
from models.backbone import Layout
from models.gpu.random_model import SHAPES, RandomModel
from models.gpu.timing import Ceilings, take_turns, wait
from models.pair import PolicyReference

Row = dict[str, object]
BETA = 0.1


def measure(shape: str, device: str, ceiling: Ceilings, *, pairs: int, rounds: int, seed: int) -> list[Row]:
    """One row for each layout, with the reference in every step and with cached reference log-probs.

    Args:
        shape: Name of the model's shape.
        device: ``cuda`` or ``cpu``.
        ceiling: The device's measured rates.
        pairs: Pairs in the step.
        rounds: Timed steps of each.
        seed: Seed of the batch.
    """
    batch, tokens, scored = _batch(shape, pairs, seed, small=device == "cpu")
    batch = PackedSequences(*(part.to(device) for part in batch[:4]))
    pair = PolicyReference(RandomModel(shape))
    pair.load()
    pair.to(device).train()
    learning = [parameter for parameter in pair.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-6, fused=True)
    with torch.no_grad(), _precision(device):
        cached_N = pair.reference_logp(batch)
    running: dict[str, Callable[[], object]] = {}
    rows: list[Row] = []
    for layout in get_args(Layout):
        try:
            pair.layout = layout
        except ValueError as error:
            rows.append({"case": f"{shape} {layout}", "why": str(error).partition("\n")[0]})
            continue
        for name, reference in (("online reference", None), ("cached reference", cached_N)):
            running[f"{layout}, {name}"] = _step(pair, layout, batch, reference, optimizer, device)
    peaks = {name: _peak_gib(work, device) for name, work in running.items()}
    for name, taken in take_turns(running, rounds, device).items():
        count = operations(shape, tokens, scored, online="online" in name)
        rows.append(
            {
                "case": f"{shape} {name}",
                "seconds": taken,
                "tokens_per_second": tokens / taken,
                "of_matmul": count / taken / ceiling.matmul,
                "peak_gib": peaks[name],
            }
        )
    return rows


def operations(shape: str, tokens: int, scored: int, online: bool) -> float:
    """Floating-point operations of the matrix products of one step, without padding and attention scores.

    A forward pass takes 2 operations per weight and token, a backward pass 4. The head multiplies scored positions.
    The online reference is a forward pass.
    """
    width, layers, heads, key_value_heads, wide, vocabulary = SHAPES[shape]
    attention = width * width * 2 + 2 * width * width * key_value_heads // heads
    body = layers * (attention + 3 * width * wide)
    passes = 6 + 2 * online
    return float(passes * (body * tokens + width * vocabulary * scored))


def _batch(shape: str, pairs: int, seed: int, small: bool) -> tuple[PackedSequences, int, int]:
    """Pairs with one prompt each and two responses, and the counts of all tokens and of scored ones."""
    draw, vocabulary = random.Random(seed), SHAPES[shape][5]
    longest = 24 if small else 512
    prompts: list[list[int]] = []
    responses: list[list[int]] = []
    for _ in range(pairs):
        prompt = [draw.randrange(vocabulary) for _ in range(draw.randint(longest // 4, longest))]
        for _ in range(2):
            prompts.append(prompt)
            responses.append([draw.randrange(vocabulary) for _ in range(draw.randint(longest // 8, longest))])
    scored = sum(map(len, responses))
    return pack_sequences(prompts, responses), scored + sum(map(len, prompts)), scored


def _step(
    pair: PolicyReference,
    layout: Any,
    batch: PackedSequences,
    cached_N: Tensor | None,
    optimizer: torch.optim.Optimizer,
    device: str,
) -> Callable[[], object]:
    def run() -> None:
        pair.layout = layout
        optimizer.zero_grad(set_to_none=True)
        with _precision(device):
            if cached_N is None:
                policy_N, reference_N = pair.both_logp(batch)
            else:
                policy_N, reference_N = pair.policy_logp(batch), cached_N
        logratio_N = policy_N - reference_N
        # DPO, arXiv:2305.18290, eq. 7
        loss = -torch.nn.functional.logsigmoid(BETA * (logratio_N[0::2] - logratio_N[1::2])).mean()
        loss.backward()
        optimizer.step()

    return run


def _precision(device: str) -> torch.autocast:
    return torch.autocast(device, torch.bfloat16, cache_enabled=False)


def _peak_gib(work: Callable[[], object], device: str) -> float | None:
    """GiB at the peak of a step, weights and optimizer included; None on a CPU."""
    if device != "cuda":
        work()
        return None
    wait(device)
    torch.cuda.reset_peak_memory_stats()
    work()
    wait(device)
    return torch.cuda.max_memory_allocated() / 2**30
