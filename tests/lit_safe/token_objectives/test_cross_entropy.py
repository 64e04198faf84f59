"""The seam of token objectives: weights of tokens, and what stays as it was."""

import pytest
import torch

from lit_safe.errors.message import SettingError
from lit_safe.token_objectives.cross_entropy import CrossEntropy
from lit_safe.training.chunk_scores import ChunkScores
from lit_safe.training.sft import SupervisedFineTuning
from lit_safe.types import TokenObjective
from models.pair import PolicyReference
from models.sources import TinyLlama
from tests.lit_safe.token_world import LongIsUnsafe, fruit_batch, gradient, token_logps, tuned, weighed


def test_without_weights_it_is_fine_tunings_own_loss_to_the_bit():
    batch, plain, named = fruit_batch(), tuned(), tuned(CrossEntropy())
    assert isinstance(CrossEntropy(), TokenObjective)
    losses = [module._loss_share(batch) for module in (plain, named, named)]
    assert losses[0] == losses[1]
    torch.testing.assert_close(gradient(named, losses[1]), gradient(plain, losses[0]), rtol=0, atol=0)
    ones = named._loss_share(weighed(batch, 1.0))
    assert ones == losses[0]
    assert plain.train_means.compute()["loss"] == named.train_means.compute()["loss"]


def test_each_token_counts_by_its_weight():
    batch, module = fruit_batch(), tuned(CrossEntropy())
    weight_T = torch.linspace(0, 2, len(batch.sequences.target))
    logp_RV, _, target_R = token_logps(module, batch)
    nll_R = -logp_RV.gather(-1, target_R[:, None])[:, 0]
    scored = batch.sequences.target >= 0
    expected = (weight_T[scored] * nll_R).sum() / batch.tokens_in_step
    assert int(batch.tokens_in_step) == len(target_R)  # the weights do not change what the sum is divided by
    assert module._loss_share(weighed(batch, weight_T)).item() == pytest.approx(expected.item(), rel=1e-6)
    logged = module.train_means.compute()
    assert logged["loss"] == pytest.approx(expected.item(), rel=1e-6)
    assert logged["loss/nll"] == pytest.approx(nll_R.mean().item(), rel=1e-6)
    assert logged["weights/token"] == pytest.approx(weight_T[scored].mean().item(), rel=1e-6)
    assert "loss/kl" not in logged  # nothing computes it


def test_a_filler_row_has_no_loss_and_no_gradient():
    batch, module = fruit_batch(), tuned(CrossEntropy())
    absent = weighed(batch, 0.5)._replace(present=torch.zeros(4, dtype=torch.bool))
    loss = module._loss_share(absent)
    assert loss == 0
    assert not gradient(module, loss).any()
    assert module.train_means.compute() == {}


def test_weights_that_nothing_reads_are_refused():
    with pytest.raises(ValueError, match="token_weights has no effect without token_objective"):
        SupervisedFineTuning(PolicyReference(TinyLlama()), token_weights=ChunkScores(LongIsUnsafe()))
    with pytest.raises(ValueError, match=r"name a model\.token_objective"):
        tuned()._loss_share(weighed(fruit_batch(), 1.0))


def test_a_pair_without_numbers_of_tokens_is_refused():
    module = SupervisedFineTuning(torch.nn.Linear(1, 1), token_objective=CrossEntropy())
    with pytest.raises(SettingError, match="needs a pair with token_scores; Linear has none"):
        module.setup("fit")
