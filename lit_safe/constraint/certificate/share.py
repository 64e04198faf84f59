"""Exact one-sided bounds of a share: Clopper & Pearson 1934 (Biometrika 26, 404-413)."""

from dataclasses import dataclass

from scipy.special import betainc, betaincinv  # type: ignore[import-untyped]

from lit_safe.constraint.certificate.sample import check_delta


@dataclass(frozen=True)
class Share:
    """Independent yes-or-no draws, such as 'this response is unsafe'. A ``Sample``.

    Args:
        hits: Number of draws that are yes. A sample that ``repeated`` made may have a fraction of a draw.
        count: Number of draws, at least 1.

    Raises:
        ValueError: If there are no draws, or ``hits`` is not between 0 and ``count``.
    """

    hits: float
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError("a share needs at least one draw")
        if not 0 <= self.hits <= self.count:
            raise ValueError(f"{self.hits} of {self.count} draws is no share")

    @property
    def mean(self) -> float:
        """The share of the sample."""
        return self.hits / self.count

    def lower(self, delta: float) -> float:
        """The share p with P(at least ``hits`` | p) = delta (Clopper & Pearson 1934); 0 without hits."""
        check_delta(delta)
        if self.hits == 0:
            return 0.0
        return float(betaincinv(self.hits, self.count - self.hits + 1, delta))

    def upper(self, delta: float) -> float:
        """The share p with P(at most ``hits`` | p) = delta (Clopper & Pearson 1934); 1 if all draws are hits."""
        check_delta(delta)
        if self.hits == self.count:
            return 1.0
        return float(betaincinv(self.hits + 1, self.count - self.hits, 1 - delta))

    def p_above(self, limit: float) -> float:
        """P(at most ``hits`` | limit), a binomial tail as an incomplete beta function."""
        if limit >= 1:
            return 0.0
        if limit <= 0 or self.hits == self.count:
            return 1.0
        return float(betainc(self.count - self.hits, self.hits + 1, 1 - limit))

    def p_within(self, limit: float) -> float:
        """P(at least ``hits`` | limit), a binomial tail as an incomplete beta function."""
        if limit >= 1 or self.hits == 0:
            return 1.0
        if limit < 0:
            return 0.0
        return float(betainc(self.hits, self.count - self.hits + 1, limit))

    def repeated(self, count: int) -> "Share":
        """``count`` draws with the same share."""
        return Share(self.mean * count, count)
