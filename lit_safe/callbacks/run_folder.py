"""One folder for each run: begun without ever overwriting an earlier one, continued exactly from its checkpoint."""

import logging
import os
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn

from lit_safe.loggers.run_logger import Position, RunLogger

log = logging.getLogger(__name__)

CONFIG = "config.yaml"
MARKS = ("checkpoints", "metrics.csv", "tensorboard", CONFIG)
"""What a run leaves in its folder. A folder with none of these is no earlier run, and stays where it is."""


class RunFolder(Callback):
    """Makes ``trainer.default_root_dir`` the folder of this run and hands it to the loggers.

    ``fit`` without a checkpoint, or with one from elsewhere, moves a folder of an earlier run aside (``runs/x`` to
    ``runs/x.1``) and begins a fresh one. ``fit`` from a checkpoint inside the folder continues it in place: what the
    loggers wrote after that checkpoint is cut off, so no step stands twice and none is missing. ``validate``, ``test``
    and ``predict`` write into a sub-folder of their name.
    """

    def __init__(self) -> None:
        self._loggers: list[RunLogger] = []
        self._restored: Position | None = None
        self._begun = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open the loggers of a command other than ``fit``; refuse a working directory as the folder of a run."""
        self._begun = False
        self._restored = None
        if stage != "fit":
            self._open(trainer, Path(trainer.default_root_dir) / TrainerFn(stage).value)
        elif Path.cwd().is_relative_to(Path(trainer.default_root_dir).resolve()):
            raise ValueError(
                f"trainer.default_root_dir is {trainer.default_root_dir!r}, which holds the working directory: a run "
                "needs a folder of its own, e.g. runs/first"
            )

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on without a callback that the checkpoint has a state of.

        Raises:
            ValueError: Naming them; Lightning itself only warns, and their state would be lost.
        """
        missing = sorted(set(checkpoint["callbacks"]) - {callback.state_key for callback in trainer.callbacks})  # type: ignore[attr-defined]
        if trainer.state.fn == "fit" and missing:
            raise ValueError(f"the checkpoint has the state of callbacks that this run lacks: {', '.join(missing)}")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember where the loggers were."""
        self._restored = state_dict["position"]

    def state_dict(self) -> dict[str, Any]:
        """Where the loggers are, with everything before it on disk: called whenever a checkpoint is saved."""
        return {"position": {name: n for logger in self._loggers for name, n in logger.position().items()}}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin or continue the folder."""
        # strategies that restore later (FSDP) do not know of the checkpoint yet
        if not trainer.strategy.restore_checkpoint_after_setup:
            self._begin(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin or continue the folder, where that had to wait."""
        if not self._begun:
            self._begin(trainer)

    def _begin(self, trainer: Trainer) -> None:
        self._begun = True
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # a trial that leaves nothing behind
            return
        folder = Path(trainer.default_root_dir)
        start = None if trainer.ckpt_path is None else Path(trainer.ckpt_path)
        resumed = start is not None and start.resolve().is_relative_to(folder.resolve())
        if resumed and self._restored is None:
            raise ValueError(f"{start} does not say where its metrics ended: RunFolder was not in callbacks")
        if trainer.is_global_zero and not resumed:
            move_aside(folder)
        self._open(trainer, folder)
        if resumed:
            assert self._restored is not None
            for logger in self._loggers:
                logger.cut_back(self._restored)
        trainer.strategy.barrier("run folder")

    def _open(self, trainer: Trainer, folder: Path) -> None:
        if not trainer.is_global_zero:
            return
        self._loggers = [logger for logger in trainer.loggers if isinstance(logger, RunLogger)]
        for logger in self._loggers:
            logger.open(folder)


class SaveConfig(SaveConfigCallback):
    """Writes the resolved configuration of a fit to ``<run folder>/config.yaml``.

    A run continued under another configuration keeps the earlier one as ``config.until-step-<n>.yaml``.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing: an earlier run may still be in the folder."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the configuration, on the first rank."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = Path(trainer.default_root_dir) / CONFIG
        text = self.parser.dump(self.config, skip_unset=False)
        if path.exists() and path.read_text(encoding="utf-8") != text:
            os.replace(path, path.with_name(f"config.until-step-{trainer.global_step}.yaml"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def move_aside(folder: Path) -> Path | None:
    """Rename ``folder`` to ``<folder>.<n>`` with the first free n >= 1 if it holds a run.

    Returns:
        Its new path, or None where there was no run.
    """
    if not any((folder / mark).exists() for mark in MARKS):
        return None
    n = 1
    while (aside := folder.with_name(f"{folder.name}.{n}")).exists():
        n += 1
    folder.rename(aside)
    log.info("%s holds an earlier run: moved to %s", folder, aside)
    return aside
