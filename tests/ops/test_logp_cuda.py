"""The backends on a CUDA device: against float64, against plain torch, and against themselves.

Letters: T positions, D hidden width, V vocabulary.
"""

import pytest
import torch

from ops.sequence_logratio import api, token_logp

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

BACKENDS = [name for name in api.BACKENDS if name != "reference"]
FORMS = {
    "bare": {},
    "biased": {"bias": True},
    "all": {"bias": True, "scale": 0.7, "softcap": 20.0},
}


def problem(tokens, dtype, bias=False, sharpness=1.0, vocabulary=32003, width=512, **form):
    random = torch.Generator("cuda").manual_seed(0)
    weight_VD = torch.randn(vocabulary, width, device="cuda", generator=random)
    target_T = torch.randint(vocabulary, (tokens,), device="cuda", generator=random)
    toward_TD = 24 * torch.rand(tokens, 1, device="cuda", generator=random) * weight_VD[target_T] / width**0.5
    hidden_TD = sharpness * (toward_TD + torch.randn(tokens, width, device="cuda", generator=random)) / 4
    bias_V = torch.randn(vocabulary, device="cuda", generator=random) if bias else None
    target_T[::7] = -100
    grad_T = torch.randn(tokens, device="cuda", generator=random)
    return [None if x is None else x.to(dtype) for x in (hidden_TD, weight_VD, bias_V)], target_T, grad_T, form


def run(backend, tensors, target_T, grad_T, form, head_learns=True):
    leaves = [
        None if x is None else x.clone().requires_grad_(index == 0 or head_learns) for index, x in enumerate(tensors)
    ]
    if backend == "plain":
        logit_TV = torch.nn.functional.linear(*leaves) * form.get("scale", 1.0)
        cap = form.get("softcap")
        logit_TV = logit_TV if cap is None else cap * torch.tanh(logit_TV / cap)
        logp_T = -torch.nn.functional.cross_entropy(logit_TV.float(), target_T, reduction="none")
    else:
        logp_T = token_logp(*leaves[:2], target_T, bias_V=leaves[2], backend=backend, **form)
    wanted = [x for x in leaves if x is not None and x.requires_grad]
    return [logp_T.detach(), *torch.autograd.grad(logp_T, wanted, grad_T.to(logp_T.dtype))]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, 63, 257, 4096])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("head_learns", [True, False])
def test_error_is_at_most_twice_that_of_plain_torch_and_an_ulp(backend, dtype, tokens, form, head_learns):
    tensors, target_T, grad_T, form = problem(tokens, dtype, **form)
    wide = [None if x is None else x.double() for x in tensors]
    truth = run("reference", wide, target_T, grad_T, form, head_learns)
    plain = run("plain", tensors, target_T, grad_T, form, head_learns)
    ours = run(backend, tensors, target_T, grad_T, form, head_learns)
    for index, (exact, theirs, mine) in enumerate(zip(truth, plain, ours, strict=True)):
        ulp = exact.abs().max() * torch.finfo(torch.float32 if index == 0 else dtype).eps
        assert (mine.double() - exact).abs().max() <= 2 * (theirs.double() - exact).abs().max() + ulp


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("head_learns", [True, False])
def test_reruns_are_equal_to_the_bit(backend, head_learns):
    arguments = problem(4096, torch.bfloat16)
    first, *others = (run(backend, *arguments, head_learns) for _ in range(5))
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_logits_are_held(backend):
    tensors, target_T, grad_T, form = problem(8192, torch.bfloat16, vocabulary=151936)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(backend, tensors, target_T, grad_T, form)
    extra = torch.cuda.max_memory_allocated() - before
    gradients = 2 * sum(2 * x.numel() for x in tensors if x is not None)  # run() clones what it differentiates
    assert extra - gradients < 8192 * 151936 * 4 / 4
