"""Gradient ascent with a bound: fine-tuning's gradient with its sign turned, up to the bound of each token."""

import pytest
import torch

from lit_safe.screen.opening import objective_in_words
from lit_safe.token_objectives.clipped_ascent import ClippedAscent
from lit_safe.training.sft import SupervisedFineTuning
from models.pair import PolicyReference
from models.sources import TinyLlama
from tests.lit_safe.pair_world import talk, trainer
from tests.lit_safe.token_world import fruit_batch, gradient, tuned


def test_three_tokens_by_hand():
    nll = torch.tensor([0.5, 3.0, 9.0], dtype=torch.float64, requires_grad=True)
    loss = ClippedAscent(clip=4.0).loss(nll, torch.tensor([1.0, 0.5, 1.0], dtype=torch.float64))
    assert loss.tolist() == [-0.5, -1.5, -4.0]
    (slope,) = torch.autograd.grad(loss.sum(), nll)
    assert slope.tolist() == [-1.0, -0.5, 0.0]


def test_far_below_the_bound_it_is_the_negative_of_fine_tuning():
    batch, plain, ascent = fruit_batch(), tuned(), tuned(ClippedAscent(clip=1e6))
    down, up = plain._loss_share(batch), ascent._loss_share(batch)
    assert up == -down
    torch.testing.assert_close(gradient(ascent, up), -gradient(plain, down), rtol=0, atol=0)


def test_tokens_beyond_the_bound_have_no_gradient():
    batch, module = fruit_batch(), tuned(ClippedAscent(clip=1e-3))  # a random model gives each byte about 5.6 nats
    loss = module._loss_share(batch)
    assert loss.item() == pytest.approx(-1e-3)
    assert not gradient(module, loss).any()


def test_a_run_names_its_loss():
    assert objective_in_words(tuned(ClippedAscent(clip=4.0))) == "ClippedAscent: clip 4.0, on single tokens"


def test_ascent_makes_its_responses_unlikely_and_stops_near_the_bound(tmp_path):
    module = SupervisedFineTuning(
        PolicyReference(TinyLlama()), lambda p: torch.optim.SGD(p, lr=0.5), token_objective=ClippedAscent(clip=7.0)
    )
    run = trainer(tmp_path, max_epochs=6)
    run.fit(module, talk(rows_per_step=26, micro_batch_rows=26))
    nll = run.callback_metrics["train/loss/nll"].item()
    assert 6.0 < nll < 10.0  # 5.6 at first
    assert run.callback_metrics["train/loss"].item() >= -7.0


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan")])
def test_a_bound_is_positive(clip):
    with pytest.raises(ValueError, match="clip must be > 0 nats"):
        ClippedAscent(clip=clip)
