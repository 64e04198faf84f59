"""KL of two heads as a loss: values and gradients against torch in float64, and blocks that leave no trace.

Letters: T positions, D hidden width, V vocabulary.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ops.sequence_logratio import Head, kl, slabs, token_kl, token_stats

FORMS = {"plain": {}, "biased": {"bias": True}, "all": {"bias": True, "scale": 1.7, "softcap": 3.0}}


def heads(tokens, vocabulary, dtype=torch.float64, bias=False, sharpness=1.0, **form):
    """Two models of different widths; everything of the first takes gradients."""
    random = torch.Generator().manual_seed(0)
    found = []
    for width in (5, 3):
        shapes = [(tokens, width), (vocabulary, width), *([(vocabulary,)] if bias else [])]
        parts = [torch.randn(shape, generator=random, dtype=torch.float64).to(dtype) for shape in shapes]
        parts[0] *= sharpness
        found.append(Head(*parts, *([] if bias else [None]), **form))
    for part in found[0][:3]:
        if part is not None:
            part.requires_grad_()
    return found


def logp(head):
    hidden_TD, weight_VD, bias_V, scale, softcap = head
    logit_TV = scale * torch.nn.functional.linear(hidden_TD, weight_VD, bias_V)
    return (logit_TV if softcap is None else softcap * torch.tanh(logit_TV / softcap)).log_softmax(-1)


def definition(policy, reference):
    return torch.nn.functional.kl_div(logp(reference), logp(policy), log_target=True, reduction="none").sum(-1)


def gradients(loss, head):
    return torch.autograd.grad(loss, [part for part in head[:3] if part is not None])


@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients_are_those_of_the_definition(form):
    policy, reference = heads(6, 11, **FORMS[form])
    weight_T = torch.linspace(-1, 2, 6, dtype=torch.float64)
    ours, theirs = token_kl(policy, reference), definition(policy, reference)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    found, expected = (gradients((weight_T * values).sum(), policy) for values in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_finite_differences(form):
    policy, reference = heads(3, 4, **FORMS[form])
    parts = [part for part in policy[:3] if part is not None]

    def value(*changed):
        return token_kl(policy._replace(**dict(zip(Head._fields, changed, strict=False))), reference)

    assert torch.autograd.gradcheck(value, parts)


def test_two_tokens_by_hand():
    # p = (3/4, 1/4) and q = (1/2, 1/2): KL = 3/4 log 3/2 + 1/4 log 1/2, dKL/dz = p (log p/q - KL)
    z = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64, requires_grad=True)
    identity = torch.eye(2, dtype=torch.float64)
    found = token_kl(Head(z, identity), Head(torch.zeros(1, 2, dtype=torch.float64), identity))
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert found.item() == pytest.approx(expected, abs=1e-14)
    (slope,) = torch.autograd.grad(found.sum(), z)
    by_hand = [0.75 * (math.log(1.5) - expected), 0.25 * (math.log(0.5) - expected)]
    assert slope[0].tolist() == pytest.approx(by_hand, abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_model_has_no_divergence_from_itself_and_no_gradient(dtype):
    policy, _ = heads(4, 50, dtype, sharpness=30.0)
    found = token_kl(policy, policy)
    assert not found.any()
    assert not any(part.any() for part in gradients(found.sum(), policy))
    assert all(part.dtype == dtype for part in gradients(token_kl(policy, policy).sum(), policy))


def test_nothing_flows_to_the_reference():
    policy, reference = heads(4, 9)
    for part in reference[:2]:
        part.requires_grad_()
    token_kl(policy, reference).sum().backward()
    assert reference.hidden_TD.grad is None
    assert reference.weight_VD.grad is None


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_blocks_leave_no_trace_and_are_never_all_positions(rows, monkeypatch):
    policy, reference = heads(7, 12, bias=True, scale=0.5)
    whole = token_kl(policy, reference)
    expected = gradients(whole.square().sum(), policy)
    sizes, product = [], slabs.product
    monkeypatch.setattr(slabs, "product", lambda a, b, out=None: sizes.append(len(a)) or product(a, b, out))
    monkeypatch.setitem(kl.BLOCK_LOGITS, "cpu", 12 * rows + 5)
    found = token_kl(policy, reference)
    torch.testing.assert_close(found, whole, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(gradients(found.square().sum(), policy), expected, rtol=1e-12, atol=1e-14)
    assert max(sizes) == rows


@given(st.integers(1, 9), st.integers(2, 40), st.floats(0.0, 40.0))
def test_it_is_never_negative_and_agrees_with_the_statistics_without_gradient(tokens, vocabulary, sharpness):
    policy, reference = heads(tokens, vocabulary, torch.float32, sharpness=sharpness)
    found = token_kl(policy, reference)
    assert (found >= 0).all()
    stats = token_stats(policy, reference, torch.zeros(tokens, dtype=torch.int64))
    torch.testing.assert_close(found.detach(), stats.kl_T, rtol=1e-4, atol=1e-4)


def test_rounding_to_16_bits_stays_near_the_definition():
    policy, reference = heads(20, 300, torch.bfloat16)
    exact = definition(*(Head(*(p.double() for p in head[:2])) for head in (policy, reference)))
    torch.testing.assert_close(token_kl(policy, reference).double(), exact, rtol=1e-4, atol=1e-5)


def test_autocast_rounds_no_divergence_on_a_cpu():
    policy, reference = heads(5, 40, torch.float32, bias=True)
    plain = token_kl(policy, reference)
    slopes = gradients(plain.sum(), policy)
    with torch.autocast("cpu", torch.bfloat16):
        found = token_kl(policy, reference)
    assert torch.equal(found, plain)
    assert all(torch.equal(a, b) for a, b in zip(gradients(found.sum(), policy), slopes, strict=True))


def test_models_of_different_vocabularies_are_refused():
    policy, _ = heads(4, 9)
    with pytest.raises(ValueError, match="positions and vocabulary of the policy"):
        token_kl(policy, heads(4, 8)[1])


def test_no_position_has_no_divergence_and_a_zero_gradient():
    policy, reference = heads(0, 9)
    found = token_kl(policy, reference)
    assert found.shape == (0,)
    assert not any(part.any() for part in gradients(found.sum(), policy))
