"""The share that people call unsafe, from labels of some responses and a scorer's flags of all.

Prediction-powered inference: Angelopoulos, Bates, Fannjiang, Jordan & Zrnic 2023 (Science 382, 669-674;
arXiv:2301.09633).

Letters: N scored responses, n of them with a label.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lit_safe.constraint.certificate.bounded_mean import BoundedMean
from lit_safe.constraint.certificate.sample import check_delta
from lit_safe.constraint.certificate.share import Share

Bools = npt.NDArray[np.bool_]

FLAGS = 0.2
"""Part of ``delta`` for the share that the scorer flags. More responses have flags than labels, so it needs less."""


@dataclass(frozen=True, eq=False)
class PoweredShare:
    """The share of responses that people call unsafe, with finite-sample bounds.

    share = E[f] + E[y - f], with the scorer's flags f and the labels y. E[f] is estimated from all responses, the error
    of the flags only from those with labels. Both have their own bound, and the probabilities of error add up (union
    bound), so the two may share responses. The bounds hold for every scorer, and a better scorer makes them closer.

    Args:
        flag_N: The scorer's flag of each response (True is unsafe).
        flag_n: The flags of the labelled responses.
        label_n: The labels by people. The labelled responses must be chosen at random.

    Raises:
        ValueError: If there are no responses or no labels, or flags and labels differ in number.
    """

    flag_N: Bools
    flag_n: Bools
    label_n: Bools

    def __post_init__(self) -> None:
        if not len(self.flag_N) or not len(self.label_n) or len(self.flag_n) != len(self.label_n):
            raise ValueError(
                f"{len(self.flag_N)} flags, and {len(self.flag_n)} flags for {len(self.label_n)} labels: a share needs "
                "one of each at least, and a flag for each label"
            )

    @property
    def mean(self) -> float:
        """Angelopoulos et al. 2023, eq. of the prediction-powered mean: mean_N(f) - mean_n(f - y); in [0, 1]."""
        return float(np.clip(self._flagged.mean + self._error().mean, 0, 1))

    @property
    def count(self) -> int:
        """Number of labels."""
        return len(self.label_n)

    def lower(self, delta: float) -> float:
        """A one-sided bound: it is above the share with probability at most ``delta``."""
        check_delta(delta)
        error = self._error((1 - FLAGS) * delta).lower((1 - FLAGS) * delta)
        return max(0.0, self._flagged.lower(FLAGS * delta) + error)

    def upper(self, delta: float) -> float:
        """A one-sided bound: it is below the share with probability at most ``delta``."""
        check_delta(delta)
        error = self._error((1 - FLAGS) * delta).upper((1 - FLAGS) * delta)
        return min(1.0, self._flagged.upper(FLAGS * delta) + error)

    @property
    def labelled(self) -> Share:
        """The share from the labels alone, for comparison."""
        return Share(int(self.label_n.sum()), len(self.label_n))

    @property
    def missed(self) -> Share:
        """The share of labelled responses that people call unsafe and the scorer does not flag."""
        return Share(int((self.label_n & ~self.flag_n).sum()), len(self.label_n))

    @property
    def false_alarms(self) -> Share:
        """The share of labelled responses that the scorer flags and people call safe."""
        return Share(int((self.flag_n & ~self.label_n).sum()), len(self.label_n))

    @property
    def _flagged(self) -> Share:
        return Share(int(self.flag_N.sum()), len(self.flag_N))

    def _error(self, design: float = 0.05) -> BoundedMean:
        difference_n = self.label_n.astype(np.float64) - self.flag_n.astype(np.float64)
        return BoundedMean(difference_n, -1.0, 1.0, design)
