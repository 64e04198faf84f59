"""A head cut over ranks gives what the whole head gives, for one all-gather and no more error than plain torch's.

Letters: T positions, D hidden width, V vocabulary.
"""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ops.sequence_logratio import slabs, token_logp, vocab_parallel_token_logp
from tests.ranks import run_on_two_ranks

FORM = {"scale": 0.7, "softcap": 5.0}
T, CUT, V = 40, 200, 333  # two ranks hold 200 and 133 columns
GRAD_T = torch.linspace(-1, 1, T)


class Collectives(TorchDispatchMode):
    """Writes down each collective and how many numbers a rank puts into it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::")
            self.seen.append((name, sum(tensor.numel() for tensor in args[name == "allgather_"])))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def problem(dtype: torch.dtype = torch.float32, sharpness: float = 1.0) -> tuple[list[Tensor], Tensor]:
    random = torch.Generator().manual_seed(0)
    hidden_TD, weight_VD = torch.randn(T, 16, generator=random), sharpness * torch.randn(V, 16, generator=random)
    target_T = torch.randint(V, (T,), generator=random)
    target_T[:5] = torch.tensor([0, CUT - 1, CUT, V - 1, -100])
    target_T[5] = CUT - 100  # minus the second rank's first id, this looks like an ignored target
    hidden_TD[6] = 8 * torch.nn.functional.normalize(weight_VD[target_T[6]], dim=0)  # a token the model is sure of
    return [tensor.to(dtype) for tensor in (hidden_TD, weight_VD, torch.randn(V, generator=random))], target_T


def mine(tensors: list[Tensor]) -> list[Tensor]:
    """The hidden states and this rank's part of the head."""
    rows = slice(V) if dist.get_world_size() == 1 else [slice(CUT), slice(CUT, V)][dist.get_rank()]
    return [tensors[0], *(tensor[rows] for tensor in tensors[1:])]


def cut(hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor, target_T: Tensor, **more: bool) -> Tensor:
    where = {"first_id": dist.get_rank() * CUT, "group": dist.group.WORLD}
    return vocab_parallel_token_logp(hidden_TD, weight_VD, target_T, bias_V=bias_V, **where, **FORM, **more)


def whole(hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor, target_T: Tensor) -> Tensor:
    return token_logp(hidden_TD, weight_VD, target_T, bias_V=bias_V, backend="reference", **FORM)


def plain_torch(hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor, target_T: Tensor) -> Tensor:
    """Logits in the model's dtype, their log-softmax in fp32."""
    logit_TV = torch.nn.functional.linear(hidden_TD, weight_VD, bias_V) * FORM["scale"]
    logit_TV = FORM["softcap"] * torch.tanh(logit_TV / FORM["softcap"])
    return -torch.nn.functional.cross_entropy(logit_TV.float(), target_T, reduction="none")


def results(score: Callable[..., Tensor], tensors: list[Tensor], target_T: Tensor) -> list[Tensor]:
    """[logp, gradients of hidden states, weight and bias], float64."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    logp_T = score(*leaves, target_T)
    return [x.detach().double() for x in (logp_T, *torch.autograd.grad(logp_T, leaves, GRAD_T.to(logp_T.dtype)))]


def is_no_worse_than_plain_torch(dtype: torch.dtype, sharpness: float) -> None:
    tensors, target_T = problem(dtype, sharpness)
    truth, plain = (
        [logp_T, *mine(grads)]
        for logp_T, *grads in (
            results(whole, [tensor.double() for tensor in tensors], target_T),
            results(plain_torch, tensors, target_T),
        )
    )
    ours = results(cut, mine(tensors), target_T)
    for index, (exact, theirs, got) in enumerate(zip(truth, plain, ours, strict=True)):
        ulp = exact.abs().max() * torch.finfo(torch.float32 if index == 0 else dtype).eps
        assert (got - exact).abs().max() <= 2 * (theirs - exact).abs().max() + ulp, f"{dtype} {sharpness} {index}"


def exchanges_three_numbers_a_token_once() -> None:
    tensors, target_T = problem()
    leaves = [tensor.clone().requires_grad_() for tensor in mine(tensors)]
    with Collectives() as collectives:
        logp_T = cut(*leaves, target_T)
        assert collectives.seen == [("allgather_", 3 * T)]
        logp_T.sum().backward()
        assert collectives.seen[1:] == [("allreduce_", leaves[0].numel())]
        cut(*leaves, target_T, sum_hidden_grad=False).sum().backward()
        assert collectives.seen[2:] == [("allgather_", 3 * T)], "the layer before sums the hidden states' gradient"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sharpness", [0.0, 1.0, 6.0], ids="sharpness {}".format)
def test_error_is_at_most_twice_that_of_plain_torch_and_an_ulp(dtype, sharpness, one_rank, monkeypatch):
    monkeypatch.setitem(slabs.NARROWEST_SLAB, "cpu", 128)
    monkeypatch.setitem(slabs.BLOCK_BYTES, "cpu", 4 * 128 * 30)  # 30 rows of 128 columns
    is_no_worse_than_plain_torch(dtype, sharpness)


def test_gradients_are_those_of_the_outputs(one_rank):
    (hidden_TD, weight_VD, bias_V), _ = problem(torch.float64)
    target_T = torch.tensor([0, 10, -100, 3])
    leaves = [x.clone().requires_grad_() for x in (hidden_TD[:4, :3], weight_VD[:11, :3], bias_V[:11])]
    torch.autograd.gradcheck(lambda *tensors: cut(*tensors, target_T), leaves)


def test_one_rank_exchanges_three_numbers_a_token_once(one_rank):
    exchanges_three_numbers_a_token_once()


def agrees_with_the_whole_head_and_the_other_rank() -> None:
    tensors, target_T = problem(torch.float64)
    expected_T, *grads = results(whole, tensors, target_T)
    got = results(cut, mine(tensors), target_T)
    for ours, theirs in zip(got, [expected_T, *mine(grads)], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    logp_T = cut(*mine(problem()[0]), target_T)
    both = [torch.empty_like(logp_T) for _ in range(2)]
    dist.all_gather(both, logp_T)
    assert torch.equal(*both)


def agrees_at_every_precision(rank: int) -> None:
    agrees_with_the_whole_head_and_the_other_rank()
    exchanges_three_numbers_a_token_once()
    for dtype in (torch.float32, torch.bfloat16):
        for sharpness in (0.0, 1.0, 6.0):
            is_no_worse_than_plain_torch(dtype, sharpness)


@pytest.mark.slow  # processes that import torch
def test_two_ranks_agree_to_the_bit_and_with_the_whole_head_for_one_exchange(tmp_path):
    run_on_two_ranks(agrees_at_every_precision, tmp_path)
