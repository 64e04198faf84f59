"""Compares a policy's cost estimate and its one-sided bounds with the limits.

Letters: C constraints.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from scipy.special import stdtrit  # type: ignore[import-untyped]
from torch import Tensor

from lit_safe.errors.message import SettingError
from lit_safe.rollouts.scoring import declared_range, name_of
from lit_safe.types import CostEstimate

Verdict = Literal["met", "not met", "undecided"]
LEVEL = 0.95  # confidence level of a one-sided bound


class Standing(NamedTuple):
    """A cost estimate and its limits, one entry per constraint, in cost units.

    The policy is that at the end of ``epoch``. ``degrees`` are the degrees of freedom of the errors. ``bounds`` are the
    estimator's own one-sided bounds, lower and upper.
    """

    names: tuple[str, ...]
    limit: tuple[float, ...]
    cost: tuple[float, ...]
    stderr: tuple[float, ...]
    degrees: float
    epoch: int
    bounds: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    @property
    def upper(self) -> tuple[float, ...]:
        """One-sided 95 % upper bounds on E[cost]: the estimator's own, else by Student's t. NaN if unknown."""
        return self._bounds(1.0)

    @property
    def both_bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """One-sided 95 % lower and upper bounds on E[cost]."""
        return self._bounds(-1.0), self.upper

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """``met`` if the upper bound is within the limit, ``not met`` if the lower bound exceeds it."""
        bounds = zip(self._bounds(-1.0), self.upper, self.limit, strict=True)
        return tuple(
            "met" if high <= limit else "not met" if low > limit else "undecided" for low, high, limit in bounds
        )

    @property
    def feasible(self) -> bool:
        """Whether every limit is met."""
        return all(verdict == "met" for verdict in self.verdicts)

    def _bounds(self, sign: float) -> tuple[float, ...]:
        if self.bounds is not None:
            return self.bounds[sign > 0]
        reach = float(stdtrit(max(self.degrees, 1.0), LEVEL))
        return tuple(
            cost if error == 0 else cost + sign * reach * error
            for cost, error in zip(self.cost, self.stderr, strict=True)
        )

    def as_json(self) -> list[dict[str, Any]]:
        """One mapping per constraint. Unknown values are null."""
        columns = zip(self.names, self.limit, self.cost, self.stderr, self.upper, self.verdicts, strict=True)
        keys = ("constraint", "limit", "cost", "stderr", "upper", "verdict")
        rows = [dict(zip(keys, row, strict=True)) for row in columns]
        return [
            {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()} for row in rows
        ]

    def state_dict(self) -> dict[str, Any]:
        """The standing as plain values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self._asdict().items()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "Standing":
        """Rebuild from the result of ``state_dict``."""
        limit, cost, stderr = (tuple(map(float, state[name])) for name in ("limit", "cost", "stderr"))
        pair = state.get("bounds")
        bounds = None if pair is None else (tuple(map(float, pair[0])), tuple(map(float, pair[1])))
        return cls(tuple(state["names"]), limit, cost, stderr, float(state["degrees"]), int(state["epoch"]), bounds)


def check_limit(limit: Tensor, cost: object) -> None:
    """Check that the range of costs that a cost function declares has room for the limit(s).

    Args:
        limit: [] or [C], in cost units: what the multiplier steers to.
        cost: The cost function. Without a declared range, any limit is allowed.

    Raises:
        SettingError: If a limit is below the smallest cost, so that no policy meets it.
        ValueError: If the declared range is no range.
    """
    declared = declared_range(cost)
    if declared is not None and bool((limit < declared[0]).any()):
        raise SettingError(
            f"the limit {limit.tolist()} is below the range [{declared[0]:g}, {declared[1]:g}] of the costs of "
            f"{name_of(cost)}, so no policy meets it: raise dual.limit"
        )


def standing(names: Sequence[str], limit_C: Tensor, estimate: CostEstimate, epoch: int) -> Standing:
    """The standing of the policy at the end of ``epoch``, from an estimate [] or [C] of its cost."""
    clusters = estimate.effective if estimate.clusters is None else min(estimate.clusters, estimate.effective)
    cost_C, stderr_C = (value.double().reshape(-1) for value in (estimate.mean, estimate.stderr))
    limit, cost, stderr = (
        tuple(c.tolist()) for c in (limit_C.double().expand(cost_C.shape), cost_C, stderr_C.expand(cost_C.shape))
    )
    pair = None if estimate.bounds is None else estimate.bounds.double().reshape(2, -1).tolist()
    bounds = None if pair is None else (tuple(pair[0]), tuple(pair[1]))
    return Standing(tuple(names), limit, cost, stderr, float(clusters) - 1, epoch, bounds)


def sentence(limit: Mapping[str, Any]) -> str:
    """The first sentence of a report: each limit, the estimate, its bound, and whether the limit is met.

    Args:
        limit: A mapping with ``constraints``, the rows of :meth:`Standing.as_json`. If nothing is known, the reason is
            in ``unknown``.
    """
    rows = limit["constraints"]
    if not rows:
        return f"**Limit: undecided.** Nothing is known of E[cost]: {limit['unknown']}."
    parts = []
    for row in rows:
        name = f" on {row['constraint']}" if len(rows) > 1 else ""
        bound = (
            "its error is not known (too few prompts, or costs that do not vary)"
            if row["upper"] is None
            else f"95 % one-sided bound {row['upper']:.4g}"
        )
        parts.append(f"**Limit{name} {row['limit']:g}: {row['verdict']}.** E[cost] {row['cost']:.4g}, {bound}")
    return "; ".join(parts) + "."


def at_least(value_C: Tensor, maximum: Tensor | float) -> Tensor:
    """[C] whether a multiplier is at its maximum, compared in its dtype, which may round the maximum."""
    return value_C >= torch.as_tensor(maximum, dtype=value_C.dtype)
