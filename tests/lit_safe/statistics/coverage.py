"""How often the 95 % intervals of reports cover the truth: ``python -m tests.lit_safe.statistics.coverage``.

Letters: G prompts, n samples.
"""

import math
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

from lit_safe.statistics.bootstrap import FEWEST
from lit_safe.statistics.clustered import Estimate, Floats, Int64s, clustered_mean, paired_difference
from lit_safe.statistics.ranking import clustered_auc

Draw = Callable[[np.random.Generator], Estimate]

SKEWED = math.exp(0.5)
"""The mean of ``_skewed``."""


class World(NamedTuple):
    """A population of which intervals are drawn: what they should cover, and whether drawing 2,000 takes a moment."""

    name: str
    truth: float
    draw: Draw
    cheap: bool


class Size(NamedTuple):
    """How many prompts, and how many samples each: 1 to ``most`` alike, or ``uneven``: most have few, some up to 40."""

    prompts: int
    most: int = 1
    uneven: bool = False

    def __str__(self) -> str:
        return f"{self.prompts} prompts of 1 to {self.most}{', uneven' if self.uneven else ''}"

    def clusters(self, rng: np.random.Generator) -> Int64s:
        if not self.uneven:
            return np.repeat(np.arange(self.prompts), rng.integers(1, self.most + 1, self.prompts))
        sizes = np.ceil(rng.pareto(1.0, self.prompts)).clip(1, self.most).astype(np.int64)
        return np.repeat(np.arange(self.prompts), sizes)


def share(rate: float, size: Size, correlation: float = 0.25) -> Draw:
    alike = 1 / correlation - 1  # beta rates of prompts: so much are samples of one prompt correlated

    def draw(rng: np.random.Generator) -> Estimate:
        prompt = size.clusters(rng)
        value = rng.random(len(prompt)) < rng.beta(alike * rate, alike * (1 - rate), size.prompts)[prompt]
        return clustered_mean(value, prompt, share=True)

    return draw


def paired_share(up: float, down: float, size: Size, correlation: float = 0.25) -> Draw:
    alike = 1 / correlation - 1

    def draw(rng: np.random.Generator) -> Estimate:
        prompt = size.clusters(rng)
        rate = rng.dirichlet([alike * up, alike * down, alike * (1 - up - down)], size.prompts)[prompt]
        u = rng.random(len(prompt))
        rose, fell = u < rate[:, 0], (u >= rate[:, 0]) & (u < rate[:, 0] + rate[:, 1])
        same = rng.random(len(prompt)) < 0.5
        before = np.where(rose, 0, np.where(fell, 1, same))
        return paired_difference(before + rose - 1.0 * fell, before, prompt, share=True)

    return draw


def _even(rng: np.random.Generator, prompt: Int64s) -> Floats:
    """Normal values with mean 0, correlated 0.5 within prompts."""
    return rng.normal(size=prompt.max() + 1)[prompt] + rng.normal(size=len(prompt))


def _skewed(rng: np.random.Generator, prompt: Int64s) -> Floats:
    """Log-normal values with mean ``SKEWED`` and skewness 6.2, as costs and KL have them."""
    return np.exp(0.8 * rng.normal(size=prompt.max() + 1)[prompt] + 0.6 * rng.normal(size=len(prompt)))


def mean(values: Callable[[np.random.Generator, Int64s], Floats], size: Size) -> Draw:
    def draw(rng: np.random.Generator) -> Estimate:
        prompt = size.clusters(rng)
        return clustered_mean(values(rng, prompt), prompt)

    return draw


def paired_mean(size: Size) -> Draw:
    """Skewed changes beside what both sides share."""

    def draw(rng: np.random.Generator) -> Estimate:
        prompt = size.clusters(rng)
        before = 10 * rng.normal(size=len(prompt))
        return paired_difference(before + _skewed(rng, prompt), before, prompt)

    return draw


def per_token(size: Size) -> Draw:
    """A ratio of sums: skewed values per token over responses of 1 to 48 tokens."""

    def draw(rng: np.random.Generator) -> Estimate:
        prompt = size.clusters(rng)
        return clustered_mean(_skewed(rng, prompt), prompt, rng.integers(1, 49, len(prompt)))

    return draw


def paired_per_token(size: Size) -> Draw:
    """Two ratios of sums over the same prompts, with their own lengths; the first is 0.5 higher."""

    def draw(rng: np.random.Generator) -> Estimate:
        prompt = size.clusters(rng)
        before = _skewed(rng, prompt)
        after = 0.5 * before + 0.5 * _skewed(rng, prompt) + 0.5
        tokens = rng.integers(1, 49, len(prompt)), rng.integers(1, 49, len(prompt))
        return paired_difference(after, before, prompt, *tokens)

    return draw


def auc(shift: float, size: Size, *, by_prompt: bool = False) -> Draw:
    """Scores of variance 1 that ``shift`` parts; ``by_prompt`` gives a prompt one label and scores that are alike."""

    def draw(rng: np.random.Generator) -> Estimate:
        prompt = size.clusters(rng)
        positive = rng.random(len(prompt)) < 0.5
        score = rng.normal(size=len(prompt))
        if by_prompt:
            positive = (rng.random(size.prompts) < 0.5)[prompt]
            score = math.sqrt(0.5) * _even(rng, prompt)
        return clustered_auc(score + shift * positive, positive, prompt)

    return draw


def worlds() -> Iterator[World]:
    """One for every kind of interval that a report, a comparison, a scorer's card or ``refusals`` prints."""
    sizes = (
        Size(3, 4),
        Size(6),
        Size(12),
        Size(12, 4),
        Size(12, 40, True),
        Size(48),
        Size(48, 6),
        Size(48, 40, True),
        Size(300, 4),
    )
    for size in sizes:
        cheap = size == Size(12, 4)
        for rate in (0.005, 0.05, 0.5, 0.95, 0.995):
            yield World(f"share {rate:g}, {size}", rate, share(rate, size), cheap)
        for up, down in ((0.01, 0.01), (0.03, 0.005), (0.1, 0.1), (0.4, 0.1), (0.95, 0.0)):
            name = f"paired shares +{up:g} -{down:g}, {size}"
            yield World(name, up - down, paired_share(up, max(down, 1e-9), size), cheap)
        if size.most > 1:
            for rate in (0.05, 0.5):
                yield World(f"share {rate:g}, alike within a prompt, {size}", rate, share(rate, size, 0.8), False)
            name = f"paired shares +0.1 -0.1, alike within a prompt, {size}"
            yield World(name, 0.0, paired_share(0.1, 0.1, size, 0.8), False)
        if size.prompts < FEWEST:
            continue  # no mean has an interval there
        for shift in (0.0, 1.0, 3.3):
            truth = float(ndtr(shift / math.sqrt(2)))
            yield World(f"AUC {truth:.2f}, {size}", truth, auc(shift, size), cheap)
            if size.most > 1:
                name = f"AUC {truth:.2f}, one label a prompt, {size}"
                yield World(name, truth, auc(shift, size, by_prompt=True), False)
        yield World(f"mean, {size}", 0.0, mean(_even, size), cheap)
        yield World(f"skewed mean, {size}", SKEWED, mean(_skewed, size), cheap or size == Size(6))
        yield World(f"skewed paired mean, {size}", SKEWED, paired_mean(size), False)
        yield World(f"skewed mean per token, {size}", SKEWED, per_token(size), cheap)
        yield World(f"skewed paired mean per token, {size}", 0.5, paired_per_token(size), cheap)
    yield World("skewed mean, 1200 prompts of 1 to 1", SKEWED, mean(_skewed, Size(1200)), False)


class Coverage(NamedTuple):
    """Of the intervals that are printed, the share that holds the truth, and their mean width."""

    share: float
    width: float
    upper: float
    """The share whose upper end is not below the truth: that end is a one-sided bound, as of a cost under a limit."""
    printed: float
    """The share of draws that have an interval."""


def coverage(world: World, draws: int, seed: int) -> Coverage:
    """Draw estimates of ``world`` and count."""
    rng = np.random.default_rng(seed)
    ends = np.array([world.draw(rng).interval for _ in range(draws)])
    low, high = ends[~np.isnan(ends[:, 0])].T
    bounded = world.truth <= high
    held = (low <= world.truth) & bounded
    return Coverage(float(held.mean()), float((high - low).mean()), float(bounded.mean()), len(low) / draws)


if __name__ == "__main__":
    draws, seed = (int(word) for word in sys.argv[1:])
    print("| what | coverage, % | mean width | upper end, % | printed, % |\n|---|---|---|---|---|")
    for world in worlds():
        held, width, upper, printed = coverage(world, draws, seed)
        print(
            f"| {world.name} | {100 * held:.1f} | {width:.3f} | {100 * upper:.1f} | {100 * printed:.1f} |", flush=True
        )
