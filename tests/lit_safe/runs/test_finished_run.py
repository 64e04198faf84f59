"""The end of a run: a finished run that is resumed without further steps, and the exit status."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_safe.cli import SafeCLI
from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.objectives import ConstrainedDPO
from lit_safe.runs.loggers.metrics_csv import MetricsCSV
from lit_safe.runs.loggers.tensorboard import TensorBoardRun
from lit_safe.runs.run_checkpoint import RunCheckpoint
from lit_safe.runs.run_folder import RunFolder
from lit_safe.screen.announce import Announce
from tests.lit_safe.pair_world import aligned, pairs, trainer
from tests.lit_safe.screen.test_screen import entries, said


def test_a_finished_run_that_is_resumed_keeps_its_last_rows_and_says_again_what_came_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"

    def fit(checkpoint: Path | None = None) -> list[str]:
        logs: dict[str, Any] = {"logger": [MetricsCSV(), TensorBoardRun()], "log_every_n_steps": 2}
        callbacks = [RunFolder(), Announce(), RunCheckpoint()]
        run = trainer(folder, callbacks=callbacks, enable_checkpointing=True, max_steps=1, **logs)
        run.fit(aligned(ConstrainedDPO()), pairs(), ckpt_path=checkpoint, weights_only=True)
        header, *rows = (folder / "metrics.csv").read_text(encoding="utf-8").splitlines()
        return [dict(zip(header.split(","), row.split(","), strict=True))["train/loss"] for row in rows]

    rows = fit()
    caplog.set_level(logging.INFO)
    caplog.clear()
    assert fit(folder / "checkpoints" / "last.ckpt") == rows
    assert entries(said(caplog)[1])["multiplier"] == "λ stayed at 0.00"
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    assert len(events.Tensors("outcome/text_summary")) == 1


def test_only_the_first_rank_exits_with_an_error_after_training() -> None:
    """Lightning kills the first rank, which still writes, when a rank that it started exits with an error."""
    dual = DualAscent()
    dual.failed = "no estimate"
    first, other = (SimpleNamespace(callbacks=[dual], is_global_zero=zero) for zero in (True, False))
    with pytest.raises(SystemExit, match="1"):
        SafeCLI.after_fit(SimpleNamespace(trainer=first))  # type: ignore[arg-type]
    SafeCLI.after_fit(SimpleNamespace(trainer=other))  # type: ignore[arg-type]
