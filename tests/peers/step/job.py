"""What one side is asked to do, and what it measured."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.peers.step.cases import Record

Triple = tuple[list[int], list[int], list[int]]
"""Token ids of prompt, chosen and rejected response."""

BETA = 0.1
CLIP = 1.0
LEARNING_RATE = 1e-5


@dataclass
class Job:
    """Training runs of one side on one case: one for each multiplier, or one of DPO.

    Attributes:
        side: ``lit_safe`` or ``trl``.
        options: Of ``SIDES``.
        model: Folder of the policy, which is also the reference.
        records: Rows in TRL's conversational format, for lit_safe.
        ids: Token ids of the pairs in the order of training, for TRL.
        folder: A folder for what the side writes.
    """

    side: str
    options: dict[str, Any]
    model: str
    records: list[Record]
    ids: list[Triple]
    max_length: int
    multipliers: tuple[float, ...]
    pairs_per_step: int
    steps: int
    threads: int
    folder: str

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Job":
        return cls(**json.loads(path.read_text(encoding="utf-8")))


@dataclass
class Run:
    """One training run. Times in seconds; operations as ``count.Operations`` has them.

    Attributes:
        ahead: Time before the first step in which the reference is scored.
        ahead_operations: Operations in that time.
        seconds: Time of each step.
        losses: Loss of each step in nats.
        operations: Operations of each step.
    """

    ahead: float = 0.0
    ahead_operations: float = 0.0
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    operations: list[float] = field(default_factory=list)


SIDES: dict[str, tuple[str, dict[str, Any]]] = {
    "trl default": ("trl", {}),
    "lit_safe default": ("lit_safe", {}),
    "trl best": ("trl", {"precompute_ref_log_probs": True, "gradient_checkpointing": False}),
    "lit_safe best": ("lit_safe", {"precompute_reference": True}),
}
"""Out of the box (the reference in every step), and at its best, for each side."""

ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "lit_safe, padded": ("lit_safe", {"layout": "padded"}),
    "lit_safe, padded, scored ahead": ("lit_safe", {"layout": "padded", "precompute_reference": True}),
    "lit_safe, one pair a pass": ("lit_safe", {"micro_batch_pairs": 1}),
}
"""One measure less at a time."""
