"""The distance below the limit to which the multiplier is steered, so that a certificate can show the limit.

Letters: C constraints, n prompts of a certificate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from scipy.special import nctdtrinc, ndtri, stdtrit  # type: ignore[import-untyped]
from torch import Tensor

from lit_safe.constraint.certificate.bounded_mean import STAKE
from lit_safe.errors.message import SettingError
from lit_safe.types import CostEstimate

HALVINGS = 60
Margin = float | list[float] | Literal["auto"]


@dataclass(frozen=True)
class CertifiedWith:
    """The certificate that ``margin: auto`` prepares for: the command ``certify`` with the same ``cost_range``.

    Args:
        n: Number of prompts on which the policy will be certified, with one response each.
        level: One minus the certificate's probability of error, in (0.5, 1).
        power: Probability, in (0.5, 1), with which a policy at limit - margin is to be certified.
        cost_range: Smallest and largest possible cost, for the betting bound of ``certify``. Null prepares for a test
            by Student's t. Its margin is smaller by a quarter or more, and ``certify`` gives no verdict with it.

    Raises:
        ValueError: If a value is out of its range.
    """

    n: int = 400
    level: float = 0.95
    power: float = 0.8
    cost_range: list[float] | None = None

    def __post_init__(self) -> None:
        if self.n < 2:
            raise ValueError(f"margin_for.n must be at least 2, got {self.n}")
        for name in ("level", "power"):
            if not 0.5 < getattr(self, name) < 1:
                raise ValueError(f"margin_for.{name} must lie in (0.5, 1), got {getattr(self, name)}")
        known = self.cost_range
        if known is not None and not (len(known) == 2 and -math.inf < known[0] < known[1] < math.inf):
            raise ValueError(f"margin_for.cost_range must be two finite numbers in order, got {known}")


def student_margin(spread: Tensor, certificate: CertifiedWith) -> Tensor:
    """How far below the limit E[cost] must be for Student's t to show it with the stated power, in cost units.

    A policy passes if mean + t_level(n - 1) · s / √n ≤ limit, which is HC-RLHF's safety test (arXiv:2506.08266). If
    E[cost] = limit - margin and costs are normal, then (limit - mean) · √n / s follows the noncentral t distribution
    with noncentrality margin · √n / spread. The margin makes it exceed t_level with probability ``power``.

    Args:
        spread: Standard deviation of one response's cost, [] or [C].
        certificate: n, level and power. With C constraints each is tested at a C-th of the error (Bonferroni).

    Returns:
        [] or [C], float64. 0 where the spread is 0.
    """
    degrees, level = certificate.n - 1, 1 - (1 - certificate.level) / spread.numel()
    needed = float(nctdtrinc(degrees, 1 - certificate.power, stdtrit(degrees, level)))
    return needed * spread.double() / certificate.n**0.5


def betting_margin(spread: Tensor, limit: Tensor, certificate: CertifiedWith) -> Tensor:
    """How far below the limit E[cost] must be for the betting bound to show it with the stated power, in cost units.

    The betting bound shows the limit m if the log-capital Σ log(1 + λ_t (m - x_t)) reaches L = log(1 / error). The bets
    are λ_t = min(sqrt(2 L / (n s_t²)), STAKE / (1 - m)), and costs x_t are in units of the range (Waudby-Smith & Ramdas
    2024, Theorem 3). Here s_t² = (1/4 + (t - 1) s²) / t, the variance that ``certificate.bounded_mean.bets`` expects
    before draw t. The margin is the smallest at which the mean of the log-capital less ndtri(power) of its standard
    deviations reaches L. Both moments are those of costs with two values, one of them the upper end of the range: the
    most skewed costs with this mean and spread. The power for other costs is larger.

    Args:
        spread: Standard deviation of one response's cost, [] or [C].
        limit: [] or [C], within the range.
        certificate: n, level, power and range. With C constraints each is tested at a C-th of the error (Bonferroni).

    Returns:
        [] or [C], float64. At most limit - low: then no policy can be certified with n prompts and this spread.
    """
    assert certificate.cost_range is not None
    low, high = certificate.cost_range
    needed = math.log(spread.numel() / (1 - certificate.level))
    width = high - low
    s, price = spread.double() / width, (limit.double().expand(spread.shape) - low) / width
    draw_n = torch.arange(1, certificate.n + 1, dtype=torch.float64)
    variance_n = (0.25 + (draw_n - 1) * s[..., None] ** 2) / draw_n
    cap = STAKE / (1 - price).clamp(min=1e-9)
    bet_n = (2 * needed / (certificate.n * variance_n)).sqrt().minimum(cap[..., None])
    short, enough = torch.zeros_like(price), price
    for _ in range(HALVINGS):
        middle = (short + enough) / 2
        passes = _planned_log_capital(bet_n, price, price - middle, s, certificate.power) >= needed
        short, enough = torch.where(passes, short, middle), torch.where(passes, middle, enough)
    return enough * width


def _planned_log_capital(bet_n: Tensor, price: Tensor, mean: Tensor, s: Tensor, power: float) -> Tensor:
    """[] or [C] the log-capital reached with probability ``power``, for bets [n] or [C, n], in units of the range."""
    variance = (s**2).minimum(mean * (1 - mean))  # no costs in the range have a larger one
    top = variance / (variance + (1 - mean) ** 2)  # probability of the upper end of the range
    other = mean - variance / (1 - mean)
    lost_n, won_n = torch.log1p(bet_n * (price - 1)[..., None]), torch.log1p(bet_n * (price - other)[..., None])
    mean_n = top[..., None] * lost_n + (1 - top)[..., None] * won_n
    variance_n = (top * (1 - top))[..., None] * (won_n - lost_n) ** 2
    return mean_n.sum(-1) - float(ndtri(power)) * variance_n.sum(-1).sqrt()


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

    def of(self, estimate: CostEstimate, limit: Tensor) -> Tensor:
        """The margin at this estimate, [] or [C] in cost units. A spread that is not known counts as 0."""
        if self.margin != "auto":
            return self.values
        spread = estimate.spread
        if spread is None:
            clusters = estimate.effective if estimate.clusters is None else min(estimate.clusters, estimate.effective)
            spread = estimate.stderr.double() * clusters**0.5
        return self.at_spread(spread.double().nan_to_num(), limit)

    def at_spread(self, spread: Tensor, limit: Tensor) -> Tensor:
        """The margin of ``auto`` for costs of this spread."""
        if self.certificate.cost_range is None:
            return student_margin(spread, self.certificate)
        return betting_margin(spread, limit, self.certificate)

    def check(self, limit: Tensor, names: Sequence[str]) -> None:
        """Check that the certificate can show the limit(s) for some policy.

        Raises:
            SettingError: If a limit is not inside the range of costs, or n prompts show it for no policy.
        """
        if self.margin != "auto" or self.certificate.cost_range is None:
            return
        low, high = self.certificate.cost_range
        if not bool(((low < limit) & (limit < high)).all()):
            raise SettingError(f"limit {limit.tolist()} is not inside margin_for.cost_range [{low:g}, {high:g}]")
        limit_C = limit.expand(len(names))
        least_C = self.at_spread(torch.zeros_like(limit_C), limit_C)
        hopeless = [name for name, far in zip(names, (least_C >= limit_C - low).tolist(), strict=True) if far]
        if hopeless:
            raise SettingError(
                f"margin_for.n {self.certificate.n} is too small: with so many prompts no policy can be certified for "
                f"the limit of {hopeless[0]}, not even one whose every cost is {low:g}"
            )

    def sentence(self) -> str:
        """The margin in words, to follow the limit; empty without one."""
        if not self:
            return ""
        if self.margin != "auto":
            listed = ", ".join(f"{value:g}" for value in self.values.reshape(-1).tolist())
            return f"λ steers {listed} below it (dual.margin)"
        test = self.certificate
        bound = "Student's t" if test.cost_range is None else "the betting bound"
        return (
            f"λ steers below it by the margin with which {test.n} prompts certify it at {100 * test.level:g} % "
            f"with power {100 * test.power:g} % by {bound}"
        )
