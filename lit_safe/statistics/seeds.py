"""The mean over training seeds of a measurement on the same prompts, with an interval for new seeds and new prompts.

A bootstrap on both levels: seeds and prompts are resampled independently, because each seed is measured on every prompt
(Owen 2007, Annals of Applied Statistics 1, 386-411). A resample of k items has a variance that is too small by
(k - 1) / k, so both parts are widened by the root of k / (k - 1).

Letters: S seeds, G prompts, R resamples.
"""

import math

import numpy as np
import numpy.typing as npt

from lit_safe.hashing import hash64
from lit_safe.statistics.clustered import Estimate

RESAMPLES = 1999


def mean_over_seeds(value_SG: npt.ArrayLike) -> Estimate:
    """The mean with its standard error and 95 % interval.

    With two or three seeds the interval is a rough one: so few seeds hardly tell how seeds vary.

    Args:
        value_SG: A value for each seed and prompt.

    Returns:
        The estimate; ``count`` is the number of seeds, ``clusters`` that of prompts. Error and interval are NaN with
        one seed or one prompt.

    Raises:
        ValueError: If there is no value, or one is not finite.
    """
    value = np.asarray(value_SG, np.float64)
    if value.ndim != 2 or not value.size or not np.isfinite(value).all():
        raise ValueError(f"values [seeds, prompts] must be finite and not empty, got shape {value.shape}")
    S, G = value.shape
    mean = float(value.mean())
    if min(S, G) < 2:
        return Estimate(mean, math.nan, S, G)
    generator = np.random.default_rng(hash64("seeds", S, G))
    seed_RS = math.sqrt(S / (S - 1)) * (generator.multinomial(S, np.full(S, 1 / S), RESAMPLES) / S - 1 / S)
    prompt_RG = math.sqrt(G / (G - 1)) * (generator.multinomial(G, np.full(G, 1 / G), RESAMPLES) / G - 1 / G)
    seed_S, prompt_G = value.mean(1) - mean, value.mean(0) - mean
    both_SG = value - mean - seed_S[:, None] - prompt_G
    change_R = seed_RS @ seed_S + prompt_RG @ prompt_G + ((seed_RS @ both_SG) * prompt_RG).sum(1)
    low, high = np.quantile(change_R, [0.025, 0.975])
    return Estimate(mean, float(change_R.std()), S, G, (mean - float(high), mean - float(low)))
