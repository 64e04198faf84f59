"""Supervised fine-tuning of a real (tiny) language model: one mean over the scored tokens of a step."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lit_safe.training.sft import SupervisedFineTuning
from lit_safe.types import SequenceBatch
from models.pair import PolicyReference
from models.sources import TinyLlama
from tests.lit_safe.pair_world import talk, trainer, weights

SGD = lambda parameters: torch.optim.SGD(parameters, lr=1.0)  # noqa: E731  # a step is the gradient itself


def module() -> SupervisedFineTuning:
    return SupervisedFineTuning(PolicyReference(TinyLlama()), SGD, gradient_clip_norm=None)


def loaded() -> SupervisedFineTuning:
    tuned = module()
    tuned.configure_model()
    return tuned


@pytest.fixture
def batch() -> SequenceBatch:
    data = talk(rows_per_step=6, micro_batch_rows=6)
    data.setup()
    return next(iter(data.train_dataloader()))[0]


def hugging_face_loss(model: torch.nn.Module, batch: SequenceBatch) -> Tensor:
    """The library's own mean over labels, of the sequences as a padded batch; it shifts the labels itself."""
    bounds = batch.sequences.cu_seqlens.tolist()
    spans = [slice(start, end) for start, end in itertools.pairwise(bounds)]
    ids = [batch.sequences.input_ids[span] for span in spans]
    labels = [torch.cat([torch.tensor([-100]), batch.sequences.target[span][:-1]]) for span in spans]

    def padded(rows: list[Tensor], value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    mask = padded([torch.ones_like(row) for row in ids], 0)
    return model(input_ids=padded(ids, 0), attention_mask=mask, labels=padded(labels, -100)).loss


def gradient(tuned: SupervisedFineTuning, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(tuned.parameters()))])


def test_a_steps_loss_and_gradient_are_the_librarys_own(batch: SequenceBatch) -> None:
    assert len(set(batch.sequences.cu_seqlens.diff().tolist())) > 1, "the rows are to differ in length"
    tuned = loaded()
    ours, theirs = tuned._loss_share(batch), hugging_face_loss(tuned.pair.policy.causal_lm, batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient(tuned, ours), gradient(tuned, theirs), rtol=1e-4, atol=1e-6)


def test_a_row_that_is_not_there_has_no_gradient(batch: SequenceBatch) -> None:
    tuned = loaded()
    absent = batch._replace(present=torch.zeros(6, dtype=torch.bool))
    assert tuned._loss_share(absent) == 0
    assert not gradient(tuned, tuned._loss_share(absent)).any()
    assert tuned.train_means.compute() == {}


def test_a_step_is_the_same_however_it_is_cut(tmp_path: Path) -> None:
    ends = []
    for size in (1, 3, 8):
        tuned = module()
        run = trainer(tmp_path, max_epochs=1)
        run.fit(tuned, talk(rows_per_step=10, micro_batch_rows=size))
        assert run.global_step == 3  # of 26 rows: ten, ten and six
        ends.append(weights(tuned))
    assert (ends[0] - weights(loaded())).abs().max() > 1e-2
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=0, atol=1e-6)


def test_fine_tuning_learns_its_rows_and_says_so(tmp_path: Path) -> None:
    tuned = SupervisedFineTuning(PolicyReference(TinyLlama()), lambda p: torch.optim.AdamW(p, lr=1e-2))
    run = trainer(tmp_path, max_epochs=15, limit_val_batches=1.0, check_val_every_n_epoch=15)
    run.fit(tuned, talk(rows_per_step=16, micro_batch_rows=8))
    curves = {name: value.item() for name, value in run.callback_metrics.items()}
    assert curves["train/loss"] < 2.0  # 5.6 nats a byte at first
    assert curves["eval/loss"] < 4.0
    assert curves["train/lengths/response"] > 5
