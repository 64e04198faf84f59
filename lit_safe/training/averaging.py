"""A running average of iterates, for methods whose last iterate oscillates around the solution."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lit_safe.sharded import as_shared, whole


class IterateAverage:
    """Polynomial-decay average of named tensors, stored on the CPU in at least fp32, whole on every rank.

    The t-th iterate is added with weight (eta + 1) / (t + eta) (Shamir & Zhang 2013, arXiv:1212.1824, section 4). The
    weight of early iterates decays, the length of the run need not be known, and a resumed run computes the same
    average.

    Args:
        eta: 0 gives the plain mean. With 3, the first half of a run has 1/16 of the weight.
    """

    def __init__(self, eta: int = 3) -> None:
        self.eta = eta
        self.count = 0
        self.mean: dict[str, Tensor] = {}

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Add the next iterate. All calls must have the same names and shapes."""
        self.count += 1
        share = (self.eta + 1) / (self.count + self.eta)
        for name, tensor in tensors.items():
            new = whole(tensor.detach()).to("cpu", torch.promote_types(tensor.dtype, torch.float32), copy=True)
            self.mean[name] = new if self.count == 1 else self.mean[name].lerp(new, share)

    @torch.no_grad()
    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the average into ``tensors``, in their dtype and on their device."""
        for name, tensor in tensors.items():
            tensor.copy_(as_shared(self.mean[name], tensor))

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and a number, loadable with ``weights_only=True``."""
        return {"count": self.count, "mean": dict(self.mean)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``."""
        self.count = int(state["count"])
        self.mean = {name: tensor.cpu() for name, tensor in state["mean"].items()}
