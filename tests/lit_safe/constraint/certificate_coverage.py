"""How often bounds of a certificate cover the truth, by simulation.

``python -m tests.lit_safe.constraint.certificate_coverage`` runs it.

Letters: n responses.
"""

import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lit_safe.constraint.certificate.bounded_mean import BoundedMean
from lit_safe.constraint.certificate.comparison import empirical_bernstein, plug_in_bernstein, students_t
from lit_safe.constraint.certificate.share import Share

Floats = npt.NDArray[np.float64]
Bound = Callable[[Floats, float], float]

BOUNDS: dict[str, Bound] = {
    "betting": lambda unit_n, delta: BoundedMean(unit_n, 0, 1, delta).upper(delta),
    "plug-in Bernstein": plug_in_bernstein,
    "empirical Bernstein": empirical_bernstein,
    "Student's t": students_t,
}
"""One-sided upper bounds of the mean of draws in [0, 1]."""

EXACT: dict[str, Bound] = {"Clopper-Pearson": lambda unit_n, delta: Share(int(unit_n.sum()), len(unit_n)).upper(delta)}
"""The bound of a share."""


class Costs(NamedTuple):
    """A distribution of costs in [0, 1]."""

    name: str
    mean: float
    draw: Callable[[np.random.Generator, int], Floats]
    share: bool = False


def worlds() -> Iterator[Costs]:
    """Shares, mild costs and skewed costs."""
    for rate in (0.01, 0.05, 0.2):
        yield Costs(f"unsafe share {rate:g}", rate, lambda rng, n, rate=rate: (rng.random(n) < rate) * 1.0, True)
    yield Costs("even costs", 0.5, lambda rng, n: rng.random(n))
    yield Costs("costs near 0.25", 0.25, lambda rng, n: rng.beta(2, 6, n))
    yield Costs("skewed costs", 0.05, lambda rng, n: rng.beta(0.2, 3.8, n))
    rare = 0.02 * 0.9 + 0.98 * 0.05
    yield Costs("rare high costs", rare, lambda rng, n: np.where(rng.random(n) < 0.02, 0.9, 0.1 * rng.random(n)))


class Coverage(NamedTuple):
    """How often an upper bound is at least the truth, and its mean distance above it."""

    share: float
    excess: float


def coverage(costs: Costs, bound: Bound, count: int, draws: int, seed: int, delta: float = 0.05) -> Coverage:
    """Draw samples of ``count`` costs and compare the bound with the true mean."""
    rng = np.random.default_rng(seed)
    upper = np.array([bound(costs.draw(rng, count), delta) for _ in range(draws)])
    return Coverage(float((upper >= costs.mean).mean()), float((upper - costs.mean).mean()))


if __name__ == "__main__":
    draws, seed = (int(word) for word in sys.argv[1:])
    names = [*EXACT, *BOUNDS]
    print(f"| costs | n | {' | '.join(names)} |\n|---|---|{'---|' * len(names)}")
    for costs in worlds():
        for count in (20, 50, 200, 1000):
            cells = []
            for name, bound in (EXACT | BOUNDS).items():
                if name in EXACT and not costs.share:
                    cells.append("")
                    continue
                found = coverage(costs, bound, count, draws, seed)
                cells.append(f"{100 * found.share:.1f} (+{found.excess:.3f})")
            print(f"| {costs.name} | {count} | {' | '.join(cells)} |", flush=True)
