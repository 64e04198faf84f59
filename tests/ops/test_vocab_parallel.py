"""A head cut over two ranks gives what the whole head gives.

Letters: T positions, D hidden width, V vocabulary.
"""

import torch
import torch.distributed as dist

from ops.sequence_logratio import token_logp, vocab_parallel_token_logp

FORM = {"scale": 0.7, "softcap": 5.0}
CUT = 200  # the ranks hold 200 and 133 columns


def problem():
    random = torch.Generator().manual_seed(0)
    hidden_TD, weight_VD = torch.randn(40, 16, generator=random), torch.randn(333, 16, generator=random)
    target_T = torch.randint(333, (40,), generator=random)
    target_T[:5] = torch.tensor([0, CUT - 1, CUT, 332, -100])
    target_T[5] = CUT - 100  # minus the second rank's first id, this looks like an ignored target
    return hidden_TD, weight_VD, torch.randn(333, generator=random), target_T


def rank_main(rank: int, store_path: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store_path}", rank=rank, world_size=2)
    hidden_TD, weight_VD, bias_V, target_T = problem()
    whole = [tensor.clone().requires_grad_() for tensor in (hidden_TD, weight_VD, bias_V)]
    expected_T = token_logp(*whole[:2], target_T, bias_V=whole[2], backend="reference", **FORM)
    weights_T = torch.linspace(-1, 1, 40)
    expected_T.backward(weights_T)

    mine = slice(CUT) if rank == 0 else slice(CUT, None)
    local = [hidden_TD.clone(), weight_VD[mine].clone(), bias_V[mine].clone()]
    for tensor in local:
        tensor.requires_grad_()
    got_T = vocab_parallel_token_logp(
        *local[:2], target_T, bias_V=local[2], first_id=rank * CUT, group=dist.group.WORLD, **FORM
    )
    got_T.backward(weights_T)
    torch.testing.assert_close(got_T, expected_T)
    for ours, theirs in zip(local, (whole[0].grad, whole[1].grad[mine], whole[2].grad[mine]), strict=True):
        torch.testing.assert_close(ours.grad, theirs, rtol=1e-5, atol=1e-6)
    both = [torch.empty_like(got_T) for _ in range(2)]
    dist.all_gather(both, got_T.detach())
    assert torch.equal(*both)
    dist.destroy_process_group()


def test_two_ranks_agree_with_the_whole_head_and_with_each_other_to_the_bit(tmp_path):
    torch.multiprocessing.spawn(rank_main, (str(tmp_path / "store"),), nprocs=2)
