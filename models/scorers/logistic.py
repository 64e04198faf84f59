"""Logistic regression with out-of-fold calibration, used by every fitted scorer on top of its features.

Letters: n texts, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy.sparse import csr_matrix  # type: ignore[import-untyped]
from torch import Tensor

from lit_safe.hashing import hash64
from models.extras import require

Matrix: TypeAlias = csr_matrix | NDArray[np.float64]
"""[n, F] features of n texts, sparse or dense."""

FOLDS = 5


@dataclass(frozen=True)
class LogisticHead:
    """Calibrated log-odds ``features @ weight + bias`` of being positive.

    Attributes:
        weight: [F] float64.
        bias: Log-odds.
        threshold: Log-odds such that the share of unseen texts above it equals the share labelled positive.
    """

    weight: Tensor
    bias: float
    threshold: float

    def log_odds(self, features: Matrix) -> Tensor:
        """[n] float64."""
        return torch.from_numpy(np.asarray(features @ self.weight.numpy())) + self.bias

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        numbers = torch.tensor([self.bias, self.threshold], dtype=torch.float64)
        save_file({"weight": self.weight, "bias_threshold": numbers}, path)

    @classmethod
    def load(cls, path: Path) -> "LogisticHead":
        """Read the head that ``save`` wrote."""
        tensors = load_file(path)
        bias, threshold = tensors["bias_threshold"].tolist()
        return cls(tensors["weight"], bias, threshold)


def fit_logistic_head(
    features: Matrix, positive: Sequence[bool], groups: Sequence[int], strength: float
) -> tuple[LogisticHead, Tensor]:
    """Fit on all texts; scale, offset and threshold come from out-of-fold scores.

    In-sample scores of many features are far too confident. So the log-odds are calibrated (Platt 1999) and the
    threshold is chosen on out-of-fold scores. The fold of a text is a hash of its group.

    Args:
        features: [n, F].
        positive: [n] labels.
        groups: [n] prompt ids. Texts of one group are in the same fold.
        strength: Inverse of the L2 penalty (scikit-learn's C).

    Returns:
        The head, and the calibrated out-of-fold log-odds [n] of the texts.

    Raises:
        ValueError: If a fold has only one label, or the features do not rank unseen texts.
    """
    label = np.asarray(positive, dtype=bool)
    fold = np.asarray([hash64("fold", group) % FOLDS for group in groups])
    held_out = np.zeros(len(label))
    for k in range(FOLDS):
        fitted = _regression(features[fold != k], label[fold != k], strength)
        if (fold == k).any():
            held_out[fold == k] = fitted.decision_function(features[fold == k])
    platt = _regression(held_out[:, None], label, 1e6)
    slope, offset = float(platt.coef_[0, 0]), float(platt.intercept_[0])
    if slope <= 0:
        raise ValueError(
            f"these features do not rank unseen texts: slope {slope:.3g} on {len(label)} out-of-fold scores"
        )
    calibrated = slope * held_out + offset
    final = _regression(features, label, strength)
    head = LogisticHead(
        weight=torch.from_numpy(slope * final.coef_[0]),
        bias=slope * float(final.intercept_[0]) + offset,
        threshold=float(np.quantile(calibrated, 1 - label.mean())),
    )
    return head, torch.from_numpy(calibrated)


def _regression(features: Matrix, label: NDArray[np.bool_], strength: float) -> Any:
    if len(set(label.tolist())) < 2:
        raise ValueError(f"{len(label)} texts of one label cannot be fitted: both labels are needed, in every fold")
    # liblinear: deterministic, and fast on wide sparse features
    linear = require("sklearn.linear_model", extra="eval", reason="fitting a scorer")
    return linear.LogisticRegression(C=strength, solver="liblinear", max_iter=1000, random_state=0).fit(features, label)
