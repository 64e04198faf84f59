"""Measures a training step of the last layers with and without stored states of the frozen ones, side by side.

Usage: python -m tests.benchmarks.trunk [--pku FILE] [--k 2 3 4] [--pairs 4] [--micro-batch-pairs 1] [--steps 5]

Without ``--pku`` (a JSON lines file of PKU-SafeRLHF) the pairs are those of the embedded package. A step is forward,
backward and AdamW. Every variant takes every step in turn, on the same rows. The table gives medians and their ratio to
the first line, and what the states cost: their size on disk and the time to compute them once. Times are CPU seconds of
this process, which other processes disturb less than wall time. Set OMP_NUM_THREADS=1: threads wait in them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from data.annotators.flags import Flags
from data.annotators.scores import Score, Scores
from data.module import PreferenceData
from data.sources.pku_saferlhf import PKUSafeRLHF
from data.sources.pyrit import PyRIT
from lit_safe.objectives import DPO
from lit_safe.training.trunk_cache import TrunkCache
from lit_safe.types import PackedBatch, Pair, TrunkStorage
from models.adaptation import LastLayers
from models.pair import PolicyReference
from models.sources import PackagedGGUF

Step = Callable[[list[PackedBatch]], None]


def main() -> None:
    """Measure every number of layers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pku", type=Path, help="JSON lines of PKU-SafeRLHF; the embedded pairs without it")
    parser.add_argument("--k", type=int, nargs="+", default=[2, 3, 4], help="layers that train")
    parser.add_argument("--pairs", type=int, default=4, help="pairs of a step")
    parser.add_argument("--micro-batch-pairs", type=int, default=1, help="pairs of a forward pass")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=5, help="measured steps; one more warms up")
    given = parser.parse_args()
    for k in given.k:
        measure(k, given)


def measure(k: int, given: argparse.Namespace) -> None:
    """Print the table of one number of layers."""
    pair = PolicyReference(PackagedGGUF(), LastLayers(k))
    pair.load()
    data = pairs(given)
    data.connect(pair)
    data.setup("fit")
    steps = [step for step, _ in zip(data.train_dataloader(), range(given.steps + 1), strict=False)]
    tokens = [sum(len(batch.sequences.input_ids) for batch in step) for step in steps]
    with tempfile.TemporaryDirectory() as folder:
        cache = TrunkCache(TrunkStorage(folder, False, 100.0))
        started = time.process_time()
        cache.fill(SimpleNamespace(pair=pair), lambda: [batch for step in steps for batch in step])
        filling = time.process_time() - started
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.bin"))
        found = times(pair, cache, steps)
    rows = f"{len(steps) - 1} steps of {given.pairs} pairs, {min(tokens)} to {max(tokens)} tokens"
    print(f"\nLastLayers({k}), median of {rows}")
    first = statistics.median(found["every layer"])  # of both models, as in a step without this option
    for name, seconds in found.items():
        median = statistics.median(seconds)
        print(f"  {name:<42} {median:7.2f} CPU s   {first / median:5.2f} times as fast")
    cost = f"{size / 2**20:.0f} MiB and {filling:.1f} CPU s"
    print(f"  states: {cost} once for {sum(tokens):,} tokens of {len(steps)} steps")


def pairs(given: argparse.Namespace) -> PreferenceData:
    """The data of a step."""
    if given.pku is None:
        source, order = PyRIT(differ_in="severity", minimum_gap=0.25), "safer"
        annotator = Scores((Score("severity", 0.5),), Score("severity", 0.5))
    else:
        source, annotator, order = PKUSafeRLHF(str(given.pku)), Flags(), "helpful_or_safer"
    sizes = {
        "pairs_per_step": given.pairs,
        "micro_batch_pairs": given.micro_batch_pairs,
        "max_length": given.max_length,
    }
    return PreferenceData([source], annotator, order=order, on_bad_row="skip", **sizes)


def times(pair: PolicyReference, cache: TrunkCache, steps: list[list[PackedBatch]]) -> dict[str, list[float]]:
    """Seconds of each variant for every step but the first."""
    with torch.no_grad():
        logp_NS = [[pair.reference_logp(batch.sequences) for batch in step] for step in steps]
    known = [
        [
            batch._replace(reference_logp=Pair(logp_N[0::2], logp_N[1::2]))
            for batch, logp_N in zip(step, logp, strict=True)
        ]
        for step, logp in zip(steps, logp_NS, strict=True)
    ]
    optimizer = torch.optim.AdamW([p for p in pair.parameters() if p.requires_grad], lr=1e-6, fused=True)
    trunk = pair.policy.trunk
    run = partial(take_step, pair, optimizer)

    def whole(step: list[PackedBatch]) -> None:
        pair.policy.trunk = None
        run(step)
        pair.policy.trunk = trunk

    def cached(step: list[PackedBatch]) -> None:
        run([batch._replace(sequences=cache.attach(batch.sequences)) for batch in step])

    variants: dict[str, tuple[Step, list[list[PackedBatch]]]] = {
        "every layer": (whole, steps),
        "frozen layers once for both models": (run, steps),
        "stored states": (cached, steps),
        "every layer, reference precomputed": (whole, known),
        "stored states, reference precomputed": (cached, known),
    }
    found: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(len(steps)):
        for name, (variant, rows) in variants.items():
            started = time.process_time()
            variant(rows[number])
            if number:
                found[name].append(time.process_time() - started)
    return found


def take_step(pair: PolicyReference, optimizer: torch.optim.Optimizer, step: list[PackedBatch]) -> None:
    """One optimizer step of DPO."""
    optimizer.zero_grad()
    for batch in step:
        if batch.reference_logp is None:
            policy_N, reference_N = pair.both_logp(batch.sequences)
            reference = sides(reference_N)
        else:
            policy_N, reference = pair.policy_logp(batch.sequences), batch.reference_logp
        policy = sides(policy_N)
        logratio = Pair(policy.chosen - reference.chosen, policy.rejected - reference.rejected)
        scored = DPO(beta=0.1)(logratio, batch.label, torch.zeros(()))
        (scored.loss.sum() / batch.pairs_in_step).backward()
    optimizer.step()


def sides(logp_N: Tensor) -> Pair:
    """The chosen and the rejected responses' log-probs."""
    return Pair(logp_N[0::2], logp_N[1::2])


if __name__ == "__main__":
    main()
