"""Times a step at five sizes each of prompt, response, pairs and vocabulary, and prints how its time grows.

Usage: python -m tests.benchmarks.growth [--threads 2] [--rounds 3] [--layout shared]

A step is a forward pass of policy and reference and a backward pass, on a random Llama (width 256, 6 layers). The sizes
take turns, and each time is the least of its rounds. ``arithmetic`` is the exponent of the operations that the sizes
need. Let nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext

import torch

from tests.models.growth import FACTORS, Size, Width, exponent, loaded, operations, step

WIDTH = Width(256, 704, 6, 4)
BASE = {"prompt": 96, "response": 96, "pairs": 1, "vocabulary": 8192}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layout", default="shared")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    sizes: list[Size] = [{**BASE, name: BASE[name] * factor} for name in BASE for factor in FACTORS]
    seconds: dict[tuple[int, ...], list[float]] = {}
    for turn in range(given.rounds + 1):  # the first round warms up
        for size in sizes:
            took = timed(size, given.layout)
            if turn:
                seconds.setdefault(tuple(size.values()), []).append(took)
    times = "seconds at " + ", ".join(f"{factor}x" for factor in FACTORS)
    print(f"{'':<12}{times:<44}{'exponent':>18}{'arithmetic':>12}")
    for name in BASE:
        slope, error = exponent(BASE, name, lambda size: min(seconds[tuple(size.values())]))
        wanted, _ = exponent(BASE, name, lambda size: operations(WIDTH, size, given.layout))
        shown = (min(seconds[tuple({**BASE, name: BASE[name] * factor}.values())]) for factor in FACTORS)
        times = "  ".join(f"{value:.3f}" for value in shown)
        print(f"{name:<12}{times:<44}{f'{slope:.2f} ± {error:.2f}':>18}{wanted:>12.2f}")


def timed(size: Size, layout: str) -> float:
    """Seconds of a step."""
    pair = loaded(WIDTH, size["vocabulary"], layout, "sdpa", "chunked")
    began = time.perf_counter()
    step(pair, size, nullcontext())
    took = time.perf_counter() - began
    pair.zero_grad()
    return took


if __name__ == "__main__":
    main()
