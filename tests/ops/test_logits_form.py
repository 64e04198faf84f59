"""Log-probs and entropies from logits, against their definitions in float64.

Letters: T positions, D hidden width, V vocabulary.
"""

import pytest
import torch

from ops.sequence_logratio import logits_token_logp, logits_token_stats, slabs


@pytest.fixture(autouse=True)
def small_blocks_of_memory_that_starts_as_nan(monkeypatch):
    monkeypatch.setitem(slabs.NARROWEST_SLAB, "cpu", 128)
    monkeypatch.setitem(slabs.BLOCK_BYTES, "cpu", 4 * 128 * 20)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def logits_and_targets(dtype, sharpness=1.0, vocabulary=333):
    random = torch.Generator().manual_seed(0)
    target_T = torch.randint(vocabulary, (63,), generator=random)
    target_T[:3] = torch.tensor([0, vocabulary - 1, -100])
    return (sharpness * torch.randn(63, vocabulary, generator=random)).to(dtype), target_T


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sharpness", [0.0, 1.0, 30.0])
def test_log_probs_and_gradients_are_no_worse_than_those_of_plain_torch(dtype, sharpness):
    logit_TV, target_T = logits_and_targets(dtype, sharpness)
    grad_T = torch.randn(63, generator=torch.Generator().manual_seed(1))

    def run(function, tensor):
        leaf_TV = tensor.clone().requires_grad_()
        logp_T = function(leaf_TV, target_T)
        return logp_T.detach().double(), torch.autograd.grad(logp_T, leaf_TV, grad_T.to(logp_T))[0].double()

    def plain(tensor, target):
        wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        return -torch.nn.functional.cross_entropy(wide, target, reduction="none")

    for exact, theirs, ours, eps in zip(
        run(plain, logit_TV.double()),
        run(plain, logit_TV),
        run(logits_token_logp, logit_TV),
        (torch.finfo(torch.float32).eps, torch.finfo(dtype).eps),
        strict=True,
    ):
        assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max() + eps * exact.abs().max()


def test_gradients_are_those_of_the_outputs():
    logit_TV, target_T = logits_and_targets(torch.float64, vocabulary=5)
    logit_TV = logit_TV[:6].requires_grad_()
    torch.autograd.gradcheck(lambda z: logits_token_logp(z, target_T[:6].clamp(max=4)), logit_TV)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch 2.15's own check
def test_the_operator_is_one_torch_understands():
    logit_TV, target_T = logits_and_targets(torch.float32, vocabulary=5)
    torch.library.opcheck(
        torch.ops.sequence_logratio.logits.default, (logit_TV.requires_grad_(), target_T.clamp(max=4))
    )


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 30.0])
def test_the_entropy_is_that_of_the_distribution(sharpness):
    logit_TV, target_T = logits_and_targets(torch.float32, sharpness)
    entropy_T = logits_token_stats(logit_TV, target_T)[1]
    exact_T = torch.distributions.Categorical(logits=logit_TV.double()).entropy()
    torch.testing.assert_close(entropy_T.double(), exact_T, rtol=1e-5, atol=1e-5)


def test_one_certain_token_has_log_prob_and_entropy_zero():
    logp_T, entropy_T = logits_token_stats(torch.tensor([[0.0], [3.0]]), torch.tensor([0, 0]))
    assert logp_T.tolist() == [0, 0]
    assert entropy_T.tolist() == [0, 0]


def test_logits_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"got \(2, 3\), torch.int64 \(3,\)"):
        logits_token_logp(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))
