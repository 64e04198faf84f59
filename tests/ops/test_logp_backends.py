"""Every backend against float64 truth, and never worse than plain torch of the same dtype.

Letters: T positions, N sequences, D hidden width, V vocabulary.
"""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ops.sequence_logratio import slabs, token_logp
from ops.sequence_logratio.api import SMALL_LOGITS
from tests.ops.cpu_backends import BESIDE_THE_DEFINITION

BACKENDS = BESIDE_THE_DEFINITION
SHAPES = [(0, 7, 11), (1, 1, 1), (1, 7, 32003), (63, 7, 2500), (257, 16, 1100)]  # T, D, V
FORMS = {
    "plain": {},
    "biased": {"bias": True},
    "scaled": {"scale": 0.3},
    "capped": {"softcap": 5.0},
    "all": {"bias": True, "scale": 1.7, "softcap": 3.0},
}


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan():
    """Deterministic mode fills every torch.empty with NaN; what a backend forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def many_blocks(monkeypatch):
    monkeypatch.setitem(slabs.NARROWEST_SLAB, "cpu", 128)
    monkeypatch.setitem(slabs.BLOCK_BYTES, "cpu", 4 * 128 * 50)  # 50 rows of 128 columns


@pytest.fixture(params=["one block", "many blocks"])
def blocks(request):
    if request.param == "many blocks":
        request.getfixturevalue("many_blocks")


def problem(shape, dtype=torch.float32, bias=False, scale=1.0, softcap=None, sharpness=1.0, seed=0):
    """Random states, head, targets (the first and last id and one ignored among them), and an incoming gradient."""
    tokens, width, vocabulary = shape
    random = torch.Generator().manual_seed(seed)
    hidden_TD = torch.randn(tokens, width, generator=random)
    weight_VD = sharpness * torch.randn(vocabulary, width, generator=random)
    bias_V = torch.randn(vocabulary, generator=random) if bias else None
    target_T = torch.randint(vocabulary, (tokens,), generator=random)
    if tokens > 4:
        target_T[:3] = torch.tensor([0, vocabulary - 1, -100])
        hidden_TD[3] = 8 * torch.nn.functional.normalize(weight_VD[target_T[3]], dim=0)  # a token the model is sure of
    tensors = [None if x is None else x.to(dtype) for x in (hidden_TD, weight_VD, bias_V)]
    return tensors, target_T, {"scale": scale, "softcap": softcap}, torch.randn(tokens, generator=random)


def results(score, tensors, target_T, grad_T, learn=(True, True, True)) -> list[Tensor]:
    """[logp, gradients of what learns], all float64."""
    leaves = [None if x is None else x.clone().requires_grad_(on) for x, on in zip(tensors, learn, strict=True)]
    logp_T = score(*leaves, target_T)
    wanted = [x for x in leaves if x is not None and x.requires_grad]
    return [x.detach().double() for x in (logp_T, *torch.autograd.grad(logp_T, wanted, grad_T.to(logp_T.dtype)))]


def plain_torch(scale=1.0, softcap=None):
    """What one writes without a fused op: logits in the model's dtype, their log-softmax in fp32."""

    def score(hidden_TD, weight_VD, bias_V, target_T):
        logit_TV = torch.nn.functional.linear(hidden_TD, weight_VD, bias_V) * scale
        if softcap is not None:
            logit_TV = softcap * torch.tanh(logit_TV / softcap)
        wide = torch.promote_types(logit_TV.dtype, torch.float32)
        return -torch.nn.functional.cross_entropy(logit_TV.to(wide), target_T, reduction="none")

    return score


def ours(backend, **form):
    return lambda h, w, b, t: token_logp(h, w, t, bias_V=b, backend=backend, **form)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_float64_agrees_with_the_definition(backend, shape, form, blocks):
    tensors, target_T, form, grad_T = problem(shape, torch.float64, **form)
    for learn in itertools.product([True, False], repeat=3):
        if (tensors[2] is None and learn == (False, False, True)) or not any(learn):
            continue
        expected = results(ours("reference", **form), tensors, target_T, grad_T, learn)
        for got, want in zip(results(ours(backend, **form), tensors, target_T, grad_T, learn), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sharpness", [0.0, 0.05, 1.0, 6.0], ids="sharpness {}".format)
@pytest.mark.parametrize("form", ["plain", "biased", "all"])
@pytest.mark.parametrize("learn", [(True, True, True), (True, False, False)], ids=["head learns", "head frozen"])
def test_error_is_at_most_twice_that_of_plain_torch_and_an_ulp(backend, dtype, sharpness, form, learn, many_blocks):
    form = FORMS[form]
    tensors, target_T, form, grad_T = problem((63, 16, 2500), dtype, sharpness=sharpness, **form)
    wide = [None if x is None else x.double() for x in tensors]
    truth = results(ours("reference", **form), wide, target_T, grad_T, learn)
    plain = results(plain_torch(**form), tensors, target_T, grad_T, learn)
    mine = results(ours(backend, **form), tensors, target_T, grad_T, learn)
    for index, (exact, theirs, got) in enumerate(zip(truth, plain, mine, strict=True)):
        ulp = exact.abs().max() * torch.finfo(torch.float32 if index == 0 else dtype).eps
        assert (got - exact).abs().max() <= 2 * (theirs - exact).abs().max() + ulp


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["plain", "all"])
@pytest.mark.parametrize("learn", [(True, True, True), (True, False, False), (False, True, False)])
def test_gradients_are_those_of_the_outputs(backend, form, learn, many_blocks):
    tensors, target_T, form, _ = problem((6, 2, 140), torch.float64, **FORMS[form])
    leaves = [None if x is None else x.requires_grad_(on) for x, on in zip(tensors, learn, strict=True)]
    torch.autograd.gradcheck(lambda h, w, b: ours(backend, **form)(h, w, b, target_T), leaves)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch 2.15's own check
@pytest.mark.parametrize("backend", [name for name in BACKENDS if hasattr(torch.ops.sequence_logratio, name)])
@pytest.mark.parametrize("head_frozen", [True, False])
def test_the_operator_is_one_torch_understands(backend, head_frozen):
    (hidden_TD, weight_VD, bias_V), target_T, _, _ = problem((6, 3, 300), bias=True)
    hidden_TD.requires_grad_()
    weight_VD.requires_grad_(not head_frozen)
    operator = getattr(torch.ops.sequence_logratio, backend).default
    torch.library.opcheck(operator, (hidden_TD, weight_VD, target_T, bias_V, 0.5, 5.0, 4, head_frozen))


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_a_log_prob_is_never_positive_and_keeps_its_digits_near_zero(backend, blocks):
    hidden_TD = torch.tensor([[0.0], [1.0], [4.0], [20.0], [90.0], [1e5]])
    weight_VD = torch.zeros(1000, 1)
    weight_VD[7] = 1.0
    logp_T = token_logp(hidden_TD, weight_VD, torch.full((6,), 7), backend=backend)
    assert (logp_T <= 0).all()
    exact_T = -torch.log1p(999 * torch.exp(-hidden_TD[:, 0].double()))
    # the definition rounds 1 + odds
    torch.testing.assert_close(logp_T.double(), exact_T, rtol=2e-6, atol=1e-6 if backend == "reference" else 0)


@given(
    seed=st.integers(0, 2**31),
    vocabulary=st.integers(1, 70),
    log_sharpness=st.floats(-9, 6),
    offset=st.sampled_from([0.0, 1e-3, 1.0, 1e3, 1e6]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_the_definition_is_never_positive_either(seed, vocabulary, log_sharpness, offset, dtype):
    random = torch.Generator().manual_seed(seed)
    hidden_TD, weight_VD = (torch.randn(rows, 3, generator=random).to(dtype) for rows in (20, vocabulary))
    bias_V = torch.full((vocabulary,), offset, dtype=dtype)
    likeliest_T = (hidden_TD @ weight_VD.T).argmax(1)
    for target_T in (likeliest_T, likeliest_T.flip(0)):
        form = {"bias_V": bias_V, "scale": 10**log_sharpness, "backend": "reference"}
        assert (token_logp(hidden_TD, weight_VD, target_T, **form) <= 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_probabilities_of_all_tokens_sum_to_one(backend, blocks):
    (hidden_TD, weight_VD, _), _, _, _ = problem((1, 16, 2500))
    logp_V = token_logp(hidden_TD.expand(2500, -1), weight_VD, torch.arange(2500), backend=backend)
    torch.testing.assert_close(logp_V.exp().sum(), torch.tensor(1.0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_reruns_are_equal_to_the_bit(backend):
    tensors, target_T, form, grad_T = problem((257, 16, 2500), bias=True)
    runs = [results(ours(backend, **form), tensors, target_T, grad_T) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_order_and_the_cutting_of_the_work_do_not_matter(backend, monkeypatch):
    tensors, target_T, form, grad_T = problem((63, 16, 2500), bias=True, softcap=5.0)
    whole = results(ours(backend, **form), tensors, target_T, grad_T)
    order_T = torch.randperm(63, generator=torch.Generator().manual_seed(1))
    monkeypatch.setitem(slabs.NARROWEST_SLAB, "cpu", 128)
    monkeypatch.setitem(slabs.BLOCK_BYTES, "cpu", 4 * 128 * 20)
    shuffled = [tensors[0][order_T], *tensors[1:]]
    cut = results(ours(backend, **form), shuffled, target_T[order_T], grad_T[order_T])
    for got, want in zip(cut, (whole[0][order_T], whole[1][order_T], *whole[2:]), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_may_be_strided_and_misaligned(backend):
    (hidden_TD, weight_VD, _), target_T, _, _ = problem((9, 8, 700))
    shifted_T = torch.cat([target_T[:1], target_T])[1:]  # starts 8 bytes into its storage
    strided_TD = torch.stack([hidden_TD, hidden_TD], -1)[..., 0]
    wide_TD = strided_TD.clone(memory_format=torch.preserve_format).requires_grad_()
    token_logp(wide_TD, weight_VD.T.contiguous().T, shifted_T, backend=backend).sum().backward()  # expanded gradient
    hidden_TD.requires_grad_()
    token_logp(hidden_TD, weight_VD, target_T, backend=backend).backward(torch.ones(9))
    torch.testing.assert_close(wide_TD.grad, hidden_TD.grad)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_ignored_position_has_no_gradient_whatever_comes_in(backend):
    (hidden_TD, weight_VD, _), target_T, _, _ = problem((9, 8, 700))
    for head_learns in (False, True):
        hidden_TD = hidden_TD.detach().requires_grad_()
        weight_VD = weight_VD.detach().requires_grad_(head_learns)
        logp_T = token_logp(hidden_TD, weight_VD, target_T.where(torch.arange(9) < 5, -100), backend=backend)
        logp_T.backward(torch.full((9,), torch.inf).where(torch.arange(9) >= 5, 0.0))
        assert (hidden_TD.grad == 0).all()
        assert weight_VD.grad is None or (weight_VD.grad == 0).all()


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("head_learns", [True, False])
def test_it_compiles_as_one_graph(backend, head_learns):
    (hidden_TD, weight_VD, bias_V), target_T, _, _ = problem((9, 8, SMALL_LOGITS // 8), bias=True)
    weight_VD.requires_grad_(head_learns)
    score = ours(backend, scale=0.7)

    def grad(function):
        leaf_TD = hidden_TD.clone().requires_grad_()
        logp_T = function(leaf_TD, weight_VD, bias_V, target_T)
        return logp_T.detach(), *torch.autograd.grad(logp_T.sum(), [leaf_TD, weight_VD][: 1 + head_learns])

    compiled = torch.compile(score, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(grad(score), grad(compiled), strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("head_learns", [True, False])
def test_gradient_checkpointing_changes_nothing(backend, head_learns):
    (hidden_TD, weight_VD, _), target_T, _, _ = problem((9, 8, 700))
    grads = []
    for checkpointed in (True, False):
        leaf_TD, head_VD = hidden_TD.clone().requires_grad_(), weight_VD.clone().requires_grad_(head_learns)
        args = (leaf_TD, head_VD, None, target_T)
        score = ours(backend)
        logp_T = torch.utils.checkpoint.checkpoint(score, *args, use_reentrant=False) if checkpointed else score(*args)
        logp_T.sum().backward()
        grads.append((leaf_TD.grad, head_VD.grad))
    torch.testing.assert_close(*grads, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tied_embedding_gathers_both_gradients(backend):
    (_, weight_VD, _), target_T, _, _ = problem((9, 8, 700))
    grads = []
    for name in (backend, "reference"):
        tied_VD = weight_VD.double().requires_grad_()
        token_logp(tied_VD[target_T.clamp(min=0)].tanh(), tied_VD, target_T, backend=name).sum().backward()
        grads.append(tied_VD.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_on_a_cpu_rounds_nothing(backend):
    tensors, target_T, _, grad_T = problem((9, 8, 700))
    expected = results(ours(backend), tensors, target_T, grad_T)
    with torch.autocast("cpu", torch.bfloat16):
        got = results(ours(backend), tensors, target_T, grad_T)
        rounded = token_logp(tensors[0].bfloat16(), tensors[1], target_T, backend=backend)
        definition = token_logp(tensors[0].bfloat16(), tensors[1], target_T, backend="reference")
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    torch.testing.assert_close(rounded, definition, rtol=1e-6, atol=1e-6)
