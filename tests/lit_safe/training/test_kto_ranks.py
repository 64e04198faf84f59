"""KTO on two ranks: each combines its own pairs, both have one reference point, and the step is the definition's."""

from pathlib import Path

import pytest
import torch

from lit_safe.doctor.patient import take_pairs
from lit_safe.training.mismatch import mismatched
from lit_safe.types import Extra, Pair
from tests.lit_safe.pair_world import moved, pairs, plain_logp, weights
from tests.lit_safe.training.kto_two_ranks import LR, STEP, Fruit, world
from tests.lit_safe.training.test_ranks import ended

pytestmark = pytest.mark.slow  # two processes import Lightning and transformers


def test_two_ranks_share_ktos_reference_point_and_take_the_step_of_the_definition(tmp_path: Path) -> None:
    ranks = ended("kto_two_ranks.py", "2", folder=tmp_path)
    data = pairs(Fruit(16), **{**STEP, "micro_batch_pairs": 6})
    data.setup()
    (batch,) = next(iter(data.train_dataloader()))
    row = {int(pair): i for i, pair in enumerate(batch.pair_id)}
    assert sorted(pair for rank in ranks for pair in rank["pairs"]) == sorted(row)
    assert [len(rank["pairs"]) for rank in ranks] == [3, 3]

    module, _ = world()
    moved(module)
    pair = module.pair
    ratios = []  # of each rank's responses to the prompts of the same rank's other pairs
    with pair._both()[1]() as reference:
        for rank in ranks:
            (other,) = mismatched([take_pairs(batch, [row[one] for one in rank["pairs"]])])
            ratios.append(plain_logp(pair.policy.model, other) - plain_logp(reference.model, other))
    point = float(torch.cat(ratios).mean())
    assert min(abs(float(ratio.mean()) - point) for ratio in ratios) > 1e-3  # neither rank alone has it
    assert [rank["point"] for rank in ranks] == [pytest.approx(point, abs=1e-4)] * 2

    logp = pair.both_logp(batch.sequences)
    logratio = Pair(*(logp.policy - logp.reference).view(-1, 2).unbind(-1))
    extra = Extra(mismatched_logratio=torch.tensor(point))
    loss = module.objective(logratio, batch.label, module.multiplier, extra).loss.mean()
    assert [rank["loss"] for rank in ranks] == [pytest.approx(loss.item(), abs=1e-5)] * 2
    loss.backward()
    stepped = weights(module) - LR * torch.cat([p.grad.flatten() for p in module.parameters() if p.requires_grad])
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    torch.testing.assert_close(ranks[0]["weights"], stepped, rtol=0, atol=1e-6)
    assert float((stepped - weights(module)).norm()) > 1e-2
