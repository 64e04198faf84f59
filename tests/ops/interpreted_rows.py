"""The kernels that gather rows of slabs, under the interpreter. Run by test_fused_interpreted.py in a child process.

Letters: T positions, G of them with a gradient, D hidden width, V vocabulary.
"""

import pytest
import torch

from ops.sequence_logratio import fused, merge_kernels, routes, slabs, token_stats
from ops.sequence_logratio.fused import INTERPRETED
from tests.ops import test_token_stats
from tests.ops.interpreted_kernels import FORMS, agrees_with_float64, run, unwritten_memory_is_nan

assert INTERPRETED
__all__ = ["unwritten_memory_is_nan"]  # a fixture of every test here too


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 24 rows and 128 columns, which a program reads 32 columns at a time."""
    monkeypatch.setitem(slabs.NARROWEST_SLAB, "cpu", 128)
    monkeypatch.setitem(slabs.BLOCK_BYTES, "cpu", 4 * 128 * 24)
    monkeypatch.setattr(fused, "ROW_COLUMNS", 32)
    monkeypatch.setattr(fused, "STATS_COLUMNS", 32)


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_slabs_merge_to_the_log_probs_of_float64_and_of_the_streaming_kernel(form, monkeypatch):
    streamed = run("fused", (29, 24, 300), (), **FORMS[form])[0]
    monkeypatch.setattr(routes, "ALWAYS", "merge")
    monkeypatch.setattr(fused, "_streamed", None)
    agrees_with_float64((29, 24, 300), "", form)
    torch.testing.assert_close(run("fused", (29, 24, 300), (), **FORMS[form])[0], streamed, rtol=2e-6, atol=2e-6)


def test_a_vocabulary_of_one_token_merges_to_certainty(monkeypatch):
    monkeypatch.setattr(routes, "ALWAYS", "merge")
    assert (run("fused", (5, 8, 1), ())[0] == 0).all()


def test_a_head_of_another_type_than_the_hidden_states_is_cast_a_slab_at_a_time(monkeypatch):
    """As under autocast: hidden states in bf16, a head in fp32."""
    monkeypatch.setattr(fused, "_streamed", None)
    random = torch.Generator().manual_seed(0)
    hidden_TD, weight_VD = torch.randn(9, 24, generator=random).bfloat16(), torch.randn(300, 24, generator=random)
    target_T = torch.randint(300, (9,), generator=random)
    got_T = fused.token_logp(hidden_TD, weight_VD, target_T, None, 1.0, None)
    want_T = (hidden_TD.double() @ weight_VD.double().T).log_softmax(-1).gather(1, target_T[:, None])[:, 0]
    torch.testing.assert_close(got_T.double(), want_T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("route", ["stream", "merge"])
def test_rows_without_a_gradient_take_the_ungraded_route_beside_rows_that_have_one(route, monkeypatch):
    monkeypatch.setattr(routes, "ALWAYS", route)
    random = torch.Generator().manual_seed(0)
    hidden_TD, weight_VD = (torch.randn(rows, 24, generator=random) for rows in (37, 300))
    target_T = torch.randint(300, (37,), generator=random).index_fill(0, torch.tensor([2, 30]), -100)
    passes = []
    whole = slabs.forward
    monkeypatch.setattr(
        slabs, "forward", lambda p, rows, *a: passes.append((len(p.target_T), rows)) or whole(p, rows, *a)
    )
    leaf_TD = hidden_TD.clone().requires_grad_()
    logp_T = fused.token_logp(leaf_TD, weight_VD, target_T, None, 0.7, 4.0, grad_rows=26)
    assert passes == [(26, 26)] + [(11, 0)] * (route == "merge")
    grad_T = torch.randn(37, generator=random)
    logp_T.backward(grad_T)
    wide_TD = hidden_TD.double().requires_grad_()
    z_TV = 4.0 * torch.tanh(0.7 * (wide_TD @ weight_VD.double().T) / 4.0)
    exact_T = -torch.nn.functional.cross_entropy(z_TV, target_T, reduction="none")
    exact_T[:26].backward(grad_T[:26].double())
    torch.testing.assert_close(logp_T.detach().double(), exact_T.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(leaf_TD.grad.double(), wide_TD.grad, rtol=1e-4, atol=1e-5)
    assert (leaf_TD.grad[26:] == 0).all()


def test_rows_whose_factor_is_one_stay_and_others_are_multiplied():
    random = torch.Generator().manual_seed(0)
    sums_GD = torch.randn(6, 45, generator=random)
    sums_GD[1, 3], sums_GD[4, 44] = torch.inf, torch.nan
    decay_G = torch.tensor([0.0, 1.0, 0.25, torch.nan, 1.0, 0.999])
    want_GD = sums_GD * decay_G[:, None]
    fused._rescale(sums_GD, decay_G)
    torch.testing.assert_close(sums_GD, want_GD, rtol=0, atol=0, equal_nan=True)


def test_skipping_rows_that_keep_their_maximum_changes_no_bit_of_a_gradient(monkeypatch):
    skipped = run("fused", (29, 24, 300), "hidden")
    monkeypatch.setattr(fused, "_rescale", slabs.rescale)
    multiplied = run("fused", (29, 24, 300), "hidden")
    assert all(torch.equal(*both) for both in zip(skipped, multiplied, strict=True))


def two_heads(tokens, vocabulary, form, sharpness=1.0):
    """Heads of widths 8 and 16, as the kernels need; see ``test_token_stats.problem`` for the targets."""
    policy, reference, target_T = test_token_stats.problem(tokens, vocabulary, sharpness=sharpness, **form)
    pad = torch.nn.functional.pad
    return (
        policy._replace(hidden_TD=pad(policy.hidden_TD, (0, 1)), weight_VD=pad(policy.weight_VD, (0, 1))),
        reference,
        target_T,
    )


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # numpy's sigmoid(-200) is 0, as it should be
@pytest.mark.parametrize("sharpness", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("form", test_token_stats.FORMS)
def test_statistics_of_the_kernel_are_those_of_torch_s_blocks_and_of_float64(form, sharpness, monkeypatch):
    """Two blocks of rows, three slabs, several reads of a row; both have the form, then only the reference.

    All four numbers are differences of numbers of the size of a log-prob.
    """
    monkeypatch.setitem(slabs.BLOCK_BYTES, "cpu", 4 * 128 * 6)
    for case in (
        two_heads(9, 300, test_token_stats.FORMS[form], sharpness),
        (two_heads(9, 300, {}, sharpness)[0], *two_heads(9, 300, test_token_stats.FORMS[form], sharpness)[1:]),
    ):
        got, blocks = (token_stats(*case, backend=backend) for backend in ("fused", "chunked"))
        exact = test_token_stats.exactly(*case)
        size = max(exact_T.abs().max().item() for exact_T in exact)
        for value_T, block_T, exact_T in zip(got, blocks, exact, strict=True):
            torch.testing.assert_close(value_T, block_T, rtol=2e-6, atol=1e-6 * size)
            torch.testing.assert_close(value_T.double(), exact_T, rtol=2e-6, atol=1e-6 * size)
        assert (got.policy_logp_T <= 0).all()
        assert (got.kl_T >= 0).all()


def test_the_kernel_computes_them_and_a_model_has_no_divergence_from_itself(monkeypatch):
    policy, _, target_T = two_heads(9, 300, {"softcap": 4.0})
    assert (token_stats(policy, policy, target_T, backend="fused").kl_T == 0).all()
    monkeypatch.setattr(merge_kernels, "stats_kernel", None)
    token_stats(policy, policy, target_T, backend="chunked")
    with pytest.raises(TypeError):
        token_stats(policy, policy, target_T, backend="fused")


def test_one_token_and_no_positions_have_statistics_too():
    got = token_stats(*two_heads(3, 1, {}), backend="fused")
    assert all((value_T == 0).all() for value_T in got)
    assert [len(value_T) for value_T in token_stats(*two_heads(0, 5, {}), backend="fused")] == [0] * 4
