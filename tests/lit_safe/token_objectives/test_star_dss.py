"""STAR-DSS: fine-tuning where V is 1, the reference where V is 0, and a row's gradient by hand.

Letters: R scored positions, V vocabulary.
"""

import math

import pytest
import torch

from lit_safe.token_objectives.star_dss import StarDss
from lit_safe.training.chunk_scores import ChunkScores
from lit_safe.training.sft import SupervisedFineTuning
from models.pair import PolicyReference
from models.sources import TinyLlama
from tests.lit_safe.pair_world import talk, trainer, weights
from tests.lit_safe.token_world import disturbed, fruit_batch, gradient, token_logps, tuned, weighed


def test_with_all_weights_1_it_is_fine_tuning_to_the_bit():
    batch = fruit_batch()
    plain, star = disturbed(tuned()), disturbed(tuned(StarDss(kl_weight=3.0)))
    down, same = plain._loss_share(batch), star._loss_share(weighed(batch, 1.0))
    assert down == same
    torch.testing.assert_close(gradient(star, same), gradient(plain, down), rtol=0, atol=0)
    assert "loss/kl" not in star.train_means.compute()  # the reference did not run


def test_with_all_weights_0_the_reference_is_the_minimum():
    batch = weighed(fruit_batch(), 0.0)
    star = tuned(StarDss())
    loss = star._loss_share(batch)
    assert loss == 0
    assert not gradient(star, loss).any()  # exactly: both models compute the same numbers
    for size in (0.02, 0.05):
        assert disturbed(tuned(StarDss()), size)._loss_share(batch) > 1e-4


def test_descent_on_weights_of_0_returns_to_the_reference():
    batch, star = weighed(fruit_batch(), 0.0), disturbed(tuned(StarDss()))
    losses = []
    for _ in range(30):
        loss = star._loss_share(batch)
        losses.append(loss.item())
        with torch.no_grad():
            for parameter, slope in zip(
                star.parameters(), torch.autograd.grad(loss, list(star.parameters())), strict=True
            ):
                parameter -= 0.5 * slope
    assert losses[-1] < 0.2 * losses[0]


def test_the_loss_and_its_gradient_are_the_formula_in_float64():
    """V nll + (1 - V) 2 KL, with both models' whole distributions from plain transformers."""
    batch, star = fruit_batch(), disturbed(tuned(StarDss(kl_weight=2.0)))
    v_T = torch.linspace(0, 1, len(batch.sequences.target))
    v_R = v_T[batch.sequences.target >= 0].double()
    ours_RV, theirs_RV, target_R = token_logps(star, batch)
    nll_R = -ours_RV.gather(-1, target_R[:, None])[:, 0]
    kl_R = (ours_RV.exp() * (ours_RV - theirs_RV)).sum(-1)
    expected = (v_R * nll_R + (1 - v_R) * 2.0 * kl_R).sum() / len(target_R)
    found = star._loss_share(weighed(batch, v_T))
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(gradient(star, found), gradient(star, expected), rtol=1e-3, atol=1e-7)
    assert star.train_means.compute()["loss/kl"] == pytest.approx(kl_R[v_R < 1].mean().item(), rel=1e-4)


def test_a_tokens_gradient_by_hand():
    """Of two tokens with p = (3/4, 1/4), target the second, V = 1/4, reference (1/2, 1/2), kl_weight 2."""
    logit = torch.tensor([math.log(3.0), 0.0], dtype=torch.float64, requires_grad=True)
    logp = logit.log_softmax(0)
    kl = (logp.exp() * (logp - math.log(0.5))).sum()
    objective, v = StarDss(kl_weight=2.0), torch.tensor([0.25], dtype=torch.float64)
    loss = objective.loss(-logp[1:], v) + objective.kl_factor(v) * kl
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert loss.item() == pytest.approx(0.25 * math.log(4.0) + 1.5 * divergence, abs=1e-14)
    (slope,) = torch.autograd.grad(loss.sum(), logit)
    # V (p - onehot) + (1 - V) 2 p (log p/q - KL)
    first = 0.25 * 0.75 + 1.5 * 0.75 * (math.log(1.5) - divergence)
    assert slope.tolist() == pytest.approx([first, -first], abs=1e-14)


def test_training_keeps_unsafe_responses_at_the_reference(tmp_path):
    """The guardrail calls every response unsafe: nothing is learnt. It calls every one safe: it is fine-tuning."""
    ends = []
    for verdict in (1000.0, -1000.0, None):
        options = {}
        if verdict is not None:
            options = {"token_objective": StarDss(), "token_weights": ChunkScores(Always(verdict))}
        module = SupervisedFineTuning(PolicyReference(TinyLlama()), lambda p: torch.optim.SGD(p, lr=0.1), **options)
        module.configure_model()
        start = weights(module)
        trainer(tmp_path / str(verdict), max_epochs=1).fit(module, talk(rows_per_step=13, micro_batch_rows=13))
        ends.append((weights(module) - start).abs().max().item())
    unsafe, safe, plain = ends
    assert unsafe == 0
    assert safe == plain > 1e-3


class Always:
    def __init__(self, score):
        self.score = score

    def __call__(self, prompts, responses):
        return torch.full((len(responses),), self.score)


@pytest.mark.parametrize("kl_weight", [-1.0, math.inf, math.nan])
def test_the_weight_of_the_kl_is_a_number_from_0_on(kl_weight):
    with pytest.raises(ValueError, match="kl_weight must be >= 0 and finite"):
        StarDss(kl_weight=kl_weight)
