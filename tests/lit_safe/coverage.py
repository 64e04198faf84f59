"""How often the 95 % intervals of reports cover the truth, by simulation: ``python -m tests.lit_safe.coverage``."""

import sys
from collections.abc import Callable, Iterator

import numpy as np

from lit_safe.ranking import clustered_auc
from lit_safe.statistics import Estimate, Floats, Int64s, clustered_mean, paired_difference

World = Callable[[np.random.Generator], Estimate]


def _clusters(rng: np.random.Generator, clusters: int, most: int) -> Int64s:
    return np.repeat(np.arange(clusters), rng.integers(1, most + 1, clusters))


def _rates(rng: np.random.Generator, rate: float, clusters: int) -> Floats:
    """Beta rates of prompts with correlation 0.25 within them."""
    return rng.beta(3 * rate, 3 * (1 - rate), clusters)


def share(rate: float, clusters: int, most: int) -> World:
    def draw(rng: np.random.Generator) -> Estimate:
        prompt = _clusters(rng, clusters, most)
        value = rng.random(len(prompt)) < _rates(rng, rate, clusters)[prompt]
        return clustered_mean(value, prompt, share=True)

    return draw


def paired(up: float, down: float, clusters: int, most: int) -> World:
    def draw(rng: np.random.Generator) -> Estimate:
        prompt = _clusters(rng, clusters, most)
        rate = rng.dirichlet([3 * up, 3 * down, 3 * (1 - up - down)], clusters)[prompt]
        u = rng.random(len(prompt))
        rose, fell = u < rate[:, 0], (u >= rate[:, 0]) & (u < rate[:, 0] + rate[:, 1])
        same = rng.random(len(prompt)) < 0.5
        before = np.where(rose, 0, np.where(fell, 1, same))
        return paired_difference(before + rose - 1.0 * fell, before, prompt, share=True)

    return draw


def mean(clusters: int, most: int) -> World:
    def draw(rng: np.random.Generator) -> Estimate:
        prompt = _clusters(rng, clusters, most)
        return clustered_mean(rng.normal(size=clusters)[prompt] + rng.normal(size=len(prompt)), prompt)

    return draw


def auc(clusters: int, most: int, shift: float) -> World:
    def draw(rng: np.random.Generator) -> Estimate:
        prompt = _clusters(rng, clusters, most)
        positive = rng.random(len(prompt)) < 0.5
        return clustered_auc(rng.normal(size=len(prompt)) + shift * positive, positive, prompt)

    return draw


def worlds() -> Iterator[tuple[str, float, World]]:
    """(name, truth, world) of everything that a report prints."""
    for clusters, most in ((12, 4), (48, 1), (48, 6), (300, 4)):
        size = f"{clusters} prompts of 1 to {most}"
        for rate in (0.005, 0.05, 0.5, 0.95):
            yield f"share {rate:g}, {size}", rate, share(rate, clusters, most)
        for up, down in ((0.01, 0.01), (0.03, 0.005), (0.1, 0.1), (0.4, 0.1)):
            yield f"paired shares +{up:g} -{down:g}, {size}", up - down, paired(up, down, clusters, most)
        yield f"mean, {size}", 0.0, mean(clusters, most)
        if clusters > 12:
            yield f"AUC 0.5, {size}", 0.5, auc(clusters, most, 0.0)
            yield f"AUC 0.76, {size}", 0.76025, auc(clusters, most, 1.0)


def coverage(world: World, truth: float, draws: int, seed: int = 0) -> tuple[float, float]:
    """The share of intervals that hold the truth, and their mean width."""
    rng = np.random.default_rng(seed)
    ends = np.array([world(rng).interval for _ in range(draws)])
    return float(((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean()), float((ends[:, 1] - ends[:, 0]).mean())


if __name__ == "__main__":
    draws = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    print("| what | coverage, % | mean width |\n|---|---|---|")
    for name, truth, world in worlds():
        covered, width = coverage(world, truth, draws)
        print(f"| {name} | {100 * covered:.1f} | {width:.3f} |")
