"""Measures a forward and backward pass of pairs in each layout, side by side, on the embedded model.

Usage: OMP_NUM_THREADS=1 python -m tests.benchmarks.shared_rows [--pairs 1] [--rounds 3]

All weights train. Times are CPU seconds of this process, medians over rounds in which the layouts take turns. The last
column is what counted matrix products allow: tokens of padded rows / tokens of rows with shared prompts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import get_args

import torch

from lit_safe.sequences import pack_sequences
from lit_safe.types import PackedSequences
from models.backbone import Backbone
from models.layouts import LAYOUTS, Layout
from models.sources import PackagedGGUF

CASES = {
    "PKU-SafeRLHF (prompt 45, responses 80 and 110)": (45, 80, 110),
    "multi-turn (prompt 250, responses 60 and 80)": (250, 60, 80),
    "long prompt (prompt 400, responses 40 and 60)": (400, 40, 60),
}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1, help="pairs of a forward pass")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    backbone = Backbone(PackagedGGUF().load_model().train())
    print(f"{'':<50}" + "".join(f"{layout:>10}" for layout in get_args(Layout)) + "   padded / shared   of tokens")
    for name, sizes in CASES.items():
        sequences = pairs(given.pairs, *sizes)
        found: dict[Layout, list[float]] = {layout: [] for layout in get_args(Layout)}
        for number in range(given.rounds + 1):
            for layout, seconds in found.items():
                backbone.layout = layout
                backbone.zero_grad()
                started = time.process_time()
                backbone(sequences).sum().backward()
                if number:
                    seconds.append(time.process_time() - started)
        median = {layout: statistics.median(seconds) for layout, seconds in found.items()}
        tokens = {layout: LAYOUTS[layout](sequences).ids_KS.numel() for layout in found}
        times = "".join(f"{seconds:10.2f}" for seconds in median.values())
        ratio, counted = median["padded"] / median["shared"], tokens["padded"] / tokens["shared"]
        print(f"{name:<50}{times}{ratio:18.2f}{counted:12.2f}", flush=True)


def pairs(count: int, prompt: int, chosen: int, rejected: int) -> PackedSequences:
    """``count`` pairs of random tokens of these lengths."""
    torch.manual_seed(0)
    prompts, responses = [], []
    for _ in range(count):
        ids = torch.randint(1000, 40_000, (prompt,)).tolist()
        prompts += [ids, ids]
        responses += [torch.randint(1000, 40_000, (size,)).tolist() for size in (chosen, rejected)]
    return pack_sequences(prompts, responses)


if __name__ == "__main__":
    main()
