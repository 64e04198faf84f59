"""The mass of plausible tokens, its gradient, and its limits, against float64 autograd over whole matrices.

Letters: T positions, D hidden width, V vocabulary.
"""

import math

import pytest
import torch

from ops.sequence_logratio import Head, slabs, support_logratio

FORMS = {"plain": {}, "biased": {"bias": True}, "all": {"bias": True, "scale": 0.7, "softcap": 6.0}}


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["one block", "many blocks"], autouse=True)
def blocks(request, monkeypatch):
    if request.param == "many blocks":
        monkeypatch.setitem(slabs.NARROWEST_SLAB, "cpu", 128)
        monkeypatch.setitem(slabs.BLOCK_BYTES, "cpu", 4 * 128 * 20)  # 20 rows of 128 columns


def two_heads(tokens=45, vocabulary=333, dtype=torch.float64, sharpness=1.0, bias=False, **form):
    """Models of different widths; the policy's tensors take gradients."""
    random = torch.Generator().manual_seed(0)
    heads = []
    for width in (7, 16):
        sizes = (tokens, width), (vocabulary, width), (vocabulary,)
        drawn = [torch.randn(*size, generator=random, dtype=torch.float64).to(dtype) for size in sizes]
        heads.append(Head(drawn[0] * sharpness, drawn[1], drawn[2] if bias else None, **form))
    leaves = [x.detach().requires_grad_() for x in heads[0][:3] if x is not None]
    return Head(*leaves, *(None,) * (3 - len(leaves)), *heads[0][3:]), heads[1]


def logp(head):
    hidden_TD, weight_VD, bias_V, scale, softcap = head
    logit_TV = scale * torch.nn.functional.linear(hidden_TD, weight_VD, bias_V)
    return (logit_TV if softcap is None else softcap * torch.tanh(logit_TV / softcap)).log_softmax(-1)


def exactly(policy, reference, floor):
    theirs_TV = logp(reference).detach()
    plausible_TV = theirs_TV >= theirs_TV.amax(-1, keepdim=True).clamp(max=math.log(floor))
    mine, theirs = (x.masked_fill(~plausible_TV, -torch.inf).logsumexp(-1) for x in (logp(policy), theirs_TV))
    return (mine - theirs).clamp(max=0)


def gradients(value_T, head):
    leaves = [x for x in head[:3] if x is not None and x.requires_grad]
    return torch.autograd.grad((value_T * torch.linspace(-1, 2, len(value_T), dtype=value_T.dtype)).sum(), leaves)


@pytest.mark.parametrize("floor", [0.5, 0.01, 1e-4])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_values_and_every_gradient_are_those_of_the_whole_matrices(form, floor):
    policy, reference = two_heads(**form)
    got_T, want_T = support_logratio(policy, reference, floor), exactly(policy, reference, floor)
    assert want_T.min() < -0.1
    assert floor < 0.5 or (want_T == 0).sum() < len(want_T)
    torch.testing.assert_close(got_T, want_T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(got_T, policy), gradients(want_T, policy), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_has_the_error_of_its_products(dtype):
    policy, reference = two_heads(dtype=dtype)
    wide = [Head(*(x.double() if torch.is_tensor(x) else x for x in head)) for head in (policy, reference)]
    got_T = support_logratio(policy, reference, 0.01)
    assert got_T.dtype == torch.float32
    torch.testing.assert_close(got_T.double(), exactly(*wide, 0.01), rtol=1e-5, atol=1e-5)
    found, exact = gradients(got_T, policy), torch.autograd.grad(exactly(*wide, 0.01).sum(), policy[:2])
    assert [x.dtype for x in found] == [dtype] * 2
    assert all(x.isfinite().all() for x in (*found, *exact))


def test_hand_worked_coins():
    """The reference gives two tokens 1/2 each; the policy gives four tokens 1/4 each, so half of its mass is lost."""
    fair = Head(torch.ones(1, 1), torch.tensor([[0.0], [0.0], [-30.0], [-30.0]]))
    flat = Head(torch.ones(1, 1), torch.zeros(4, 1))
    assert support_logratio(flat, fair, 0.1).item() == pytest.approx(-math.log(2), rel=1e-6)
    assert support_logratio(fair, flat, 0.1).item() == 0  # the whole vocabulary is plausible
    assert support_logratio(flat, fair, 0.9).item() == pytest.approx(-math.log(2), rel=1e-6)  # both are the likeliest


def test_a_policy_loses_nothing_against_itself_and_gets_no_gradient_where_it_gained():
    policy, _ = two_heads(dtype=torch.float32)
    assert support_logratio(policy, Head(*policy), 0.02).abs().max() < 1e-5
    sure = Head((policy.hidden_TD * 50).detach().requires_grad_(), policy.weight_VD.detach())
    gained_T = support_logratio(sure, policy, 0.01)
    gained = gained_T == 0
    assert gained.any()
    assert (torch.autograd.grad(gained_T.sum(), sure.hidden_TD)[0][gained] == 0).all()


def test_a_policy_that_left_the_support_has_a_finite_loss_and_gradient():
    """Plausible tokens have logits 200 below the policy's largest: exp(-200) is 0 in fp32."""
    weight_VD = torch.tensor([[0.0], [200.0], [0.0]])
    policy = Head(torch.ones(1, 1, requires_grad=True), weight_VD)
    reference = Head(torch.ones(1, 1), torch.tensor([[0.0], [-50.0], [-50.0]]))
    lost_T = support_logratio(policy, reference, 0.1)
    assert lost_T.item() == pytest.approx(-200)
    lost_T.sum().backward()
    assert policy.hidden_TD.grad.item() == pytest.approx(-200)


def test_autocast_rounds_nothing_on_a_cpu():
    policy, reference = two_heads(dtype=torch.float32)
    plain_T = support_logratio(policy, reference, 0.01)
    with torch.autocast("cpu", torch.bfloat16):
        cast_T = support_logratio(policy, reference, 0.01)
        both = gradients(plain_T, policy), gradients(cast_T, policy)
    assert torch.equal(plain_T, cast_T)
    assert all(torch.equal(*pair) for pair in zip(*both, strict=True))


def test_no_positions_have_no_numbers_and_what_does_not_fit_is_named():
    policy, reference = two_heads(0, 5)
    assert support_logratio(policy, reference, 0.1).shape == (0,)
    policy, reference = two_heads(3, 5)
    for floor in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"floor must lie in \(0, 1\)"):
            support_logratio(policy, reference, floor)
    with pytest.raises(ValueError, match=r"policy \(3, 5\) and the reference \(3, 4\) differ"):
        support_logratio(policy, reference._replace(weight_VD=torch.zeros(4, 16).double()), 0.1)
