"""A step does not depend on the size of its micro-batches, and a free size suits the memory."""

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_safe.constraint.costs.rollout import RolloutCost
from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.objectives import ConstrainedDPO
from lit_safe.training.micro_batch import FEWEST, MOST, choose_micro_batch
from lit_safe.training.module import PreferenceAlignment
from lit_safe.types import MemoryEstimate
from models.pair import PolicyReference
from models.sources import TinyLlama
from tests.lit_safe.pair_world import Fruit, aligned, pairs, talk, trainer, weights
from tests.lit_safe.training.module_two_ranks import Length

LIMITS: dict[str, dict[str, int | None]] = {
    "two pairs": {"micro_batch_pairs": 2},
    "a pair": {"micro_batch_pairs": None, "micro_batch_tokens": 1},
    "a few tokens": {"micro_batch_pairs": None, "micro_batch_tokens": 250},
    "a step": {"micro_batch_pairs": None, "micro_batch_tokens": 10**6},
    "chosen": {"micro_batch_pairs": None},
}


def trained(folder: Path, layout: Any, limit: dict[str, int | None]) -> tuple[torch.Tensor, float, dict[str, float]]:
    """Weights, multiplier and logged values of two epochs of C-DPO with dual steps."""
    dual = DualAscent(limit=0.0, lr=0.5, estimator=RolloutCost(Length(), samples_per_prompt=2, max_new_tokens=4))
    pair = PolicyReference(TinyLlama(), layout=layout)
    sgd = partial(torch.optim.SGD, lr=0.1)  # Adam would blow the rounding of a gradient near 0 up to a whole step
    module = PreferenceAlignment(pair, ConstrainedDPO(), sgd, multiplier=0.5)
    run = trainer(folder, max_epochs=2, callbacks=[dual], limit_val_batches=1.0)
    run.fit(module, pairs(Fruit(), pairs_per_step=9, **limit))
    seen = {name: float(value) for name, value in run.callback_metrics.items() if "/perf/" not in name}
    return weights(module), float(module.multiplier), seen


def test_losses_weights_and_multiplier_are_equal_for_every_size(tmp_path: Path) -> None:
    plain, multiplier, seen = trained(tmp_path / "plain", "padded", {"micro_batch_pairs": 4})
    assert multiplier > 0.6
    few = LIMITS["a few tokens"]
    for name, limit in {**LIMITS, "packed": few, "shared": few}.items():
        layout = name if name in ("packed", "shared") else "padded"
        found, moved, logged = trained(tmp_path / name, layout, limit)
        torch.testing.assert_close(found, plain, rtol=0, atol=2e-6)
        assert moved == pytest.approx(multiplier, rel=1e-5)
        assert logged == pytest.approx(seen, rel=1e-4, abs=2e-5, nan_ok=True), name


class Weighs:
    """A model that needs so many bytes a token."""

    def __init__(self, each: float) -> None:
        self.each = each

    def memory_estimate(self, tokens: int, scored: int) -> MemoryEstimate:
        return MemoryEstimate(0, 0, 0, 0, int(self.each * tokens), 0)


@pytest.mark.parametrize(
    "data",
    [lambda: pairs(micro_batch_pairs=None, pairs_per_step=300), lambda: talk(micro_batch_rows=None, rows_per_step=300)],
    ids=["pairs", "rows"],
)
def test_a_free_size_is_the_largest_power_of_two_that_fits(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    free = data()
    free.setup()
    monkeypatch.setattr("lit_safe.training.micro_batch.available_bytes", lambda device: 1000.0)
    for each, ranks in itertools.product((0.0, 1.0, 1e9), (1, 2)):
        choose_micro_batch(Weighs(each), free, torch.device("cpu"), ranks)
        assert free.micro_batch.tokens == {0.0: MOST["cpu"], 1.0: 512 // ranks, 1e9: FEWEST}[each]


def test_a_typed_size_stays() -> None:
    data = pairs(micro_batch_pairs=3)
    data.setup()
    choose_micro_batch(Weighs(1e12), data, torch.device("cpu"))
    assert data.micro_batch.rows == 3
    assert data.micro_batch.state_dict() == {}


def test_a_fit_chooses_and_its_checkpoint_keeps_the_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(tmp_path, max_steps=1)
    data = pairs(micro_batch_pairs=None)
    run.fit(aligned(), data)
    assert data.micro_batch.taken == MOST["cpu"]
    run.save_checkpoint(tmp_path / "one.ckpt")
    monkeypatch.setitem(MOST, "cpu", 128)  # as on another machine
    again = pairs(micro_batch_pairs=None)
    more = trainer(tmp_path, max_steps=2)
    more.fit(aligned(), again, ckpt_path=tmp_path / "one.ckpt")
    assert again.micro_batch.taken == 1024
