"""What every run has, whatever lists of callbacks and loggers a user's YAML holds."""

from pathlib import Path

import pytest
import torch
import yaml
from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger

from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.essentials import with_essentials
from lit_safe.runs.loggers.metrics_csv import MetricsCSV
from lit_safe.runs.prediction_file import PredictionFile
from lit_safe.runs.progress_bar import Progress
from lit_safe.runs.run_checkpoint import RunCheckpoint
from lit_safe.runs.run_folder import RunFolder
from lit_safe.runs.signals import StopOnSignal
from lit_safe.screen.announce import Announce
from tests.lit_safe.line_world import BATCHES, Line
from tests.lit_safe.typed_world import Run, typed

__all__ = ["typed"]  # a fixture

OURS = [RunFolder, Progress, Announce, PredictionFile, DualAscent, RunCheckpoint, StopOnSignal]


def names(config: dict, key: str = "callbacks") -> list[str]:
    return [type(one).__name__ for one in config[key]]


def test_a_users_lists_add_to_ours() -> None:
    configured = [DualAscent(), RunCheckpoint(), Progress()]
    user = EarlyStopping("eval/loss")
    made = with_essentials({"callbacks": [user], "logger": [CSVLogger("there")]}, configured)
    assert names(made) == [
        "RunFolder", "Progress", "Announce", "EarlyStopping", "PredictionFile", "DualAscent", "RunCheckpoint",
        "StopOnSignal",
    ]  # fmt: skip
    assert names(made, "logger") == ["TensorBoardRun", "MetricsCSV", "CSVLogger"]
    for value in (None, user):
        assert {type(one) for one in with_essentials({"callbacks": value}, configured)["callbacks"]} >= set(OURS)
    assert names(with_essentials({"logger": True}, []), "logger") == ["TensorBoardRun", "MetricsCSV"]


def test_one_of_the_same_class_takes_the_place_of_ours() -> None:
    class Mine(RunCheckpoint):
        pass

    mine, logger = Mine(every_n_steps=7), MetricsCSV()
    made = with_essentials({"callbacks": [mine], "logger": logger}, [RunCheckpoint(), Progress()])
    assert [one for one in made["callbacks"] if isinstance(one, RunCheckpoint)] == [mine]
    assert [one for one in made["logger"] if isinstance(one, MetricsCSV)] == [logger]
    bars = with_essentials({"callbacks": [TQDMProgressBar()]}, [Progress()])
    assert "Progress" not in names(bars)


def test_what_is_switched_off_stays_off_and_checkpoints_cannot_be() -> None:
    made = with_essentials({"enable_progress_bar": False, "callbacks": [Progress()], "logger": False}, [Progress()])
    assert "Progress" not in names(made)
    assert made["logger"] is False
    with pytest.raises(ValueError, match="a run needs its checkpoints"):
        with_essentials({"enable_checkpointing": False}, [])


def test_a_second_yaml_with_lists_of_its_own_leaves_a_whole_run(typed: Run) -> None:
    lists = {
        "callbacks": [{"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}],
        "logger": [{"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "elsewhere"}}],
        "enable_progress_bar": False,
    }
    Path("mine.yaml").write_text(yaml.safe_dump({"trainer": lists}), encoding="utf-8")
    typed("fit", "-c", "mine.yaml", "--checkpoint.every_n_steps", "1")
    run = Path("runs/x")
    assert {path.name for path in run.iterdir()} == {"checkpoints", "config.yaml", "metrics.csv", "tensorboard"}
    assert "lr-AdamW" in (run / "metrics.csv").read_text(encoding="utf-8").partition("\n")[0]
    assert list(Path("elsewhere").rglob("metrics.csv"))
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    assert "RunFolder" in state
    assert "ckpt_path" not in yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))


def test_what_lightnings_own_callbacks_and_profilers_write_lies_in_the_run_folder(typed: Run) -> None:
    lists = {
        "callbacks": [
            {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"monitor": "eval/loss"}},
            {"class_path": "lightning.pytorch.callbacks.DeviceStatsMonitor", "init_args": {"cpu_stats": True}},
        ],
        "profiler": {"class_path": "lightning.pytorch.profilers.SimpleProfiler", "init_args": {"filename": "times"}},
        "val_check_interval": 1,
        "max_steps": 2,
    }
    Path("mine.yaml").write_text(yaml.safe_dump({"trainer": lists}), encoding="utf-8")
    before = set(Path().iterdir())
    cli = typed("fit", "-c", "mine.yaml")
    assert set(Path().iterdir()) - before == {Path("runs")}
    assert list(Path("runs").iterdir()) == [Path("runs/x")]
    names = {path.name for path in Path("runs/x").iterdir()}
    assert "fit-times.txt" in names
    [best] = [callback for callback in cli.trainer.callbacks if isinstance(callback, ModelCheckpoint)]
    assert Path(best.best_model_path).parent.resolve() == Path("runs/x/checkpoints").resolve()
    assert "DeviceStatsMonitor.on_train_batch_start" in Path("runs/x/metrics.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize("where", [None, "runs/x/checkpoints"])
def test_a_checkpoint_callback_that_would_overwrite_ours_is_refused(
    where: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    theirs = ModelCheckpoint(dirpath=where, save_last=True)
    run = Trainer(
        default_root_dir="runs/x",
        callbacks=[RunFolder(), theirs],
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        max_epochs=1,
    )
    with pytest.raises(ValueError, match="leave save_last out"):
        run.fit(Line(), BATCHES, BATCHES)
