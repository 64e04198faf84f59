"""A model that two ranks hold together (FSDP2) trains as one process does, and leaves the same checkpoint."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy

from lit_safe.cli import main
from lit_safe.runs.checkpoints import load_checkpoint
from lit_safe.training.module import PreferenceAlignment
from lit_safe.training.shared_weights import check_strategy, share_weights
from models.sharding.strategy import FullySharded
from tests.lit_safe.training.fits_of_ranks import check_same_checkpoint, left, run_script

HERE = Path(__file__).parent
CONFIGS = HERE.parents[2] / "configs"
FITS = ["cached", "dual", "lora", "killed cached", "full cached"]


def slow(test: Any) -> Any:
    """Twelve fits in processes of their own, which the first test waits for."""
    return pytest.mark.slow(pytest.mark.timeout(900)(test))


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what every fit of ``sharded_two_ranks.py`` was left with."""
    folder = tmp_path_factory.mktemp("sharded")
    run_script("sharded_two_ranks.py", folder, "fsdp2", *FITS)
    return folder


@slow
@pytest.mark.parametrize("kind", ["cached", "dual", "lora"])
def test_two_ranks_that_share_a_model_end_where_one_process_does(ended: Path, kind: str) -> None:
    alone, first, second = (left(ended / kind / ranks, rank) for ranks, rank in (("1", 0), ("2", 0), ("2", 1)))
    assert torch.equal(first["weights"], second["weights"])
    torch.testing.assert_close(first["weights"], alone["weights"], rtol=0, atol=1e-6)
    assert first["multiplier"] == second["multiplier"] == pytest.approx(alone["multiplier"], abs=1e-6)
    assert (alone["multiplier"] > 0.5) is (kind == "dual")
    assert first["seen"] == pytest.approx(second["seen"], rel=0, abs=0, nan_ok=True)
    assert {"train/loss", "train/grad_norm", "eval/loss"} <= set(alone["seen"])
    assert first["seen"] == pytest.approx(alone["seen"], rel=1e-4, abs=1e-5, nan_ok=True)
    assert alone["seen"]["train/grad_norm"] > 0.05, "the step is clipped"
    assert max(first["held"], second["held"]) < 0.51 * alone["held"], "between steps a rank holds half of the weights"
    for name in ("weights", "gradients", "optimizer"):
        assert first["estimate"][name] == pytest.approx(alone["estimate"][name] / 2, abs=1)
    assert first["estimate"]["weights"] == pytest.approx(4 * first["held"], rel=0.01)
    assert first["estimate"]["activations"] == pytest.approx(alone["estimate"]["activations"], rel=0.1)


@slow
@pytest.mark.parametrize("kind", ["cached", "dual", "lora"])
def test_the_checkpoint_of_two_ranks_is_that_of_one_process(ended: Path, kind: str) -> None:
    check_same_checkpoint(ended / kind)


@slow
def test_a_killed_run_continues_on_two_ranks_to_the_bit_and_on_one_to_rounding(ended: Path) -> None:
    whole = left(ended / "cached" / "2")
    resumed, on_one = left(ended / "resumed" / "2"), left(ended / "resumed" / "1")
    assert torch.equal(resumed["weights"], whole["weights"])
    assert resumed["seen"] == pytest.approx(whole["seen"], rel=1e-6, nan_ok=True)
    torch.testing.assert_close(on_one["weights"], whole["weights"], rtol=0, atol=1e-6)
    assert not (ended / "killed" / "0.pt").exists()


@slow
def test_a_full_disk_ends_both_ranks_with_the_file_and_the_older_checkpoint_loads(ended: Path) -> None:
    first, second = ((ended / "full" / f"{rank}.txt").read_text(encoding="utf-8") for rank in (0, 1))
    said = "cannot write the checkpoint .*last.tmp: No space left on device"
    assert re.match(rf"CheckpointError: {said}$", first)
    assert re.match(rf"RuntimeError: .*{said} \(on rank 0\)$", second)
    assert [path.name for path in (ended / "full" / "checkpoints").iterdir()] == ["last.ckpt"]
    assert load_checkpoint(ended / "full" / "checkpoints" / "last.ckpt")["global_step"] == 3


def test_the_shipped_yaml_names_a_strategy_that_is_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.chdir(tmp_path)
    words = ["-c", str(CONFIGS / "base.yaml"), "--data", str(CONFIGS / "data" / "trl.yaml")]
    words += ["-c", str(CONFIGS / "trainer" / "fsdp2.yaml")]
    cli = main([*words, "--trainer.accelerator", "cpu", "--trainer.devices", "2"], run=False)
    assert isinstance(cli.trainer.strategy, FullySharded)
    assert cli.trainer.world_size == 2


def test_other_ways_to_shard_are_refused_with_the_one_that_is_supported() -> None:
    with pytest.raises(ValueError, match=r"FSDPStrategy: not supported: -c configs/trainer/fsdp2.yaml"):
        check_strategy(FSDPStrategy())
    check_strategy(FullySharded())


def test_a_pair_that_cannot_be_sharded_is_named() -> None:
    with pytest.raises(ValueError, match=r"a PreferenceAlignment cannot be sharded: use --trainer.strategy ddp"):
        share_weights(object.__new__(PreferenceAlignment), SimpleNamespace(strategy=SimpleNamespace(plan="any")))
