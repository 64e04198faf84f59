"""When the reference is scored ahead, which pairs are, what is kept, and what a stored score depends on."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_safe.objectives import DPO, ConstrainedDPO
from models.pair import PolicyReference
from models.sources import TinyLlama
from tests.lit_safe.pair_world import aligned, pairs, trainer, weights
from tests.lit_safe.training.test_reference_cache import Counting

SIZES = {"pairs_per_step": 5, "micro_batch_pairs": 2, "eval_batch_pairs": 3}


def scored(folder: Path, data: Any = None, pair: Any = None, run: Any = None, **options: Any) -> int:
    """Sequences that a fit of two epochs scores with its reference."""
    model = pair or Counting(TinyLlama())
    before = model.scored
    trainer(folder, **{"max_epochs": 2, **(run or {})}).fit(aligned(pair=model, **options), data or pairs(**SIZES))
    return model.scored - before


def test_a_run_that_uses_its_pairs_twice_scores_them_once_and_one_that_does_not_scores_them_at_its_steps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert scored(tmp_path / "twice") == 2 * 26
    assert len(list((tmp_path / "twice" / "reference").glob("*.npz"))) == 1
    with caplog.at_level(logging.INFO):
        assert scored(tmp_path / "once", run={"max_epochs": 1}) == 2 * 26
    assert caplog.text.count("this run uses each pair once") == 1
    assert not (tmp_path / "once" / "reference").exists()
    assert scored(tmp_path / "never", precompute_reference=False) == 2 * 2 * 26


def test_only_the_pairs_that_train_are_scored(tmp_path: Path) -> None:
    short = {"max_epochs": 2, "limit_train_batches": 1}
    assert scored(tmp_path / "a", run=short, precompute_reference=True) in range(2 * 5, 2 * 10 + 1)
    assert scored(tmp_path / "b", run={"max_steps": 2, "max_epochs": -1}, precompute_reference=True) == 2 * 10


def test_every_pair_of_a_limited_run_is_known(tmp_path: Path) -> None:
    """Steps of several epochs are of different pairs: none may be missing."""
    run = trainer(tmp_path, max_epochs=4, limit_train_batches=2)
    run.fit(aligned(precompute_reference=True), pairs(**SIZES))
    assert run.global_step == 8


def test_a_run_that_was_killed_while_scoring_loses_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_safe.training.reference_cache.UNSAVED", 12)

    class Killed(Counting):
        def reference_logp(self, sequences: Any) -> torch.Tensor:
            if self.scored >= 30:
                raise KeyboardInterrupt
            return super().reference_logp(sequences)

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        scored(tmp_path, pair=Killed(TinyLlama()))
    assert scored(tmp_path) <= 2 * 26 - 24


def test_what_does_not_change_a_log_prob_finds_it_stored(tmp_path: Path) -> None:
    kept = {"reference_cache_dir": str(tmp_path / "kept")}
    assert scored(tmp_path / "first", **kept) == 2 * 26
    others: dict[str, dict[str, Any]] = {
        "beta": {"objective": DPO(beta=0.7)},
        "objective and multiplier": {"objective": ConstrainedDPO(), "multiplier": 3.0},
        "learning rate": {"lr": 0.1},
        "clipping": {"gradient_clip_norm": None},
        "one epoch": {"run": {"max_epochs": 1}},
        "steps": {"data": pairs(pairs_per_step=3, micro_batch_pairs=None, micro_batch_tokens=99)},
        "order of rows": {"data": pairs(seed=7)},
        "layout": {"pair": Counting(TinyLlama(), layout="packed")},
    }
    for name, changed in others.items():
        assert scored(tmp_path / name, **kept, **changed) == 0, name


def test_whatever_defines_a_log_prob_misses(tmp_path: Path) -> None:
    kept = {"reference_cache_dir": str(tmp_path / "kept")}
    assert scored(tmp_path / "first", **kept) == 2 * 26
    others: dict[str, dict[str, Any]] = {
        "weights": {"pair": Counting(TinyLlama(seed=1))},
        "template": {"data": pairs(template="human_assistant")},
        "truncation": {"data": pairs(max_length=24)},
        "another template": {"data": pairs(template="safe_rlhf")},
        "type of products": {"run": {"precision": "bf16-mixed"}},
        "type of weights": {"run": {"precision": "64-true"}},
    }
    for name, changed in others.items():
        assert scored(tmp_path / name, **kept, **changed) > 40, name


def test_a_run_without_a_folder_of_its_own_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert scored(tmp_path) == 2 * 26
    assert not (tmp_path / "reference").exists()


def test_training_ends_alike_with_the_default_and_with_scores_at_every_step(tmp_path: Path) -> None:
    ends = []
    for setting in ("auto", False):
        module = aligned(pair=PolicyReference(TinyLlama()), precompute_reference=setting)
        trainer(tmp_path / str(setting), max_epochs=2).fit(module, pairs(**SIZES))
        ends.append(weights(module))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=2e-5)
