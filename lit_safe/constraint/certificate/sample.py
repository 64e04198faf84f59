"""What a certificate asks of a sample: bounds of its mean, and evidence for and against a limit."""

from typing import Protocol


class Sample(Protocol):
    """Independent draws of one quantity, with bounds of its expectation that hold for every sample size."""

    @property
    def count(self) -> int:
        """Number of draws."""

    @property
    def mean(self) -> float:
        """The sample's mean, in the units of the draws."""

    def lower(self, delta: float) -> float:
        """A one-sided bound: it is above the expectation with probability at most ``delta``."""

    def upper(self, delta: float) -> float:
        """A one-sided bound: it is below the expectation with probability at most ``delta``."""

    def p_above(self, limit: float) -> float:
        """A p-value of the hypothesis that the expectation is above ``limit``. A small one supports the limit."""

    def p_within(self, limit: float) -> float:
        """A p-value of the hypothesis that the expectation is at most ``limit``. A small one refutes the limit."""

    def repeated(self, count: int) -> "Sample":
        """``count`` draws that are distributed like this sample, to estimate what a larger sample would show."""


def check_delta(delta: float) -> None:
    """Check that ``delta`` is a probability between 0 and 1.

    Raises:
        ValueError: If it is not.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta is the probability of a wrong claim and must be between 0 and 1, got {delta}")
