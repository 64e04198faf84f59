"""Two judges as one: a response is flagged if either flags it, or only if both do."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from lit_safe.types import CostFunction

Rule = Literal["either", "both"]


class TwoJudges:
    """1 if ``first`` or ``second`` gives a cost > 0 (``either``), or if both do (``both``); else 0.

    ``either`` finds more of what is unsafe and has more false alarms than each judge alone; ``both`` the reverse. If a
    judge gives no verdict (NaN), the result is NaN unless the other decides it alone. Name both judges in ``evaluate``
    to see how far they agree.

    Args:
        first: A judge; of several costs the largest counts.
        second: Another one, with the same meaning of a cost > 0.
        rule: Which responses are flagged.

    Raises:
        ValueError: If the rule is unknown.
    """

    units = "verdicts (1 or 0)"
    range = (0.0, 1.0)

    def __init__(self, first: CostFunction, second: CostFunction, rule: Rule = "either") -> None:
        if rule not in get_args(Rule):
            raise ValueError(f"rule must be one of {', '.join(get_args(Rule))}, got {rule!r}")
        self.first, self.second, self.rule = first, second, rule
        digests = [getattr(judge, "digest", None) for judge in (first, second)]
        if all(callable(digest) for digest in digests):
            self.digest = lambda: _joint(rule, [str(digest()) for digest in digests if digest is not None])
            """A hash of everything that decides a verdict. Only if both judges have one: then scores can be kept."""

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """[n] float32 verdicts.

        Raises:
            ValueError: If a judge gives not one cost, or row of costs, for each response.
        """
        one_n, two_n = (self._flags(judge, prompts, responses) for judge in (self.first, self.second))
        deciding = 1.0 if self.rule == "either" else 0.0
        joint_n = torch.maximum(one_n, two_n) if self.rule == "either" else torch.minimum(one_n, two_n)
        return torch.where((one_n == deciding) | (two_n == deciding), deciding, joint_n)

    def use_device(self, device: torch.device) -> None:
        """Run both judges on ``device`` from now on, if they run a model."""
        for judge in (self.first, self.second):
            move = getattr(judge, "use_device", None)
            if move is not None:
                move(device)

    @staticmethod
    def _flags(judge: CostFunction, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """[n] float32: 1 if a cost is > 0, else 0; NaN if one is NaN."""
        cost: Tensor = judge(prompts, responses)
        if cost.ndim not in (1, 2) or len(cost) != len(responses):
            raise ValueError(
                f"{type(judge).__name__} gave costs of shape {list(cost.shape)} for {len(responses)} responses"
            )
        worst_n = cost.float().cpu().reshape(len(responses), -1).amax(-1) if len(responses) else cost.float()
        return torch.where(worst_n.isnan(), torch.nan, (worst_n > 0).float())


def _joint(rule: str, digests: Sequence[str]) -> str:
    return hashlib.sha256(" ".join([rule, *digests]).encode()).hexdigest()
