"""Measures a training step as it was by default, padded fours and the reference in every step, beside today's default.

Usage: python -m tests.benchmarks.step [--tiny] [--pku FILE] [--pairs 16] [--steps 3] [--tokens 1024] [--layout padded]

Without ``--pku`` (a JSON lines file of PKU-SafeRLHF) the pairs are those of the embedded package. The model is the
embedded SmolLM2-135M, all of whose weights train, or with ``--tiny`` a random one of two layers. A step is forward,
backward and AdamW with a learning rate of 0, so that every variant has the same loss. Every variant takes every step in
turn, on the same pairs. The table gives medians, their ratio to the first line, and the share of padding. Times are CPU
seconds of this process, which other processes disturb less than wall time. Set OMP_NUM_THREADS=1: threads wait in them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from data.micro_batches import Divide, by_rows, by_tokens
from data.module import PreferenceData
from lit_safe.objectives import DPO
from lit_safe.training.optimizers import optimizer_over
from lit_safe.types import PackedBatch, Pair
from models.pair import PolicyReference
from models.sources import PackagedGGUF, TinyLlama
from tests.benchmarks.trunk import pairs, sides

Step = list[PackedBatch]


class Variant(NamedTuple):
    """How a step is computed."""

    divide: Divide
    cached: bool  # whether the reference's log-probs are known
    fused: bool  # whether AdamW is one kernel


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a random model of two layers")
    parser.add_argument("--pku", type=Path, help="JSON lines of PKU-SafeRLHF; the embedded pairs without it")
    parser.add_argument("--pairs", type=int, default=16, help="pairs of a step")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a micro-batch")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3, help="measured steps; one more warms up")
    parser.add_argument("--layout", default="padded", help="layout of the variants other than the first")
    given = parser.parse_args(namespace=argparse.Namespace(micro_batch_pairs=None))
    pair = PolicyReference(TinyLlama() if given.tiny else PackagedGGUF())
    pair.load()
    data = pairs(given)
    data.connect(pair)
    data.setup("fit")
    measure(pair, data, given)


def measure(pair: PolicyReference, data: PreferenceData, given: argparse.Namespace) -> None:
    """Time every variant on the same steps."""
    tokens_of = data._tokens_of(data._training_rows())
    fours, ours = by_rows(4), by_tokens(given.tokens, tokens_of)
    variants = {
        "padded fours, reference in every step": Variant(fours, False, False),
        "padded fours, reference known": Variant(fours, True, False),
        "micro-batches by tokens, reference in every step": Variant(ours, False, True),
        "micro-batches by tokens, reference known": Variant(ours, True, True),
        "single pairs, reference known": Variant(by_rows(1), True, True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    loss: dict[str, float] = {}
    padding, scoring, scored = {}, 0.0, 0
    first = next(iter(variants))
    trained = [p for p in pair.parameters() if p.requires_grad]
    optimizer = optimizer_over(partial(torch.optim.AdamW, lr=0.0), trained, decay_norms=True)
    for number in range(given.steps + 1):
        for name, variant in variants.items():
            step = step_of(data, variant.divide, number)
            padding[name] = padding_of(step)
            pair.layout = "padded" if name == first else given.layout
            if variant.cached:
                started = time.process_time()
                step = [with_reference(pair, batch) for batch in step]
                if variant.divide is ours:
                    scoring, scored = scoring + time.process_time() - started, scored + given.pairs
            for group in optimizer.param_groups:
                group["fused"] = variant.fused
            started = time.process_time()
            loss[name] = take_step(pair, optimizer, step)
            if number:
                seconds[name].append(time.process_time() - started)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    sizes = f"{given.pairs} pairs a step, layout {given.layout}, median of {given.steps} steps"
    print(f"\n{type(pair.source).__name__}, {sizes}")
    for name, value in median.items():
        print(f"  {name:<50}{value:8.3f} CPU s{median[first] / value:6.2f} times as fast, {padding[name]:4.0%} padding")
    spread = max(loss.values()) - min(loss.values())
    print(
        f"  scoring the reference once: {scoring / max(1, scored):.3f} CPU s a pair; losses differ by {spread:.1g} nats"
    )


def step_of(data: PreferenceData, divide: Divide, number: int) -> Step:
    """The step of this number, divided."""
    loader = data.train_dataloader()
    loader.divide = divide
    loader.start = lambda steps: (0, number)
    return next(iter(loader))


def take_step(pair: PolicyReference, optimizer: torch.optim.Optimizer, step: Step) -> float:
    """One optimizer step of DPO; returns its loss."""
    optimizer.zero_grad()
    total = torch.zeros(())
    for batch in step:
        if batch.reference_logp is None:
            policy, reference = map(sides, pair.both_logp(batch.sequences))
        else:
            policy, reference = sides(pair.policy_logp(batch.sequences)), batch.reference_logp
        logratio = Pair(policy.chosen - reference.chosen, policy.rejected - reference.rejected)
        share = DPO(beta=0.1)(logratio, batch.label, torch.zeros(())).loss.sum() / batch.pairs_in_step
        share.backward()
        total += share.detach()
    optimizer.step()
    return float(total)


@torch.no_grad()
def with_reference(pair: PolicyReference, batch: PackedBatch) -> PackedBatch:
    """The batch with its reference log-probs."""
    return batch._replace(reference_logp=sides(pair.reference_logp(batch.sequences)))


def padding_of(step: Step) -> float:
    """Share of padding among the tokens of a step's padded micro-batches."""
    lengths = [batch.sequences.cu_seqlens.diff() for batch in step]
    return 1 - sum(int(n.sum()) for n in lengths) / sum(len(n) * int(n.max()) for n in lengths)


if __name__ == "__main__":
    main()
