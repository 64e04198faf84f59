"""DeepSpeed's ZeRO-2 on two ranks trains as one process does, and leaves the same checkpoint."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer

from lit_safe.cli import main
from lit_safe.training.clipped_step import ClipsInItsStep
from lit_safe.training.shared_weights import check_strategy, share_weights
from models.pair import PolicyReference
from models.sharding.strategy import FullySharded
from models.sharding.zero import ZeroTwo
from models.sources import TinyLlama
from tests.lit_safe.pair_world import aligned, pairs, trainer
from tests.lit_safe.training.fits_of_ranks import check_same_checkpoint, left, run_script

HERE = Path(__file__).parent
CONFIGS = HERE.parents[2] / "configs"
KINDS = ["cached", "dual", "lora", "adamw"]


def slow(test: Any) -> Any:
    """Eleven fits in processes of their own, which the first test waits for."""
    return pytest.mark.slow(pytest.mark.timeout(900)(test))


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what every fit of ``sharded_two_ranks.py`` was left with."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install 'lit-safe[deepspeed]'")
    folder = tmp_path_factory.mktemp("zero")
    run_script("sharded_two_ranks.py", folder, "zero2", *KINDS, "killed adamw")
    return folder


@slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_end_where_one_process_does(ended: Path, kind: str) -> None:
    alone, first, second = (left(ended / kind / ranks, rank) for ranks, rank in (("1", 0), ("2", 0), ("2", 1)))
    assert torch.equal(first["weights"], second["weights"])
    # AdamW's first steps divide a gradient by its size, and so rounding errors of small ones too
    bound = 1e-4 if kind == "adamw" else 1e-6
    torch.testing.assert_close(first["weights"], alone["weights"], rtol=0, atol=bound)
    assert first["multiplier"] == second["multiplier"] == pytest.approx(alone["multiplier"], abs=1e-6)
    assert (alone["multiplier"] > 0.5) is (kind == "dual")
    assert first["seen"] == pytest.approx(alone["seen"], rel=1e-3 if kind == "adamw" else 1e-4, abs=1e-5, nan_ok=True)
    assert alone["seen"]["train/grad_norm"] > 0.05, "the step is clipped"


@slow
@pytest.mark.parametrize("kind", ["cached", "dual", "lora"])
def test_the_checkpoint_of_two_ranks_is_that_of_one_process(ended: Path, kind: str) -> None:
    check_same_checkpoint(ended / kind)


@slow
def test_a_killed_run_continues_on_two_ranks_to_the_bit_and_in_one_process_to_rounding(ended: Path) -> None:
    whole = left(ended / "adamw" / "2")
    resumed, on_one = left(ended / "resumed" / "2"), left(ended / "resumed" / "1")
    assert torch.equal(resumed["weights"], whole["weights"])
    torch.testing.assert_close(on_one["weights"], whole["weights"], rtol=0, atol=1e-4)


def test_the_shipped_yaml_names_a_strategy_that_is_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.chdir(tmp_path)
    words = ["-c", str(CONFIGS / "base.yaml"), "--data", str(CONFIGS / "data" / "trl.yaml")]
    words += ["-c", str(CONFIGS / "trainer" / "deepspeed_zero2.yaml")]
    cli = main([*words, "--trainer.accelerator", "cpu", "--trainer.devices", "2"], run=False)
    strategy = cli.trainer.strategy
    assert isinstance(strategy, ZeroTwo)
    assert isinstance(strategy, ClipsInItsStep)
    assert strategy.bucket == 50_000_000
    check_strategy(strategy)
    assert not isinstance(FullySharded(), ClipsInItsStep)


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="DeepSpeed is installed")
def test_without_deepspeed_one_line_names_the_extra_before_anything_is_loaded(tmp_path: Path) -> None:
    module = aligned()
    with pytest.raises(ModuleNotFoundError, match=r"ZeroTwo needs deepspeed: pip install 'lit-safe\[deepspeed\]'"):
        trainer(tmp_path, strategy=ZeroTwo(), max_epochs=1).fit(module, pairs())
    assert module.pair.policy is None


@pytest.mark.parametrize(("dtype", "precision"), [("bfloat16", "32-true"), ("float32", "64-true")])
def test_weights_of_another_type_than_fp32_are_refused_before_they_are_read(dtype: Any, precision: Any) -> None:
    pair = PolicyReference(TinyLlama(), trainable_dtype=dtype)
    run = Trainer(accelerator="cpu", devices=2, strategy=ZeroTwo(), precision=precision, logger=False)
    with pytest.raises(ValueError, match="ZeroTwo: weights train in fp32 alone: leave out trainable_dtype"):
        share_weights(pair, run)
    assert pair.policy is None
    share_weights(PolicyReference(TinyLlama()), SimpleNamespace(strategy=ZeroTwo()))


def test_an_optimizer_that_looks_at_whole_matrices_is_refused() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match="Muon may not treat each number alone"):
        ZeroTwo()._start(torch.optim.Muon([weight]))


def test_a_bucket_without_gradients_is_refused() -> None:
    with pytest.raises(ValueError, match="bucket must be >= 1, got 0"):
        ZeroTwo(bucket=0)
