from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lit_safe.runs.loggers.metrics_csv import MetricsCSV
from lit_safe.runs.loggers.tensorboard import TensorBoardRun
from lit_safe.runs.move_aside import move_aside
from lit_safe.runs.run_checkpoint import RunCheckpoint
from lit_safe.runs.run_folder import RunFolder, SaveConfig
from tests.lit_safe.line_world import BATCHES, Line


class Counter(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"count": 1}


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=[MetricsCSV(), TensorBoardRun()],
        callbacks=[RunFolder(), *callbacks, RunCheckpoint(every_n_steps=1)],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **{"max_epochs": 1, "limit_val_batches": 0, **options},
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_lies_in_the_folder_itself(tmp_path: Path) -> None:
    trainer(tmp_path / "run").fit(Line(), BATCHES, BATCHES)
    checkpoint, metrics, events = contents(tmp_path / "run")
    assert (checkpoint, metrics) == ("checkpoints/last.ckpt", "metrics.csv")
    assert events.startswith("tensorboard/events.out.tfevents.")


def test_a_rerun_moves_the_earlier_runs_aside_whole(tmp_path: Path) -> None:
    runs = []
    for count in range(3):
        trainer(tmp_path / "run").fit(Line(), BATCHES, BATCHES)
        runs.append(contents(tmp_path / "run"))
        assert len(list(tmp_path.iterdir())) == count + 1
    assert [contents(tmp_path / name) for name in ("run.1", "run.2", "run")] == runs


def test_a_folder_that_holds_no_run_stays_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    assert move_aside(tmp_path) is None
    assert move_aside(tmp_path / "absent") is None
    trainer(tmp_path).fit(Line(), BATCHES, BATCHES)
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert (tmp_path / "metrics.csv").exists()


def test_the_working_directory_is_refused_before_anything_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "metrics.csv").touch()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ValueError, match="default_root_dir"):
        trainer(tmp_path).fit(Line(), BATCHES, BATCHES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "metrics.csv"]


def test_a_checkpoint_from_elsewhere_begins_a_fresh_folder_and_leaves_its_own_alone(tmp_path: Path) -> None:
    trainer(tmp_path / "first").fit(Line(), BATCHES, BATCHES)
    trainer(tmp_path / "second").fit(Line(), BATCHES, BATCHES)
    first = contents(tmp_path / "first")
    checkpoint = tmp_path / "first" / "checkpoints" / "last.ckpt"
    trainer(tmp_path / "second", max_epochs=2).fit(Line(), BATCHES, BATCHES, ckpt_path=checkpoint)
    assert contents(tmp_path / "first") == first
    assert (tmp_path / "second.1").exists()
    steps = [
        row.split(",")[0] for row in (tmp_path / "second" / "metrics.csv").read_text(encoding="utf-8").splitlines()
    ]
    assert steps == ["step", "2", "3"]


def test_a_run_continued_without_a_callback_that_has_state_stops_and_names_it(tmp_path: Path) -> None:
    trainer(tmp_path / "run", Counter()).fit(Line(), BATCHES, BATCHES)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with pytest.warns(UserWarning, match="callbacks"), pytest.raises(ValueError, match="does not have: Counter"):
        trainer(tmp_path / "run", max_epochs=2).fit(Line(), BATCHES, BATCHES, ckpt_path=checkpoint)


def test_a_checkpoint_that_does_not_know_where_its_metrics_ended_cannot_be_continued_in_place(tmp_path: Path) -> None:
    bare = Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path / "run",
        logger=False,
        callbacks=[RunCheckpoint()],
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
    )
    bare.fit(Line(), BATCHES, BATCHES)
    with pytest.raises(ValueError, match="does not say where its metrics ended"):
        trainer(tmp_path / "run").fit(
            Line(), BATCHES, BATCHES, ckpt_path=tmp_path / "run" / "checkpoints" / "last.ckpt"
        )


def test_validating_a_run_leaves_its_files_alone(tmp_path: Path) -> None:
    trainer(tmp_path / "run").fit(Line(), BATCHES, BATCHES)
    before = contents(tmp_path / "run")
    trainer(tmp_path / "run", limit_val_batches=1).validate(Line(), BATCHES, verbose=False)
    after = contents(tmp_path / "run")
    assert {name: after[name] for name in before} == before
    assert "validate/metrics.csv" in after


def test_a_trial_run_leaves_nothing_behind(tmp_path: Path) -> None:
    trainer(tmp_path / "run", fast_dev_run=True).fit(Line(), BATCHES, BATCHES)
    assert contents(tmp_path) == {}


def test_a_checkpoint_that_would_run_code_when_loaded_is_refused_and_the_last_one_kept(tmp_path: Path) -> None:
    trainer(tmp_path / "run").fit(Line(), BATCHES, BATCHES)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    module = Line()
    module.hparams["model"] = Counter()
    with pytest.raises(TypeError, match="tensors and plain values"):
        trainer(tmp_path / "run", max_epochs=2).fit(module, BATCHES, BATCHES, ckpt_path=last)
    assert last.read_bytes() == before


def test_every_epoch_is_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", max_epochs=3)
    run.checkpoint_callback.keep_epochs = True
    run.fit(Line(), BATCHES, BATCHES)
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [
        "epoch-0.ckpt",
        "epoch-1.ckpt",
        "epoch-2.ckpt",
        "last.ckpt",
    ]
    steps = [torch.load(path, weights_only=True)["global_step"] for path in sorted(folder.iterdir())]
    assert steps == [2, 4, 6, 6]


def test_the_configuration_of_a_continued_run_is_kept_beside_the_new_one(tmp_path: Path) -> None:
    parser = ArgumentParser()
    parser.add_argument("--lr", type=float)
    folder = tmp_path / "run"
    for epochs, lr in ((1, "0.5"), (2, "0.5"), (3, "0.25")):
        last = folder / "checkpoints" / "last.ckpt"
        run = trainer(folder, SaveConfig(parser, parser.parse_args(["--lr", lr])), max_epochs=epochs)
        run.fit(Line(), BATCHES, BATCHES, ckpt_path=last if last.exists() else None)
    configs = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("config*")}
    assert configs == {"config.until-step-4.yaml": "lr: 0.5\n", "config.yaml": "lr: 0.25\n"}


def test_only_another_configuration_is_kept_beside_the_new_one(tmp_path: Path) -> None:
    parser = ArgumentParser()
    for name in ("--lr", "--ckpt_path", "--weights_only"):
        parser.add_argument(name)
    folder = tmp_path / "run"
    last = folder / "checkpoints" / "last.ckpt"
    for epochs, words in ((1, []), (2, ["--ckpt_path", "a.ckpt", "--weights_only", "x"])):
        run = trainer(folder, SaveConfig(parser, parser.parse_args(["--lr", "0.5", *words])), max_epochs=epochs)
        run.fit(Line(), BATCHES, BATCHES, ckpt_path=last if last.exists() else None)
    assert [path.name for path in folder.glob("config*")] == ["config.yaml"]
    assert (folder / "config.yaml").read_text(encoding="utf-8") == "lr: '0.5'\n"


def test_what_a_killed_run_left_half_written_is_removed_at_the_next_start(tmp_path: Path) -> None:
    trainer(tmp_path / "run").fit(Line(), BATCHES, BATCHES)
    left = [tmp_path / "run" / "metrics.csv.tmp", tmp_path / "run" / "checkpoints" / "last.tmp"]
    for path in left:
        path.touch()
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    trainer(tmp_path / "run", max_epochs=2).fit(Line(), BATCHES, BATCHES, ckpt_path=last)
    assert not any(path.exists() for path in left)
    for path in left:
        path.touch()
    trainer(tmp_path / "run").fit(Line(), BATCHES, BATCHES)  # moves it aside
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_lightnings_own_loggers_in_the_run_folder_follow_the_run(kind: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for _ in range(2):
        run = trainer(folder)
        run.loggers = [*run.loggers, kind(save_dir=folder)]
        run.fit(Line(), BATCHES, BATCHES)
    for place in (tmp_path / "run.1" / "lightning_logs", folder / "lightning_logs"):
        assert [path for path in place.glob("version_*/[me]*") if b"loss" in path.read_bytes()]


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")  # the case under test
def test_steps_are_saved_though_the_validation_that_is_due_has_no_batches(tmp_path: Path) -> None:
    class Fails(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Line, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        trainer(tmp_path / "run", Fails(), limit_val_batches=1.0, val_check_interval=1).fit(Line(), BATCHES, [])
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 1
