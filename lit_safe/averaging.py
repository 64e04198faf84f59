"""A running average of iterates, for methods whose last iterate circles the solution."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class IterateAverage:
    """Polynomial-decay average of named tensors, kept on the CPU in fp32 at least.

    The t-th iterate enters with weight (eta + 1) / (t + eta) (Shamir & Zhang 2013, arXiv:1212.1824, section 4): early
    iterates fade, no horizon has to be known, and adding the epochs one at a time or after a resume is the same.

    Args:
        eta: 0 is the plain mean; 3 leaves the first half of a run 1/16 of the weight.
    """

    def __init__(self, eta: int = 3) -> None:
        self.eta = eta
        self.count = 0
        self.mean: dict[str, Tensor] = {}

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Take in the next iterate; every call must bring the same names and shapes."""
        self.count += 1
        share = (self.eta + 1) / (self.count + self.eta)
        for name, tensor in tensors.items():
            new = tensor.detach().to("cpu", torch.promote_types(tensor.dtype, torch.float32), copy=True)
            self.mean[name] = new if self.count == 1 else self.mean[name].lerp(new, share)

    @torch.no_grad()
    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the average into ``tensors``, in their dtype and where they lie."""
        for name, tensor in tensors.items():
            tensor.copy_(self.mean[name])

    def state_dict(self) -> dict[str, Any]:
        """Tensors and a number, loadable with ``weights_only=True``."""
        return {"count": self.count, "mean": dict(self.mean)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``."""
        self.count = int(state["count"])
        self.mean = {name: tensor.cpu() for name, tensor in state["mean"].items()}
