"""Log-probs, KL and entropy of two models from one pass, against torch's distributions in float64.

Letters: T positions, D hidden width, V vocabulary.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ops.sequence_logratio import Head, TokenStats, slabs, token_logp, token_stats

FORMS = {
    "plain": {},
    "biased": {"bias": True},
    "capped": {"scale": 0.3, "softcap": 4.0},
    "all": {"bias": True, "scale": 1.7, "softcap": 3.0},
}
SHAPES = [(1, 1), (1, 32003), (63, 700), (257, 333)]  # T, V


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def cut_finely(monkeypatch):
    monkeypatch.setitem(slabs.NARROWEST_SLAB, "cpu", 128)
    monkeypatch.setitem(slabs.BLOCK_BYTES, "cpu", 4 * 128 * 50)  # 50 rows of 128 columns


@pytest.fixture(params=["one block", "many blocks"])
def blocks(request, monkeypatch):
    if request.param == "many blocks":
        cut_finely(monkeypatch)


def problem(tokens, vocabulary, dtype=torch.float32, sharpness=1.0, bias=False, **form):
    """Heads of two models of different widths; targets among which are the first, the last, the likeliest, ignored."""
    random = torch.Generator().manual_seed(0)
    heads = []
    for width in (7, 16):
        hidden_TD, weight_VD = (torch.randn(rows, width, generator=random) for rows in (tokens, vocabulary))
        bias_V = torch.randn(vocabulary, generator=random).to(dtype) if bias else None
        heads.append(Head((sharpness * hidden_TD).to(dtype), weight_VD.to(dtype), bias_V, **form))
    target_T = torch.randint(vocabulary, (tokens,), generator=random)
    if tokens > 4:
        target_T[:3] = torch.tensor([0, vocabulary - 1, -100])
        target_T[3:] = torch.where(target_T[3:] % 2 == 0, logits(heads[0])[3:].argmax(1), target_T[3:])
    return *heads, target_T


def logits(head):
    hidden_TD, weight_VD, bias_V, scale, softcap = head
    logit_TV = scale * torch.nn.functional.linear(hidden_TD, weight_VD, bias_V)
    return logit_TV if softcap is None else softcap * torch.tanh(logit_TV / softcap)


def exactly(policy, reference, target_T):
    wide = [Head(*(x.double() if torch.is_tensor(x) else x for x in head)) for head in (policy, reference)]
    p, q = (torch.distributions.Categorical(logits=logits(head)) for head in wide)
    scored_T = target_T != -100
    logps = (d.log_prob(target_T.clamp(min=0)).where(scored_T, 0) for d in (p, q))
    return TokenStats(*logps, torch.distributions.kl_divergence(p, q), p.entropy())


def plainly(policy, reference, target_T):
    """What one writes without this op."""
    p_TV, q_TV = (logits(head).log_softmax(-1) for head in (policy, reference))
    logps = (
        -torch.nn.functional.nll_loss(logp_TV, target_T, ignore_index=-100, reduction="none")
        for logp_TV in (p_TV, q_TV)
    )
    return TokenStats(*logps, (p_TV.exp() * (p_TV - q_TV)).sum(-1), -(p_TV.exp() * p_TV).sum(-1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_all_four_are_those_of_the_two_distributions(dtype, form, blocks):
    case = problem(63, 333, dtype, **form)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for got_T, want_T in zip(token_stats(*case), exactly(*case), strict=True):
        assert got_T.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(got_T.double(), want_T, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_will_do(shape, blocks):
    case = problem(*shape, torch.float64)
    torch.testing.assert_close(tuple(token_stats(*case)), tuple(exactly(*case)), rtol=1e-12, atol=1e-12)


def test_no_positions_give_no_numbers(blocks):
    assert [value_T.shape for value_T in token_stats(*problem(0, 5))] == [(0,)] * 4


@pytest.mark.parametrize("sharpness", [0.0, 0.05, 1.0, 4.0, 20.0], ids="sharpness {}".format)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_are_at_most_twice_those_of_plain_torch_and_an_ulp(sharpness, dtype, blocks):
    case = problem(257, 2500, dtype, sharpness)
    for got_T, plain_T, exact_T in zip(token_stats(*case), plainly(*case), exactly(*case), strict=True):
        ulp = torch.finfo(torch.float32).eps * exact_T.abs().max()
        assert (got_T - exact_T).abs().max() <= 2 * (plain_T - exact_T).abs().max() + ulp


def test_hand_worked_coins():
    fair, loaded, one = torch.zeros(2, 1), torch.tensor([[0.0], [math.log(3)]]), torch.ones(1, 1)
    got = token_stats(Head(one, fair), Head(one, loaded), torch.tensor([1]))
    want = -math.log(2), math.log(3 / 4), 0.5 * math.log(4 / 3), math.log(2)
    torch.testing.assert_close(torch.cat(got), torch.tensor(want))
    # H(1/4, 3/4) = log 4 - 3/4 log 3, KL(loaded || fair) = log 2 - H
    back = token_stats(Head(one, loaded), Head(one, fair), torch.tensor([-100]))
    entropy = math.log(4) - 0.75 * math.log(3)
    torch.testing.assert_close(torch.cat(back), torch.tensor([0, 0, math.log(2) - entropy, entropy]))


@pytest.mark.parametrize("sharpness", [1.0, 30.0])
def test_a_model_has_no_kl_from_itself(sharpness, blocks):
    policy, _, target_T = problem(63, 700, sharpness=sharpness)
    logp_T, reference_logp_T, kl_T, _ = token_stats(policy, policy, target_T)
    assert (kl_T == 0).all()
    assert torch.equal(logp_T, reference_logp_T)


def test_log_probs_are_those_of_token_logp_and_0_where_ignored(blocks):
    policy, reference, target_T = problem(63, 700, bias=True, softcap=5.0)
    got = token_stats(policy, reference, target_T)
    for logp_T, head in zip(got, (policy, reference), strict=False):
        want_T = token_logp(*head[:2], target_T, bias_V=head.bias_V, softcap=5.0, backend="chunked")
        torch.testing.assert_close(logp_T, want_T, rtol=1e-6, atol=1e-6)
        assert logp_T[2] == 0


def test_kl_and_entropy_do_not_depend_on_the_target(blocks):
    policy, reference, target_T = problem(63, 700, torch.float64)
    both = [token_stats(policy, reference, t)[2:] for t in (target_T, target_T.flip(0), torch.full((63,), -100))]
    for other in both[1:]:
        torch.testing.assert_close(other, both[0], rtol=1e-12, atol=1e-12)


def test_how_the_work_is_cut_does_not_matter(monkeypatch):
    case = problem(63, 2500, bias=True)
    whole = token_stats(*case)
    cut_finely(monkeypatch)
    torch.testing.assert_close(tuple(token_stats(*case)), tuple(whole), rtol=1e-5, atol=1e-5)


def test_reruns_are_equal_to_the_bit():
    case = problem(257, 2500)
    assert all(torch.equal(*values) for values in zip(token_stats(*case), token_stats(*case), strict=True))


@pytest.mark.parametrize("target", [7, 3, -100])
def test_a_sure_model_keeps_the_digits_of_its_entropy(target, blocks):
    lead_T = torch.tensor([0.0, 1.0, 4.0, 20.0, 90.0, 1e5])
    weight_VD = torch.zeros(1000, 1)
    weight_VD[7] = 1.0
    sure, flat = Head(lead_T[:, None], weight_VD), Head(torch.zeros(6, 1), weight_VD)
    logp_T, _, kl_T, entropy_T = token_stats(sure, flat, torch.full((6,), target))
    odds_T = 999 * torch.exp(-lead_T.double())
    want_T = torch.log1p(odds_T) + lead_T * odds_T / (1 + odds_T)
    # where the sure token is not the target, it is one of those that are summed, and 1 + odds rounds
    near = {"rtol": 2e-6, "atol": 0} if target == 7 else {"rtol": 2e-6, "atol": 1e-6}
    torch.testing.assert_close(entropy_T.double(), want_T, **near)
    torch.testing.assert_close(kl_T.double(), math.log(1000) - want_T, rtol=2e-6, atol=1e-6)
    if target == 7:
        torch.testing.assert_close(logp_T.double(), -torch.log1p(odds_T), rtol=2e-6, atol=0)


def test_a_constant_added_to_every_logit_changes_nothing_but_rounding(blocks):
    policy, reference, target_T = problem(63, 700)
    moved = reference._replace(bias_V=torch.full((700,), 1000.0))
    for got_T, want_T in zip(
        token_stats(policy, moved, target_T), token_stats(policy, reference, target_T), strict=True
    ):
        torch.testing.assert_close(got_T, want_T, rtol=1e-5, atol=5e-4)  # an fp32 logit of 1000 has steps of 6e-5


@given(
    seed=st.integers(0, 2**31),
    vocabulary=st.integers(1, 600),
    sharpness=st.floats(0, 100),
    far=st.floats(0, 10),
    column=st.integers(-100, 599),
)
def test_every_number_stays_where_it_belongs(seed, vocabulary, sharpness, far, column):
    random = torch.Generator().manual_seed(seed)
    hidden_TD, weight_VD = (torch.randn(rows, 4, generator=random) for rows in (5, vocabulary))
    other_TD = hidden_TD + far * torch.randn(5, 4, generator=random)
    target_T = torch.full((5,), column if 0 <= column < vocabulary else -100)
    got = token_stats(Head(sharpness * hidden_TD, weight_VD), Head(sharpness * other_TD, weight_VD), target_T)
    assert all(value_T.isfinite().all() for value_T in got)
    assert (got.policy_logp_T <= 0).all()
    assert (got.reference_logp_T <= 0).all()
    assert (got.kl_T >= 0).all()
    assert (got.entropy_T >= 0).all()
    assert (got.entropy_T <= math.log(vocabulary) + 1e-5).all()


def test_nothing_has_a_gradient_and_autocast_rounds_nothing_on_a_cpu():
    policy, reference, target_T = problem(63, 700)
    policy = policy._replace(weight_VD=policy.weight_VD.requires_grad_())
    got = token_stats(policy, reference, target_T)
    with torch.autocast("cpu", torch.bfloat16):
        again = token_stats(policy, reference, target_T)
    assert not any(value_T.requires_grad for value_T in got)
    assert all(torch.equal(*values) for values in zip(got, again, strict=True))


def test_the_two_models_may_be_of_different_precision():
    policy, reference, target_T = problem(63, 700, torch.bfloat16)
    wide = Head(reference.hidden_TD.float(), reference.weight_VD.float())
    for got_T, want_T in zip(token_stats(policy, wide, target_T), exactly(policy, wide, target_T), strict=True):
        torch.testing.assert_close(got_T.double(), want_T, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_named():
    policy, reference, target_T = problem(3, 5)
    for wrong, message in (
        ({"weight_VD": torch.zeros(4, 16)}, r"policy \(3, 5\) and the reference \(3, 4\) differ"),
        ({"bias_V": torch.zeros(4)}, r"need bias \[5\], got \(4,\)"),
        ({"weight_VD": torch.zeros(5, 6)}, r"got \(3, 16\), \(5, 6\)"),
        ({"weight_VD": reference.weight_VD.bfloat16()}, r"hidden is torch.float32 and weight torch.bfloat16"),
    ):
        with pytest.raises(ValueError, match=message):
            token_stats(policy, reference._replace(**wrong), target_T)
    with pytest.raises(ValueError, match="target 5 is neither -100 nor an id of 5"):
        token_stats(policy, reference, target_T.fill_(5))
