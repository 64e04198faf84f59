"""What training code does around the op: gathers a row twice, compiles, checkpoints, casts, adapts, scores nothing.

Letters: T positions, N sequences, D hidden width, V vocabulary.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ops.sequence_logratio import Head, both_sequence_logp, sequence_logp, sequence_logratio, slabs, token_logp
from tests.ops.cpu_backends import CPU_BACKENDS

BACKENDS = CPU_BACKENDS
FORM = {"scale": 0.7, "softcap": 5.0}


@pytest.fixture(autouse=True)
def many_blocks_of_memory_that_starts_as_nan(monkeypatch):
    monkeypatch.setitem(slabs.NARROWEST_SLAB, "cpu", 128)
    monkeypatch.setitem(slabs.BLOCK_BYTES, "cpu", 4 * 128 * 5)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def problem(tokens: int, vocabulary: int = 700, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(tokens)
    hidden_TD, weight_VD = (torch.randn(rows, 8, generator=random).to(dtype) for rows in (tokens, vocabulary))
    return hidden_TD, weight_VD, torch.randint(vocabulary, (tokens,), generator=random)


def plain_logp(hidden_TD: Tensor, weight_VD: Tensor, target_T: Tensor) -> Tensor:
    logit_TV = FORM["softcap"] * torch.tanh(FORM["scale"] * hidden_TD @ weight_VD.T / FORM["softcap"])
    return logit_TV.log_softmax(-1).gather(1, target_T[:, None])[:, 0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("head_learns", [True, False])
def test_the_last_row_of_a_shared_prompt_learns_from_both_responses(backend, head_learns):
    hidden_TD, weight_VD, target_T = problem(9, dtype=torch.float64)
    leaves = [hidden_TD.requires_grad_(), weight_VD.requires_grad_(head_learns)][: 1 + head_learns]
    rows_T = torch.tensor([3, 4, 5, 3, 6, 7, 8])  # prompt 0 to 3, chosen 4 and 5, rejected 6 to 8; stop tokens end both
    bounds_N1, weight_N = torch.tensor([0, 3, 7]), torch.tensor([1.0, -2.0], dtype=torch.float64)
    got_N = sequence_logp(hidden_TD[rows_T], weight_VD, target_T[:7], cu_seqlens_N1=bounds_N1, backend=backend, **FORM)
    plain_N = torch.stack([part.sum() for part in plain_logp(hidden_TD[rows_T], weight_VD, target_T[:7]).split([3, 4])])
    torch.testing.assert_close(got_N, plain_N)
    got, plain = (torch.autograd.grad(logp_N @ weight_N, leaves) for logp_N in (got_N, plain_N))
    torch.testing.assert_close(got, plain)
    parts = [torch.autograd.grad(plain_logp(hidden_TD[3:4], weight_VD, target_T[[t]]), hidden_TD)[0] for t in (0, 3)]
    torch.testing.assert_close(got[0][3], (parts[0] - 2 * parts[1])[3])


@pytest.mark.parametrize("backend", BACKENDS)
def test_identical_responses_cancel_to_rounding_whatever_the_processor(backend):
    # which digit a row rounds at depends on its place: MKL sums an edge of its tile, and the end of a vector, otherwise
    hidden_TD, weight_VD, target_T = problem(12)
    twice_T, leaves = torch.arange(12).repeat(2), (hidden_TD.requires_grad_(), weight_VD.requires_grad_())
    chosen, rejected = sequence_logp(
        hidden_TD[twice_T], weight_VD, target_T[twice_T], cu_seqlens_N1=torch.tensor([0, 12, 24]), backend=backend
    )
    assert (chosen - rejected).abs() <= 4 * torch.finfo(torch.float32).eps * chosen.abs()
    of_margin = torch.autograd.grad(chosen - rejected, leaves, retain_graph=True)
    for margin, alone in zip(of_margin, torch.autograd.grad(chosen, leaves), strict=True):
        assert margin.abs().max() <= 1e-6 * alone.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_gradients_of_sequences_are_those_of_the_outputs(backend, reduction):
    hidden_TD, weight_VD, target_T = problem(6, vocabulary=140, dtype=torch.float64)
    beside_TD, bounds_N1 = hidden_TD.flip(0), torch.tensor([0, 4, 4, 6])
    how = {"cu_seqlens_N1": bounds_N1, "reduction": reduction, "backend": backend}

    def both(hidden_TD, weight_VD):
        head = Head(hidden_TD, weight_VD, **FORM)
        return both_sequence_logp(head, head._replace(hidden_TD=beside_TD), target_T, **how)[0]

    leaves = hidden_TD[:, :2].clone().requires_grad_(), weight_VD[:, :2].clone().requires_grad_()
    beside_TD = beside_TD[:, :2]
    torch.autograd.gradcheck(lambda h, w: sequence_logp(h, w, target_T, **FORM, **how), leaves, fast_mode=True)
    torch.autograd.gradcheck(both, leaves, fast_mode=True)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("head_learns", [True, False])
def test_nothing_to_score_is_zero_and_has_gradient_zero(backend, head_learns):
    hidden_TD, weight_VD, target_T = problem(5)
    for rows in (0, 5):  # no position, or ignored ones alone
        leaves = [hidden_TD[:rows].clone().requires_grad_(), weight_VD.clone().requires_grad_(head_learns)]
        for reduction in ("sum", "mean"):
            logp_N = sequence_logp(
                *leaves,
                torch.full_like(target_T[:rows], -100),
                cu_seqlens_N1=torch.tensor([0, 0, rows, rows]),
                reduction=reduction,
                backend=backend,
            )
            assert logp_N.tolist() == [0, 0, 0]
            grads = torch.autograd.grad(logp_N.sum(), leaves[: 1 + head_learns])
            assert all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("head_learns", [True, False])
def test_the_incoming_gradient_may_be_strided(backend, head_learns):
    hidden_TD, weight_VD, target_T = problem(9)
    leaves = [hidden_TD.requires_grad_(), weight_VD.requires_grad_(head_learns)][: 1 + head_learns]
    grad_T = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))[:, 0]
    grads = [
        torch.autograd.grad(token_logp(hidden_TD, weight_VD, target_T, backend=backend), leaves, grad)
        for grad in (grad_T, grad_T.contiguous())
    ]
    torch.testing.assert_close(*grads, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch 2.15's own check
@pytest.mark.parametrize("needs", [(True, True, True), (True, False, False), (False, True, False)])
def test_the_backward_operator_is_one_torch_understands(needs):
    hidden_TD, weight_VD, target_T = problem(6, vocabulary=300)
    bias_V, grad_T = torch.randn(300), torch.randn(6)
    operators = torch.ops.sequence_logratio
    *normalized, _ = operators.chunked(hidden_TD, weight_VD, target_T, bias_V, 0.5, 5.0, 4, False)
    given = grad_T, hidden_TD, weight_VD, target_T, bias_V, 0.5, 5.0, 4, *normalized, *needs
    torch.library.opcheck(operators.chunked_backward.default, given)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("head_learns", [True, False])
def test_sequences_compile_as_one_graph_of_any_length(backend, head_learns):
    torch.compiler.reset()

    def score(hidden_TD, beside_TD, weight_VD, target_T, bounds_N1):
        policy, reference = (Head(h_TD, weight_VD, **FORM) for h_TD in (hidden_TD, beside_TD))
        how = {"cu_seqlens_N1": bounds_N1, "backend": backend}
        mean_N = sequence_logp(hidden_TD, weight_VD, target_T, reduction="mean", **FORM, **how)
        return mean_N + sequence_logratio(policy, reference, target_T, **how)

    compiled = torch.compile(score, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (9, 30):
        hidden_TD, weight_VD, target_T = problem(tokens)
        leaves = [hidden_TD.requires_grad_(), weight_VD.requires_grad_(head_learns)][: 1 + head_learns]
        given = hidden_TD, hidden_TD.detach() + 1, weight_VD, target_T, torch.tensor([0, 4, 4, tokens])
        found = []
        for function in (score, compiled):
            logp_N = function(*given)
            found.append((logp_N.detach(), *torch.autograd.grad(logp_N.sum(), leaves)))
        torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
@pytest.mark.parametrize("frozen", [False, True], ids=["full", "adapter"])
def test_tied_weights_adapters_checkpointing_and_autocast_go_together(frozen, autocast):
    _, weight_VD, ids_T = problem(12)
    bounds_N1 = torch.tensor([0, 5, 12])
    found = []
    for backend, checkpointed in (("reference", False), ("chunked", False), ("chunked", True)):
        torch.manual_seed(0)
        tied, adapter = nn.Parameter(weight_VD.clone(), requires_grad=not frozen), nn.Linear(8, 8, bias=False)

        def loss(ids_T, tied=tied, adapter=adapter, backend=backend):
            hidden_TD = nn.functional.embedding(ids_T, tied)
            hidden_TD = torch.tanh(hidden_TD + adapter(hidden_TD))
            return -sequence_logp(hidden_TD, tied, ids_T.roll(-1), cu_seqlens_N1=bounds_N1, backend=backend).mean()

        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = checkpoint(loss, ids_T, use_reentrant=False) if checkpointed else loss(ids_T)
        value.backward()
        found.append([value.detach(), adapter.weight.grad, *([] if frozen else [tied.grad])])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[2], found[1], rtol=0, atol=0)
