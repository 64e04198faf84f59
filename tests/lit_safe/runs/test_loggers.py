import csv
import os
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_safe.runs.loggers.metrics_csv import MetricsCSV
from lit_safe.runs.loggers.run_logger import RunLogger
from lit_safe.runs.loggers.tensorboard import TensorBoardRun


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "time"} for row in csv.DictReader(file)]


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return sorted((event.step, event.value) for event in events.Scalars(tag))


@pytest.fixture
def metrics(tmp_path: Path) -> MetricsCSV:
    logger = MetricsCSV()
    logger.open(tmp_path)
    return logger


def test_both_loggers_are_what_a_run_folder_asks_for() -> None:
    assert isinstance(MetricsCSV(), RunLogger)
    assert isinstance(TensorBoardRun(), RunLogger)


def test_a_row_is_on_disk_as_soon_as_it_is_logged_with_step_first(metrics: MetricsCSV, tmp_path: Path) -> None:
    metrics.log_metrics({"loss": torch.tensor(0.5), "rows": 4}, step=1)
    assert (tmp_path / "metrics.csv").read_text(encoding="utf-8").startswith("step,time,loss,rows\n1,")
    assert table(tmp_path) == [{"step": "1", "loss": "0.5", "rows": "4"}]


def test_a_number_reads_back_to_the_bit(metrics: MetricsCSV, tmp_path: Path) -> None:
    metrics.log_metrics({"third": 1 / 3, "none": float("nan")}, step=0)
    [row] = table(tmp_path)
    assert float(row["third"]) == 1 / 3
    assert row["none"] == "nan"


def test_a_new_metric_extends_the_header_and_leaves_earlier_rows_empty_there(
    metrics: MetricsCSV, tmp_path: Path
) -> None:
    metrics.log_metrics({"loss": 1.0}, step=1)
    metrics.log_metrics({"eval, loss": 2.0}, step=1)
    assert table(tmp_path) == [
        {"step": "1", "loss": "1.0", "eval, loss": ""},
        {"step": "1", "loss": "", "eval, loss": "2.0"},
    ]


def test_cut_back_and_repeated_the_file_is_that_of_an_uninterrupted_run(metrics: MetricsCSV, tmp_path: Path) -> None:
    calls = [({"loss": 1.0}, 1), ({"loss": 0.5}, 2), ({"eval/loss": 3.0}, 2), ({"loss": 0.25, "new": 1.0}, 3)]
    positions = []
    for values, step in calls:
        positions.append(metrics.position())
        metrics.log_metrics(values, step=step)
    whole = table(tmp_path)
    for count, position in enumerate(positions):
        resumed = MetricsCSV()
        resumed.open(tmp_path)
        resumed.cut_back(position)
        assert [row["step"] for row in table(tmp_path)] == [str(step) for _, step in calls[:count]]
        for values, step in calls[count:]:
            resumed.log_metrics(values, step=step)
        assert table(tmp_path) == whole


def test_half_a_row_left_by_a_kill_is_dropped(metrics: MetricsCSV, tmp_path: Path) -> None:
    metrics.log_metrics({"loss": 1.0}, step=1)
    with (tmp_path / "metrics.csv").open("a", encoding="utf-8") as file:
        file.write("2,17000")
    resumed = MetricsCSV()
    resumed.open(tmp_path)
    resumed.log_metrics({"loss": 2.0}, step=2)
    assert table(tmp_path) == [{"step": "1", "loss": "1.0"}, {"step": "2", "loss": "2.0"}]


def test_a_file_shorter_than_the_checkpoint_says_is_an_error(metrics: MetricsCSV) -> None:
    metrics.log_metrics({"loss": 1.0}, step=1)
    with pytest.raises(ValueError, match="has 1 rows, the checkpoint was saved after 2"):
        metrics.cut_back({"metrics.csv": 2})


def test_a_logger_without_a_folder_says_who_gives_it_one() -> None:
    with pytest.raises(RuntimeError, match="RunFolder"):
        MetricsCSV().log_metrics({"loss": 1.0}, step=1)
    with pytest.raises(AttributeError, match="RunFolder"):
        _ = TensorBoardRun().experiment


def test_event_files_lie_in_the_run_folder_itself_and_nothing_is_written_before_a_record(tmp_path: Path) -> None:
    logger = TensorBoardRun()
    logger.open(tmp_path)
    assert list(tmp_path.iterdir()) == []
    logger.log_hyperparams({"lr": 1.0})
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.finalize("success")
    [file] = (tmp_path / "tensorboard").iterdir()
    assert file.name.startswith("events.out.tfevents.")
    assert curve(tmp_path, "loss") == [(1, 1.0)]


def test_no_curve_has_a_step_twice_or_misses_one_after_two_resumes(tmp_path: Path) -> None:
    position: dict[str, int] = {}
    for first, saved, last in ((1, 3, 5), (4, 4, 6), (5, 7, 7)):  # steps: resumed at, in the checkpoint, reached
        logger = TensorBoardRun()
        logger.open(tmp_path)
        logger.cut_back(position)
        for step in range(first, last + 1):
            logger.log_metrics({"loss": 1 / step}, step=step)
            if step == saved:
                position = logger.position()
        logger.finalize("failed")
    assert curve(tmp_path, "loss") == [(step, pytest.approx(1 / step)) for step in range(1, 8)]


def test_an_event_file_that_lost_records_is_an_error(tmp_path: Path) -> None:
    logger = TensorBoardRun()
    logger.open(tmp_path)
    logger.log_metrics({"loss": 1.0}, step=1)
    position = {name: size + 1 for name, size in logger.position().items()}
    logger.finalize("failed")
    with pytest.raises(ValueError, match="missing or shorter"):
        logger.cut_back(position)


@pytest.mark.parametrize("name", ["tensorboard/../../victim.txt", "tensorboard/../metrics.csv", "tensorboard/link"])
def test_a_checkpoint_cannot_reach_files_outside_the_folder_of_event_files(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("precious", encoding="utf-8")
    run = tmp_path / "run"
    (run / "tensorboard").mkdir(parents=True)
    (run / "metrics.csv").write_text("precious", encoding="utf-8")
    (run / "tensorboard" / "link").symlink_to(victim)
    logger = TensorBoardRun()
    logger.open(run)
    with pytest.raises(ValueError, match="outside"):
        logger.cut_back({name: 0})
    assert victim.read_text(encoding="utf-8") == (run / "metrics.csv").read_text(encoding="utf-8") == "precious"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_named_by_the_file_that_did_not_fit(metrics: MetricsCSV, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as raised:
        metrics.log_metrics({}, step=1)
    assert raised.value.filename == str(tmp_path / "metrics.csv")


def test_event_files_that_cannot_be_written_are_an_error_of_the_disk_with_their_folder(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").touch()
    logger = TensorBoardRun()
    logger.open(tmp_path)
    with pytest.raises(OSError, match="tensorboard"):
        logger.log_metrics({"loss": 1.0}, step=1)


def test_a_byte_that_is_not_text_is_named_by_file_and_line(metrics: MetricsCSV, tmp_path: Path) -> None:
    metrics.log_metrics({"loss": 1.0}, step=1)
    path = tmp_path / "metrics.csv"
    path.write_bytes(path.read_bytes() + b"2,\xff\n3,4\n")
    with pytest.raises(ValueError, match=r"metrics.csv, line 3, has a byte .*new folder with --trainer.default_root"):
        MetricsCSV().open(tmp_path)


def test_rows_that_are_missing_come_with_a_way_to_go_on(metrics: MetricsCSV, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"new folder with --trainer\.default_root_dir"):
        metrics.cut_back({"metrics.csv": 2})
    logger = TensorBoardRun()
    logger.open(tmp_path)
    with pytest.raises(ValueError, match=r"new folder with --trainer\.default_root_dir"):
        logger.cut_back({"tensorboard/events.out.tfevents.1": 2})


def test_what_a_position_counts_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(number: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{number}")).name)
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    loggers = (MetricsCSV(), TensorBoardRun())
    for logger in loggers:
        logger.open(tmp_path)
        logger.log_metrics({"loss": 1.0}, step=1)
        logger.position()
    [events] = (tmp_path / "tensorboard").iterdir()
    assert synced == ["metrics.csv", tmp_path.name, events.name, "tensorboard"]
    loggers[1].position()
    assert len(synced) == 4  # an event file that has not grown is on disk already


def test_two_processes_of_one_number_and_second_write_two_event_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.0)
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer._global_uid.get", lambda: 0)
    for step in (1, 2):
        logger = TensorBoardRun()
        logger.open(tmp_path)
        logger.log_metrics({"loss": float(step)}, step=step)
        logger.finalize("success")
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert curve(tmp_path, "loss") == [(1, 1.0), (2, 2.0)]


def test_a_clock_that_was_set_back_leaves_the_points_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step, now in ((1, 1_700_000_100.0), (2, 1_700_000_000.0), (3, 1_600_000_000.0)):
        monkeypatch.setattr("time.time", lambda now=now: now)
        logger = TensorBoardRun()
        logger.open(tmp_path)
        logger.log_metrics({"loss": float(step)}, step=step)
        assert len(logger.position()) == step
        logger.finalize("success")
    monkeypatch.undo()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 3
