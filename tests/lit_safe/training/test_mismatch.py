"""Responses to other prompts: which sequences they are, their mean log-ratio, and a step of KTO in micro-batches."""

from typing import Any

import pytest
import torch

from lit_safe.commands.doctor import doctor
from lit_safe.doctor.patient import gradient, take_pairs
from lit_safe.objectives import KTO
from lit_safe.training.mismatch import Mismatch, mismatched
from lit_safe.types import IGNORE, PackedBatch
from tests.lit_safe.pair_world import Fruit, aligned, moved, pairs, plain_logp, trainer


@pytest.fixture(scope="module")
def batch() -> PackedBatch:
    """Four pairs of four prompts."""
    data = pairs(Fruit(16))
    data.setup()
    return next(iter(data.train_dataloader()))[0]


def parts(sequences: Any, number: int) -> tuple[list[int], list[int]]:
    """The prompt and the response of a sequence, as token ids."""
    start, end = sequences.cu_seqlens[number : number + 2].tolist()
    ids, target = sequences.input_ids[start:end].tolist(), sequences.target[start:end].tolist()
    begin = next(t for t, token in enumerate(target) if token != IGNORE)
    assert target[begin:-1] == ids[begin + 1 :]
    return ids[: begin + 1], ids[begin + 1 :]


def test_each_response_follows_the_prompt_of_the_next_pair(batch: PackedBatch) -> None:
    (made,) = mismatched([batch])
    for i in range(4):
        for side in (0, 1):
            prompt, _ = parts(batch.sequences, 2 * ((i + 1) % 4))
            _, response = parts(batch.sequences, 2 * i + side)
            assert parts(made, 2 * i + side) == (prompt, response)
    assert made.position.tolist() == [t for n in made.cu_seqlens.diff().tolist() for t in range(n)]


def test_pairs_of_one_prompt_and_fillers_are_skipped(batch: PackedBatch) -> None:
    same = batch._replace(prompt_id=torch.tensor([1, 1, 2, 1]))
    (made,) = mismatched([same])
    asked = [parts(made, 2 * i)[0] for i in range(4)]
    assert asked == [parts(batch.sequences, 2 * other)[0] for other in (2, 2, 3, 2)]
    assert mismatched([batch._replace(prompt_id=torch.ones(4, dtype=torch.int64))]) == []
    absent = batch._replace(present=torch.tensor([True, False, True, False]))
    (made,) = mismatched([absent])
    assert len(made.cu_seqlens) - 1 == 4
    assert parts(made, 0)[0] == parts(batch.sequences, 4)[0]


def test_none_is_longer_than_the_longest_of_the_step(batch: PackedBatch) -> None:
    (made,) = mismatched([batch])
    assert int(made.cu_seqlens.diff().max()) <= int(batch.sequences.cu_seqlens.diff().max())


def test_the_mean_is_that_of_the_definition_over_all_micro_batches(batch: PackedBatch) -> None:
    module = moved(aligned(KTO()))
    (made,) = mismatched([batch])
    pair = module.pair
    with pair._both()[1]() as reference:
        ratio = plain_logp(pair.policy.model, made) - plain_logp(reference.model, made)
    micro = [take_pairs(batch, [i]) for i in range(4)]
    mismatch = Mismatch()
    with mismatch.of_step(pair, micro):
        assert mismatch.of(pair, micro[2]).item() == pytest.approx(ratio.mean().item(), abs=1e-4)
    assert mismatch.of(pair, batch).item() == pytest.approx(ratio.mean().item(), abs=1e-4)
    assert mismatch.of(pair, micro[2]).item() == 0, "one pair has no other prompt"


@pytest.mark.parametrize("desirable", ["chosen", "safe"])
def test_a_step_of_kto_is_the_same_however_it_is_divided(batch: PackedBatch, desirable: Any) -> None:
    module = moved(aligned(KTO(0.5, desirable)))
    whole = gradient(module, [batch])
    divided = gradient(module, [take_pairs(batch, rows) for rows in ([0], [1, 2], [3])])
    assert whole.norm() > 0
    torch.testing.assert_close(divided, whole, rtol=1e-3, atol=1e-6)


def test_doctor_passes_kto_and_a_run_trains_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(aligned(KTO()), pairs(Fruit(16)), pairs=2) == 0, capsys.readouterr().out
    run = trainer(max_steps=2, limit_val_batches=1)
    run.fit(aligned(KTO()), pairs(Fruit(16)))
    assert run.callback_metrics["train/loss"] < 0.49  # it is sigmoid(0) at first, and falls with the first step
