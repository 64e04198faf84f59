"""What each side measures of the same training."""

from typing import NamedTuple

STEPS = 5
LEARNING_RATE = 1e-5
BETA = 0.1
CLIP = 1.0
WEIGHT_DECAY = 0.0  # TRL would exempt norms from it, so it is left out
METRICS = (
    "loss",
    "grad_norm",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)

Ids = tuple[int, ...]
Triple = tuple[Ids, Ids, Ids]
"""Token ids of prompt, chosen and rejected response."""


class Snapshot(NamedTuple):
    """Summed response log-probs (nats) of policy and reference before an optimizer step, by (prompt, response) ids."""

    policy: dict[tuple[Ids, Ids], float]
    reference: dict[tuple[Ids, Ids], float]


class Measured(NamedTuple):
    """``snapshots`` and ``metrics`` by the number of optimizer steps taken before: 0 and STEPS, and 0 ... STEPS."""

    snapshots: dict[int, Snapshot]
    metrics: list[dict[str, float]]
