"""Says what a run needs in memory, and what to change first if the memory is not there."""

from typing import Any, NamedTuple

import torch

from lit_safe.execution.process_memory import free_bytes
from lit_safe.training.micro_batch import FEWEST
from lit_safe.types import MemoryEstimate
from lit_safe.words import gib

LEAST_PART = 2**24  # bytes: a smaller part is not named


class MemoryPlan(NamedTuple):
    """What a step needs at its peak, and what this process can have besides what it holds for other purposes.

    ``tokens`` is the size of the largest micro-batch. The other numbers are bytes.
    """

    needed: MemoryEstimate
    available: int
    tokens: int

    @property
    def fits(self) -> bool:
        """Whether the need is at most what is there."""
        return self.needed.total <= self.available

    def sentence(self) -> str:
        """The need with its largest parts. If it does not fit: what there is, and what to change first."""
        most = sorted(self.needed._asdict().items(), key=lambda part: -part[1])[:3]
        parts = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in most if size >= LEAST_PART)
        need = f"needs {gib(self.needed.total)} at most{f' ({parts}, …)' if parts else ''}"
        if self.fits:
            return need
        return f"{need}, and {gib(self.available)} is there: {self.first_change()}"

    def first_change(self) -> str:
        """The cheapest setting with which the step fits, by this estimate; the one that saves most if none does.

        In this order: smaller micro-batches change no result. Checkpointing takes a third more time. Fewer weights that
        train change the method.
        """
        needed, missing = self.needed, self.needed.total - self.available
        tokens, passing = self.tokens, needed.activations + needed.logits + needed.holes
        if passing * (1 - FEWEST / max(tokens, FEWEST)) >= missing:
            size = tokens
            while size > FEWEST and passing * (1 - size / tokens) < missing:
                size //= 2
            return (
                f"set --data.micro_batch_tokens {max(size, FEWEST)} (a longer pair needs a smaller --data.max_length)"
            )
        if needed.activations + needed.holes >= missing:
            return "set gradient_checkpointing: true of the model's pair, which computes activations twice"
        training = needed.gradients + needed.optimizer + needed.reference + needed.buckets
        if training >= passing and training >= needed.weights:
            return "train fewer weights: -c configs/model/lora.yaml, or adaptation models.adaptation.LastLayers"
        return "hold the frozen weights in bf16 (dtype: bfloat16 of the model's source), or take a smaller model"


def plan_memory(needed: MemoryEstimate, data: Any, device: torch.device, ranks: int = 1) -> MemoryPlan:
    """The plan of a run whose pair is loaded on ``device`` and whose data are set up.

    The weights of the policy and the reference are in this process already, so they count as available.

    Args:
        needed: From the loaded pair.
        data: Set up.
        device: The device of the training.
        ranks: Number of processes that share its memory.
    """
    held = needed.weights + needed.reference
    return MemoryPlan(needed, free_bytes(device) // ranks + held, data.largest_micro_batch[0])
