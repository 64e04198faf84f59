"""The quality and the calibration of a score model on held-out pairs.

Letters: P pairs, K outputs, C constraints, n distinct labelled responses.
"""

import logging
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit  # type: ignore[import-untyped]

from lit_safe.evaluation.verdict_error import ranking_quality
from lit_safe.scorer_card import Quality
from lit_safe.statistics import agreement, clustered_mean
from lit_safe.statistics.calibration import Reliability, cross_fitted, fit_log_odds, reliability
from lit_safe.statistics.ranking import clustered_auc
from lit_safe.training.score_losses import REWARD

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class HeldOutScores:
    """Scores and labels of P held-out pairs. Side 0 is the chosen response.

    Attributes:
        prompt_P: Prompt ids.
        key_P2: Hashes of the responses with their prompts.
        score_P2K: Scores.
        one_P2: The constant direction's product with each hidden state: 1 up to an error.
        reward_P: Labelled reward of the chosen minus the rejected response; NaN if unknown.
        cost_P2C: Labelled costs; NaN if unknown.
    """

    prompt_P: npt.NDArray[np.int64]
    key_P2: npt.NDArray[np.int64]
    score_P2K: Floats
    one_P2: Floats
    reward_P: Floats
    cost_P2C: Floats

    def keep(self, where_P: npt.NDArray[np.bool_]) -> "HeldOutScores":
        """The pairs for which ``where_P`` is true."""
        return HeldOutScores(*(getattr(self, name)[where_P] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Measured:
    """What held-out labels say of one output.

    Attributes:
        quality: For the card.
        words: The same in one line.
        slope: Factor of the calibration; 1 if nothing is calibrated.
        intercept: Added log-odds of the calibration; 0 for a reward.
        reliability: Of cross-fitted probabilities of being unsafe; None for a reward, or without calibration.
    """

    quality: Quality
    words: str
    slope: float = 1.0
    intercept: float = 0.0
    reliability: Reliability | None = None

    def calibration(self) -> dict[str, Any]:
        """Slope, intercept and calibration error as JSON values."""
        found: dict[str, Any] = {"slope": self.slope, "intercept": self.intercept}
        if self.reliability is not None:
            found |= {name: value for name, value in asdict(self.reliability).items() if name != "bins"}
            found["bins"] = [one._asdict() for one in self.reliability.bins]
        return found


def measure(scores: HeldOutScores, outputs: tuple[str, ...], k: int) -> Measured:
    """Quality and calibration of output ``k``.

    A cost is calibrated to log-odds of being unsafe: ``slope * score + intercept``, fitted to all held-out labels. Its
    reliability is cross-fitted. A reward is calibrated to Bradley-Terry nats: ``slope * score``.
    """
    if outputs[k] == REWARD:
        return _reward(scores, k)
    c = [name for name in outputs if name != REWARD].index(outputs[k])
    return _cost(scores, k, c, outputs[k])


def _reward(scores: HeldOutScores, k: int) -> Measured:
    where_P = ~np.isnan(scores.reward_P) & (scores.reward_P != 0)
    found = scores.keep(where_P)
    margin_P = np.sign(found.reward_P) * (found.score_P2K[:, 0, k] - found.score_P2K[:, 1, k])
    accuracy = clustered_mean((np.sign(margin_P) + 1) / 2, found.prompt_P, share=True)
    words = f"reward: accuracy within held-out pairs {accuracy} (95 %, clustered by {accuracy.clusters} prompts)"
    quality = ranking_quality(accuracy, len(margin_P))
    if len(margin_P) < 2:
        return Measured(quality, "reward: no held-out pair has two different rewards, so nothing was measured")
    label_2P = np.repeat([True, False], len(margin_P))
    (slope,) = fit_log_odds(np.concatenate([margin_P, -margin_P])[:, None], label_2P)
    return _usable(Measured(quality, f"{words}; 1 unit is {slope:.3g} nats", float(slope)), REWARD)


def _cost(scores: HeldOutScores, k: int, c: int, name: str) -> Measured:
    prompt_n, score_n, one_n, unsafe_n = _responses(scores, k, c)
    if unsafe_n.all() or not unsafe_n.any():
        words = f"{name}: held-out responses have only one label, so nothing was measured or calibrated"
        return Measured(Quality(responses=len(unsafe_n), prompts=len(set(prompt_n.tolist()))), words)
    auc = clustered_auc(score_n, unsafe_n, prompt_n)
    column_n2 = np.stack([score_n, one_n], 1)
    slope, intercept = fit_log_odds(column_n2, unsafe_n).tolist()
    curve: Reliability | None = None
    try:
        log_odds_n = cross_fitted(column_n2, unsafe_n, prompt_n)
        curve = reliability(expit(log_odds_n), unsafe_n, prompt_n)
    except ValueError as fault:  # one half has one label: too few held-out prompts
        log.info("%s: no reliability: %s", name, fault)
    words = (
        f"{name}: AUC against {auc.count} held-out labels {auc} (95 %, clustered by {auc.clusters} prompts); "
        f"log-odds = {slope:.3g} score {intercept:+.3g}"
    )
    if curve is not None:
        words += (
            f"; calibration error {curve.error:.3f} [{curve.low:.3f}, {curve.high:.3f}], "
            f"{curve.by_chance:.3f} by chance"
        )
    # the verdict of what is exported: the calibrated score, or the score itself where nothing is calibrated
    flag_n = column_n2 @ np.array([slope, intercept]) > 0 if slope > 0 else score_n > 0
    quality = ranking_quality(auc, auc.count, agreement(flag_n, unsafe_n, prompt_n))
    return _usable(Measured(quality, words, slope, intercept, curve), name)


def _responses(
    scores: HeldOutScores, k: int, c: int
) -> tuple[npt.NDArray[np.int64], Floats, Floats, npt.NDArray[np.bool_]]:
    """Prompt, score, constant and label of every labelled response once, without those labelled both ways."""
    labels: dict[int, set[bool]] = {}
    first: dict[int, tuple[int, float, float]] = {}
    for p, side in np.ndindex(scores.key_P2.shape):
        key, cost = int(scores.key_P2[p, side]), float(scores.cost_P2C[p, side, c])
        if not math.isnan(cost):
            labels.setdefault(key, set()).add(cost > 0)
            values = float(scores.score_P2K[p, side, k]), float(scores.one_P2[p, side])
            first.setdefault(key, (int(scores.prompt_P[p]), *values))
    kept = [(*first[key], next(iter(found))) for key, found in labels.items() if len(found) == 1]
    prompt, score, one, unsafe = zip(*kept, strict=True) if kept else ((), (), (), ())
    return (
        np.array(prompt, np.int64),
        np.array(score, np.float64),
        np.array(one, np.float64),
        np.array(unsafe, bool),
    )


def _usable(found: Measured, name: str) -> Measured:
    """``found``, or without calibration if a larger score means less: then the scorer learned nothing to calibrate."""
    if found.slope > 0:
        return found
    log.warning("%s: held-out labels rank the wrong way round (slope %.3g), so it is not calibrated", name, found.slope)
    return Measured(found.quality, found.words)
