"""Two gloo processes that share a step, by DDP or by FSDP2, get what one process alone gets.

Letters: T positions, N sequences, D hidden width, V vocabulary.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from ops.sequence_logratio import sequence_logp
from tests.ranks import run_on_two_ranks

pytestmark = pytest.mark.slow  # processes that import torch

V, D = 701, 16
LENGTHS = [[9, 1, 14, 0], [3, 30]]  # of the sequences of each rank


class TinyLM(nn.Module):
    """Scores sequences within its forward, where FSDP has gathered its weights."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.block = nn.Embedding(V, D), nn.Sequential(nn.Linear(D, D), nn.Tanh())
        self.head = nn.Linear(D, V, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids_T: Tensor, bounds_N1: Tensor) -> Tensor:
        hidden_TD, target_T = self.block(self.embedding(ids_T)), ids_T.roll(-1)
        return sequence_logp(hidden_TD, self.head.weight, target_T, cu_seqlens_N1=bounds_N1, backend="chunked")


def batch(rank: int) -> tuple[Tensor, Tensor]:
    lengths_N = torch.tensor(LENGTHS[rank])
    ids_T = torch.randint(V, (int(lengths_N.sum()),), generator=torch.Generator().manual_seed(rank))
    return ids_T, nn.functional.pad(lengths_N.cumsum(0), (1, 0))


def steps(model: nn.Module, ranks: list[int], share: int = 1) -> list[float]:
    """Three steps of descent on -sum log-prob / N of the batches of all ``ranks``; the losses."""
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.5), []
    for _ in range(3):
        optimizer.zero_grad()
        loss = -torch.cat([model(*batch(rank)) for rank in ranks]).sum() / sum(map(len, LENGTHS))
        (loss * share).backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def ends_where_one_process_does(wrap: Callable[[nn.Module], nn.Module], rank: int) -> None:
    for tied in (False, True):
        alone, shared = TinyLM(tied), wrap(TinyLM(tied))
        losses = steps(alone, [0, 1])
        mine = torch.tensor(steps(shared, [rank], share=2))  # both wrappers average gradients
        dist.all_reduce(mine)
        torch.testing.assert_close(mine, torch.tensor(losses))
        assert losses[-1] < losses[0] - 1
        for ours, theirs in zip(shared.parameters(), alone.parameters(), strict=True):
            whole = ours.full_tensor() if hasattr(ours, "full_tensor") else ours
            torch.testing.assert_close(whole, theirs, rtol=1e-5, atol=1e-6)


def sharded(model: nn.Module, precision: MixedPrecisionPolicy | None = None) -> nn.Module:
    how = {"mesh": init_device_mesh("cpu", (2,)), "mp_policy": precision or MixedPrecisionPolicy()}
    fully_shard(model.block, **how)
    return fully_shard(model, **how)


def scores_and_trains_in_bf16(rank: int) -> None:
    precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for tied in (False, True):
        with torch.no_grad():  # models of their own: FSDP would hand the whole weights to an optimizer made after this
            exact_N, got_N = TinyLM(tied)(*batch(rank)), sharded(TinyLM(tied), precision)(*batch(rank))
        assert got_N.dtype == torch.float32
        assert not torch.equal(got_N, exact_N), "the policy reaches the op"
        torch.testing.assert_close(got_N, exact_N, rtol=0.01, atol=0)
        alone, shared = TinyLM(tied), sharded(TinyLM(tied), precision)
        losses = steps(alone, [0, 1])
        mine = torch.tensor(steps(shared, [rank], share=2))
        dist.all_reduce(mine)
        torch.testing.assert_close(mine, torch.tensor(losses), rtol=0.002, atol=0)
        assert mine[-1] < mine[0] - 1
        assert all(ours.dtype == ours.grad.dtype == torch.float32 for ours in shared.parameters())


def refuses_a_weight_that_is_not_gathered(rank: int) -> None:
    model = sharded(TinyLM(tied=False))
    with pytest.raises(ValueError, match=r"weight is a sharded DTensor.*inside the forward of the module FSDP gathers"):
        sequence_logp(torch.zeros(1, D), model.head.weight, torch.tensor([0]), cu_seqlens_N1=torch.tensor([0, 1]))


def ddp(rank: int) -> None:
    ends_where_one_process_does(DistributedDataParallel, rank)


def fsdp2(rank: int) -> None:
    refuses_a_weight_that_is_not_gathered(rank)
    ends_where_one_process_does(sharded, rank)


def fsdp2_in_bf16(rank: int) -> None:
    scores_and_trains_in_bf16(rank)


@pytest.mark.parametrize("what", [ddp, fsdp2, fsdp2_in_bf16], ids=lambda what: what.__name__)
def test_two_ranks_end_where_one_process_does(what: Callable[[int], None], tmp_path: Path) -> None:
    run_on_two_ranks(what, tmp_path)
