"""One seed decides every random draw of training, and nothing else does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from torch import Tensor

from lit_safe.anchors.reference_mass import ReferenceMass
from lit_safe.anchors.reference_support import ReferenceSupport
from lit_safe.objectives import ConstrainedDPO
from lit_safe.training.label_draws import draws
from lit_safe.training.module import PreferenceAlignment
from lit_safe.types import PackedBatch, Pair
from models.pair import PolicyReference
from models.sources import TinyLlama
from tests.lit_safe.pair_world import adamw, pairs, trainer

SAMPLED = ConstrainedDPO(labels="sampled")


class Watched(PreferenceAlignment):
    """Notes what a run draws."""

    def __init__(self, anchor: Any = None) -> None:
        super().__init__(PolicyReference(TinyLlama()), SAMPLED, adamw(1e-3), anchor=anchor, multiplier=0.5)
        self.order: list[list[int]] = []
        self.dropout: list[float] = []
        self.labels: list[dict[int, float]] = []  # of each epoch, by pair

    def training_step(self, micro_batches: list[PackedBatch], batch_idx: int) -> None:
        self.order.append([i for batch in micro_batches for i in batch.pair_id.tolist()])
        super().training_step(micro_batches, batch_idx)

    def forward(self, batch: PackedBatch) -> Any:
        assert batch.label.draw is not None
        while len(self.labels) <= self.current_epoch:
            self.labels.append({})
        self.labels[self.current_epoch] |= dict(zip(batch.pair_id.tolist(), batch.label.draw.tolist(), strict=True))
        self.dropout.append(torch.rand(()).item())  # as a layer would
        return super().forward(batch)


class Spoken(ReferenceSupport):
    """Notes the pairs that it speaks of."""

    def __init__(self) -> None:
        super().__init__(share=0.5)
        self.pairs: list[int] = []

    def on_pairs(self, module: Any, batch: PackedBatch, policy: Pair) -> Tensor | None:
        term_B = super().on_pairs(module, batch, policy)
        if term_B is not None:
            self.pairs += batch.pair_id[term_B != 0].tolist()
        return term_B


class Moves(Callback):
    """Moves the multiplier at the end of the epochs that it is told of, as a dual step would."""

    def __init__(self, *epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch in self.epochs:
            pl_module.multiplier.add_(0.25)


def everything_drawn(seed: int) -> dict[str, Any]:
    support, mass = Spoken(), ReferenceMass(samples_per_prompt=4, samples_per_step=2, max_prompts=6, max_new_tokens=4)
    drawn: dict[str, Any] = {}
    for anchor in (support, mass):
        module = Watched(anchor)
        run = trainer(max_epochs=2, limit_train_batches=2, callbacks=[Moves(0)])
        run.fit(module, pairs(seed=seed))
        drawn |= {"order": module.order, "dropout": module.dropout}
        drawn |= {"labels": module.labels[0], "labels once the multiplier has moved": module.labels[1]}
    return {
        **drawn,
        "pairs that an anchor speaks of": support.pairs,
        "prompts of an anchor": [prompt.prompt_id for prompt in mass._prompts],
        "samples of an anchor": mass._responses,
        "turns of an anchor": [mass._turns(step) for step in range(3)],
        "samples of a turn": [mass._drawn(0, number) for number in range(5)],
    }


def test_runs_of_one_seed_draw_the_same_and_of_two_seeds_nothing_alike() -> None:
    first, again, other = (everything_drawn(seed) for seed in (5, 5, 6))
    assert first == again
    for what, drawn in first.items():
        assert drawn != other[what], what


def test_sampled_labels_are_drawn_once_for_each_value_of_the_multiplier() -> None:
    module = Watched()
    trainer(max_epochs=4, callbacks=[Moves(0, 2)], limit_val_batches=1.0).fit(module, pairs())
    first, second, third, fourth = module.labels
    assert len(first) == len(second) == 30, "training pairs and those held out"
    assert second == third
    for one, other in ((first, second), (third, fourth)):
        assert not any(one[pair] == other[pair] for pair in one)


def test_a_resumed_run_goes_on_with_its_draws(tmp_path: Path) -> None:
    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 5:  # in the second epoch of three steps
                trainer.save_checkpoint(tmp_path / "inside.ckpt", weights_only=False)

    options: dict[str, Any] = {"max_epochs": 3, "limit_train_batches": 3}
    whole, resumed = Watched(), Watched()
    trainer(tmp_path, callbacks=[Moves(0, 1), Save()], **options).fit(whole, pairs())
    trainer(tmp_path, callbacks=[Moves(0, 1)], **options).fit(
        resumed, pairs(), ckpt_path=tmp_path / "inside.ckpt", weights_only=True
    )
    assert resumed.order == whole.order[5:]
    assert resumed.dropout == whole.dropout[5:]
    assert resumed.labels[1].items() < whole.labels[1].items()
    assert resumed.labels[2] == whole.labels[2]


def test_draws_are_uniform_and_those_of_two_keys_have_nothing_to_do_with_each_other() -> None:
    ids = torch.arange(20_000)
    one, other = draws(ids, 7), draws(ids, 8)
    for drawn in (one, other):
        assert 0 <= drawn.min() < drawn.max() < 1
        assert torch.histc(drawn, 10, 0, 1).tolist() == pytest.approx([2000] * 10, abs=200)  # 4.7 standard deviations
    assert torch.corrcoef(torch.stack([one, other]))[0, 1].item() == pytest.approx(0, abs=0.03)
    assert torch.corrcoef(torch.stack([one[1:], one[:-1]]))[0, 1].item() == pytest.approx(0, abs=0.03)
    assert draws(ids, 7).equal(one)


def test_a_draw_is_the_finaliser_of_splitmix64() -> None:
    def by_hand(value: int, key: int) -> float:
        z = (value ^ key) % 2**64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return (z ^ (z >> 31)) % 2**24 / 2**24

    ids = torch.tensor([0, 1, 2**62 + 12345, 2**63 - 1, 987654321])
    assert draws(ids, 2**61 + 99).tolist() == [by_hand(i, 2**61 + 99) for i in ids.tolist()]
