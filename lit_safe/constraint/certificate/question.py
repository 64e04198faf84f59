"""What a certificate asks: which limits, of which costs, in which units, with which probability of error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lit_safe.constraint.certificate.sample import check_delta
from lit_safe.errors.message import SettingError


@dataclass(frozen=True)
class Question:
    """The limits that a certificate tests. All are set before a response is drawn.

    Args:
        limit: Largest acceptable E[cost] of each constraint, in ``units``; a single number is that of every constraint.
            None tests only the share of unsafe responses.
        cost_range: The smallest and the largest possible cost, in ``units``.
        units: Units of the costs.
        unsafe_limit: Largest acceptable share of unsafe responses (cost > 0), between 0 and 1; None tests no share.
        delta: Probability of a wrong claim.
        clip: Whether costs outside the range are set to its ends. The certificate is then about clipped costs.

    Raises:
        SettingError: If no limit is given, E[cost] has a limit and no range, or a limit is outside its range.
    """

    limit: tuple[float, ...] | None
    cost_range: tuple[float, float] | None
    units: str
    unsafe_limit: float | None = None
    delta: float = 0.05
    clip: bool = False

    def __post_init__(self) -> None:
        try:
            check_delta(self.delta)
        except ValueError as error:
            raise SettingError(str(error)) from None
        if self.limit is None and self.unsafe_limit is None:
            raise SettingError("there is no limit to certify: give --limit with --cost_range, or --unsafe_limit")
        if self.unsafe_limit is not None and not 0 < self.unsafe_limit < 1:
            raise SettingError(f"unsafe_limit is a share between 0 and 1, got {self.unsafe_limit}")
        if self.cost_range is not None:
            low, high = self.cost_range
            if not -math.inf < low < high < math.inf:
                raise SettingError(f"cost_range must be two finite numbers in order, got [{low}, {high}]")
        if self.limit is None:
            return
        if self.cost_range is None:
            raise SettingError(
                "a bound of E[cost] needs the range of the costs: give --cost_range '[LOW, HIGH]' in "
                f"{self.units}, or certify only the share of unsafe responses with --unsafe_limit"
            )
        low, high = self.cost_range
        for limit in self.limit:
            if not low <= limit < high:
                raise SettingError(
                    f"the limit {limit} is not in the cost_range [{low}, {high}], so every policy would keep it or "
                    f"break it: state both in {self.units}"
                )

    def limits(self, names: Sequence[str]) -> dict[str, float]:
        """The limit of each constraint.

        Raises:
            SettingError: If two constraints have the same name, or the number of limits differs from theirs.
        """
        if len(set(names)) < len(names):
            raise SettingError(f"two constraints have the same name: {', '.join(names)}")
        if self.limit is None:
            return {}
        limits = self.limit * len(names) if len(self.limit) == 1 else self.limit
        if len(limits) != len(names):
            raise SettingError(f"{len(limits)} limits for the {len(names)} constraints {', '.join(names)}")
        return dict(zip(names, limits, strict=True))
