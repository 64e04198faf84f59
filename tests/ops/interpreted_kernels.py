"""The Triton kernels under the interpreter. Not collected by itself: see test_fused_interpreted.py.

Letters: T positions, D hidden width, V vocabulary.
"""

import pytest
import torch

from ops.sequence_logratio import Head, fused, sequence_logratio, slabs, token_logp
from ops.sequence_logratio.fused import INTERPRETED

assert INTERPRETED, "run by test_fused_interpreted.py, which switches the interpreter on"

FORMS = {
    "bare": {},
    "scaled": {"scale": 0.3},
    "biased": {"bias": True},
    "capped": {"softcap": 5.0},
    "all": {"bias": True, "scale": 1.7, "softcap": 3.0},
}
SHAPES = [(1, 16, 64), (33, 24, 140)]  # T, D, V: around the tiles of 32 rows, 64 columns, 16 of width


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan():
    """Deterministic mode fills every torch.empty with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def many_blocks(monkeypatch):
    monkeypatch.setitem(slabs.NARROWEST_SLAB, "cpu", 128)
    monkeypatch.setitem(slabs.BLOCK_BYTES, "cpu", 4 * 128 * 50)  # 50 rows of 128 columns


def run(backend, shape, learns, bias=False, dtype=torch.float32, wide=False, **form):
    """Log-probs and gradients of fixed draws in ``dtype``; ``wide`` computes with the same numbers in float64."""
    tokens, width, vocabulary = shape
    random = torch.Generator().manual_seed(0)
    drawn = [torch.randn(*size, generator=random) for size in ((tokens, width), (vocabulary, width), (vocabulary,))]
    drawn = [number.to(dtype).to(torch.float64 if wide else dtype) for number in drawn]
    hidden_TD, weight_VD, bias_V = (
        tensor.requires_grad_(name in learns) for name, tensor in zip(("hidden", "weight", "bias"), drawn, strict=True)
    )
    bias_V = bias_V if bias else None
    target_T = torch.randint(vocabulary, (tokens,), generator=random)
    if tokens > 3:
        target_T[:3] = torch.tensor([0, vocabulary - 1, -100])
    logp_T = token_logp(hidden_TD, weight_VD, target_T, bias_V=bias_V, backend=backend, **form)
    leaves = [x for x in (hidden_TD, weight_VD, bias_V) if x is not None and x.requires_grad]
    grad_T = torch.randn(tokens, generator=random).to(logp_T.dtype)
    grads = torch.autograd.grad(logp_T, leaves, grad_T) if leaves else ()
    return [logp_T.detach(), *grads]


@pytest.fixture
def divide(monkeypatch):
    """A function that sets the length of a job and the number of programs."""

    def set_to(tiles, programs):
        plan = fused.division
        monkeypatch.setattr(fused, "division", lambda *case: plan(*case)._replace(tiles=tiles, programs=programs))

    return set_to


@pytest.mark.parametrize("group", [1, 2, 3, 8])
def test_the_order_of_jobs_changes_no_bit(group, monkeypatch):
    """5 blocks of rows and 5 tiles of the vocabulary, in groups of which some are not full."""
    usual = run("fused", (140, 24, 300), ())
    monkeypatch.setitem(fused.TILINGS, "bare", fused.INTERPRETED_TILING._replace(group=group))
    grouped = run("fused", (140, 24, 300), ())
    assert torch.equal(usual[0], grouped[0])


@pytest.mark.parametrize("programs", [1, 2, 7, 14])
def test_the_number_of_programs_changes_no_bit(programs, divide):
    """15 jobs: one program with all of them, several with different numbers, and (15) a program for each."""
    divide(tiles=2, programs=15)
    alone = run("fused", (140, 24, 300), (), **FORMS["all"])
    divide(tiles=2, programs=programs)
    shared = run("fused", (140, 24, 300), (), **FORMS["all"])
    assert torch.equal(alone[0], shared[0])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("learns", "form"),
    [("", form) for form in FORMS]
    + [(learns, form) for learns in ("hidden", "hidden weight bias") for form in ("bare", "all")],
)
def test_the_kernels_agree_with_the_definition(learns, form, shape, many_blocks):
    mine, definition = (run(backend, shape, learns, **FORMS[form]) for backend in ("fused", "reference"))
    for got, want in zip(mine, definition, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert (mine[0] <= 0).all()


@pytest.mark.parametrize("tiles", [1, 2, 5])  # of 5: the last job of two is half empty
@pytest.mark.parametrize("form", FORMS)
def test_a_job_gathers_several_tiles_of_the_vocabulary(tiles, form, divide):
    divide(tiles, programs=3)
    agrees_with_float64((33, 24, 300), "", form)


@pytest.mark.parametrize("learns", ["hidden", "hidden weight bias"])
@pytest.mark.parametrize("form", FORMS)
def test_a_row_gathers_several_blocks_of_several_slabs(learns, form, many_blocks, monkeypatch):
    monkeypatch.setitem(slabs.BLOCK_BYTES, "cpu", 4 * 128 * 24)  # slabs of 128, 128 and 44 columns
    monkeypatch.setattr(fused, "ROW_COLUMNS", 32)
    agrees_with_float64((7, 24, 300), learns, form)


@pytest.mark.parametrize("learns", ["", "hidden", "hidden weight bias"])
@pytest.mark.parametrize("form", ["bare", "all"])
def test_the_one_token_of_a_vocabulary_is_certain(learns, form):
    assert all((number == 0).all() for number in run("fused", (5, 8, 1), learns, **FORMS[form]))


def agrees_with_float64(shape, learns, form):
    mine = run("fused", shape, learns, **FORMS[form])
    truth = run("reference", shape, learns, wide=True, **FORMS[form])
    for got, want in zip(mine, truth, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=2e-5)


def test_rows_a_descriptor_cannot_address_are_refused():
    with pytest.raises(ValueError, match="not 7 of torch"):
        run("fused", (2, 7, 64), "")


def test_bf16_inputs_are_widened_and_multiplied_as_numbers():
    for got, want in zip(
        run("fused", (33, 24, 140), "hidden", dtype=torch.bfloat16),
        run("reference", (33, 24, 140), "hidden", dtype=torch.bfloat16),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-2)


def test_empty_inputs_launch_nothing():
    assert [tensor.shape[0] for tensor in run("fused", (0, 8, 70), "hidden weight")] == [0, 0, 70]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch 2.15's own check
def test_the_operator_is_one_torch_understands():
    hidden_TD, weight_VD = torch.randn(5, 8, requires_grad=True), torch.randn(70, 8, requires_grad=True)
    arguments = (hidden_TD, weight_VD, torch.tensor([0, 69, -100, 3, 4]), None, 1.0, None, 5, False)
    torch.library.opcheck(torch.ops.sequence_logratio.fused.default, arguments)


def test_a_shared_head_takes_both_models_in_one_call():
    random = torch.Generator().manual_seed(0)
    weight_VD, target_T = torch.randn(70, 8, generator=random), torch.tensor([0, 69, -100, 3, 4])
    policy_TD, reference_TD = torch.randn(2, 5, 8, generator=random)
    grads = []
    for backend in ("fused", "reference"):
        leaf_TD = policy_TD.clone().requires_grad_()
        logratio_N = sequence_logratio(
            Head(leaf_TD, weight_VD),
            Head(reference_TD, weight_VD),
            target_T,
            cu_seqlens_N1=torch.tensor([0, 2, 5]),
            backend=backend,
        )
        logratio_N.sum().backward()
        grads.append((logratio_N.detach(), leaf_TD.grad))
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5)
