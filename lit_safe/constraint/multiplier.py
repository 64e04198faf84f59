"""Messages about multipliers that stay at 0 or at the maximum, and the check that ranks agree.

Letters: C constraints; a multiplier is [] or [C], in reward nats per cost unit.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_safe.constraint.limits import at_least
from lit_safe.execution.ranks import gather

log = logging.getLogger(__name__)

LONG = 2  # epochs at 0 or at the maximum after which the limit is said not to bind, or not to be met


def agree(multiplier: Tensor, device: torch.device) -> None:
    """Check that all ranks computed the same multiplier.

    Raises:
        RuntimeError: If they differ. The message lists the multipliers of all ranks.
    """
    ranks = gather(multiplier[None], device)
    if not bool((ranks == ranks[0]).all()):
        raise RuntimeError(f"ranks disagree on the multiplier: {ranks.tolist()}")


class BoundWatch:
    """Counts the epochs that each multiplier ends at 0 or at its maximum, and logs a message when this matters."""

    def __init__(self) -> None:
        self._where: dict[str, tuple[str, int]] = {}
        self._said: set[tuple[str, str, bool]] = set()

    def see(
        self,
        names: Sequence[str],
        before: Tensor,
        after: Tensor,
        cost: Tensor,
        limit: Tensor,
        maximum: Tensor | float,
    ) -> None:
        """Record the end of an epoch. All tensors are [] or [C].

        Args:
            names: Suffixes of ``multiplier`` by constraint; one empty name if there is one constraint.
            before: The multiplier during the epoch.
            after: The multiplier of the next epoch.
            cost: The estimate of E[cost].
            limit: Bound(s) on E[cost].
            maximum: Upper bound(s) of the multiplier.
        """
        maximum = torch.as_tensor(maximum, dtype=torch.float64)
        top_C = at_least(after, maximum).reshape(-1).tolist()
        each = (before, after, cost, limit.expand(after.shape), maximum.expand(after.shape))
        columns = (value.reshape(-1).tolist() for value in each)
        for name, top, old, new, estimate, bound, most in zip(names, top_C, *columns, strict=True):
            where = "maximum" if top and estimate > bound else "0" if new == 0 and estimate <= bound else ""
            earlier, epochs = self._where.get(name, ("", 0))
            self._where[name] = where, epochs + 1 if where == earlier else 1
            self._say(name, old, most, estimate, bound)

    def _say(self, name: str, old: float, maximum: float, cost: float, limit: float) -> None:
        where, epochs = self._where[name]
        long = epochs >= LONG
        if not where:
            self._said = {said for said in self._said if said[0] != name}
            return
        if (name, where, long) in self._said:
            return
        self._said |= {(name, where, long), (name, where, False)}
        if where == "maximum" and long:
            log.warning("the multiplier%s has been at its maximum %g for %d epochs, and the cost %.4g is still over "
                        "its limit %g: no multiplier up to dual.maximum meets this limit with these data and this "
                        "training", name, maximum, epochs, cost, limit)  # fmt: skip
        elif where == "maximum":
            log.warning(
                "limit not reached so far: the multiplier%s is at its maximum %g, and the cost is %.4g > %g. "
                "Train longer, or raise the limit or dual.maximum",
                name, maximum, cost, limit,
            )  # fmt: skip
        elif long:
            log.info("the multiplier%s has been at 0 for %d epochs, and the cost %.4g is within its limit %g: the "
                     "limit does not bind, training follows only preferences", name, epochs, cost, limit)  # fmt: skip
        elif old > 0:
            log.info("the multiplier%s is back at 0: the cost %.4g is within its limit %g", name, cost, limit)

    def notes(self) -> list[str]:
        """Sentences for a report: which multiplier ended at 0 or at its maximum, for how long, and what that means."""
        meaning = {
            "maximum": "its cost is still over the limit: the limit cannot be reached with this maximum, or the "
            "policy has not trained long enough with it.",
            "0": "its cost is within the limit: the limit does not bind, and training followed only the preferences.",
        }
        return [
            f"The multiplier{name} was at {'its ' if where == 'maximum' else ''}{where} at the ends of the last "
            f"{epochs} epochs, and {meaning[where]}"
            for name, (where, epochs) in self._where.items()
            if where and epochs >= LONG
        ]

    def state_dict(self) -> dict[str, Any]:
        """The state as plain values."""
        return {name: [where, epochs] for name, (where, epochs) in self._where.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``."""
        self._where = {name: (str(where), int(epochs)) for name, (where, epochs) in state.items()}
