"""Sampling on devices that no test machine has: which operations it asks of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.sampling import InverseCDF, exact_device


class Refusing(TorchDispatchMode):
    """Raises where an operation makes float64 or a cumulative sum on ``kind``."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == self.kind:
                assert tensor.dtype != torch.float64, f"{func} makes float64 on {self.kind}"
                assert "cumsum" not in str(func), f"{func} on {self.kind}"
        return out


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(on)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize(("kind", "exact"), [("mps", False), ("cuda", True)])
def test_sampling_makes_no_float64_on_apples_gpus_and_no_cumulative_sum_on_a_deterministic_cuda(
    kind: str, exact: bool
) -> None:
    with deterministic(exact), FakeTensorMode(), Refusing(kind):
        ids, scores = torch.zeros(2, 4, dtype=torch.int64, device=kind), torch.zeros(2, 7, device=kind)
        chosen = InverseCDF(torch.zeros(2, 3, dtype=torch.float64), 1.0, begin=3)(ids, scores)
    assert (chosen.device.type, chosen.dtype, chosen.shape) == (kind, torch.float32, (2, 7))


def test_elsewhere_sums_are_made_where_the_scores_are() -> None:
    cpu, cuda, mps = map(torch.device, ("cpu", "cuda:1", "mps"))
    with deterministic(False):
        assert [exact_device(device) for device in (cpu, cuda, mps)] == [cpu, cuda, cpu]
    with deterministic(True):
        assert [exact_device(device) for device in (cpu, cuda, mps)] == [cpu, cpu, cpu]
