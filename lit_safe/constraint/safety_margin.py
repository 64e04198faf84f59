"""The distance below the limit to which the multiplier is steered, so that a certificate can show the limit.

Letters: C constraints.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from scipy.special import nctdtrinc, stdtrit  # type: ignore[import-untyped]
from torch import Tensor

from lit_safe.types import CostEstimate

Margin = float | list[float] | Literal["auto"]


@dataclass(frozen=True)
class CertifiedWith:
    """The certificate that ``margin: auto`` prepares for.

    Args:
        n: Number of prompts on which the policy will be certified, with one response each.
        level: Confidence level of the certificate's one-sided bound, in (0.5, 1).
        power: Probability, in (0.5, 1), with which a policy at limit - margin is to be certified.

    Raises:
        ValueError: If a value is out of its range.
    """

    n: int = 400
    level: float = 0.95
    power: float = 0.8

    def __post_init__(self) -> None:
        if self.n < 2:
            raise ValueError(f"margin_for.n must be at least 2, got {self.n}")
        for name in ("level", "power"):
            if not 0.5 < getattr(self, name) < 1:
                raise ValueError(f"margin_for.{name} must lie in (0.5, 1), got {getattr(self, name)}")


def certifiable_margin(spread: Tensor, certificate: CertifiedWith) -> Tensor:
    """How far below the limit E[cost] must be to be certified with the stated power, in cost units.

    A policy is certified if mean + t_level(n - 1) · s / √n ≤ limit: the one-sided bound of Student's t, which is
    HC-RLHF's safety test (arXiv:2506.08266). If E[cost] = limit - margin and costs are normal, then
    (limit - mean) · √n / s follows the noncentral t distribution with noncentrality margin · √n / spread, and the
    margin makes it exceed t_level with probability ``power``. Costs that are not normal have this power approximately
    for large n. A bound that holds without assumptions on the distribution is wider, and needs a larger margin.

    Args:
        spread: Standard deviation of one response's cost, [] or [C].
        certificate: n, level and power.

    Returns:
        [] or [C], float64. 0 where the spread is 0.
    """
    degrees = certificate.n - 1
    needed = float(nctdtrinc(degrees, 1 - certificate.power, stdtrit(degrees, certificate.level)))
    return needed * spread.double() / certificate.n**0.5


@dataclass(frozen=True)
class SafetyMargin:
    """The option ``dual.margin``. The report and the certificate speak of the limit; only the steps see the margin.

    Raises:
        ValueError: If a margin is negative or not finite.
    """

    margin: Margin
    certificate: CertifiedWith

    def __post_init__(self) -> None:
        if self.margin != "auto":
            value = torch.tensor(self.margin, dtype=torch.float64)
            if not bool((value.isfinite() & (value >= 0)).all()):
                raise ValueError(f"margin must be auto, or >= 0 and finite, got {self.margin}")

    def __bool__(self) -> bool:
        return self.margin == "auto" or bool((self.values > 0).any())

    @property
    def values(self) -> Tensor:
        """The given margin(s), [] or [C]; 0 for ``auto``."""
        return torch.tensor(0.0 if self.margin == "auto" else self.margin, dtype=torch.float64)

    def of(self, estimate: CostEstimate) -> Tensor:
        """The margin at this estimate, [] or [C] in cost units. A spread that is not known counts as 0."""
        if self.margin != "auto":
            return self.values
        spread = estimate.spread
        if spread is None:
            clusters = estimate.effective if estimate.clusters is None else min(estimate.clusters, estimate.effective)
            spread = estimate.stderr.double() * clusters**0.5
        return certifiable_margin(spread.double().nan_to_num(), self.certificate)

    def sentence(self) -> str:
        """The margin in words, to follow the limit; empty without one."""
        if not self:
            return ""
        if self.margin != "auto":
            listed = ", ".join(f"{value:g}" for value in self.values.reshape(-1).tolist())
            return f"λ steers {listed} below it (dual.margin)"
        test = self.certificate
        return (
            f"λ steers below it by the margin with which {test.n} prompts certify it at {100 * test.level:g} % "
            f"with power {100 * test.power:g} %"
        )
