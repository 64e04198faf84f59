"""Small real fits that kill themselves: a process that imports once and forks for each of them.

Reads jobs from standard input, one JSON list of ``Job``'s fields a line, and answers each with the exit code of the
child that fitted (-9 where it killed itself) and how often it came by every place.
"""

import json
import os
import signal
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from data.micro_batches import MicroBatch, by_rows
from data.steps import EvalLoader, StepLoader, position
from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.hashing import hash64, uniforms
from lit_safe.objectives import ConstrainedDPO
from lit_safe.runs.checkpoints import CheckpointFiles
from lit_safe.runs.loggers.metrics_csv import MetricsCSV
from lit_safe.runs.loggers.tensorboard import TensorBoardRun
from lit_safe.runs.run_checkpoint import RunCheckpoint
from lit_safe.runs.run_folder import RunFolder
from lit_safe.runs.signals import StopOnSignal
from lit_safe.training.module import PreferenceAlignment
from lit_safe.training.schedules import Constant, Cosine
from lit_safe.types import Annotation, CostEstimate, PackedBatch, PackedSequences, Pair, SequenceLogp

PLACES = ("micro_batch", "step", "validation", "dual", "logging", "half a checkpoint", "whole checkpoint", "end")
ROWS, LENGTH, VOCABULARY = 26, 5, 11

VARIANTS: dict[str, dict[str, Any]] = {
    "validates within epochs": {"max_epochs": 3, "val_check_interval": 3, "every_n_steps": 3},
    "validates at epoch ends": {"max_epochs": 3, "every_n_steps": 1},
    "stops within an epoch": {"max_epochs": 3, "max_steps": 18, "val_check_interval": 2, "every_n_steps": 2},
    "ships the average": {"max_epochs": 3, "every_n_steps": None, "ship": "average", "log_every_n_steps": 3},
    "at a constant rate": {"max_epochs": 3, "every_n_steps": None, "schedule": Constant()},
    "ships an average at a constant rate": {
        **{"max_epochs": 3, "every_n_steps": None, "schedule": Constant(), "ship": "average"}
    },
}


class Places:
    """Counts what the run comes by, and kills it where it was told to."""

    signal = signal.SIGKILL

    def __init__(self, place: str | None, count: int, tally: Path) -> None:
        self.place, self.count, self.tally = place, count, tally
        self.seen: Counter[str] = Counter()

    def pass_by(self, place: str) -> None:
        self.seen[place] += 1
        if self.due(place, 0):
            self.write()
            os.kill(os.getpid(), self.signal)

    def due(self, place: str, ahead: int) -> bool:
        return place == self.place and self.seen[place] + ahead == self.count

    def write(self) -> None:
        self.tally.write_text(json.dumps(self.seen), encoding="utf-8")


class Bigram(nn.Module):
    """A language model of next-token scores alone, with dropout, beside its first state as the reference."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places
        self.score_VV = nn.Parameter(uniforms(VOCABULARY**2, "bigram").reshape(VOCABULARY, VOCABULARY).float())
        self.dropout = nn.Dropout(0.1)

    def load(self) -> None:
        pass

    def stop_at(self, ids: object) -> None:
        pass

    def policy_logp(self, sequences: PackedSequences) -> Tensor:
        if torch.is_grad_enabled():
            self.places.pass_by("micro_batch")
        return self._logp(self.dropout(self.score_VV), sequences)

    def reference_logp(self, sequences: PackedSequences) -> Tensor:
        with torch.no_grad():
            return self._logp(uniforms(VOCABULARY**2, "bigram").reshape(VOCABULARY, VOCABULARY).float(), sequences)

    def both_logp(self, sequences: PackedSequences) -> SequenceLogp:
        return SequenceLogp(self.policy_logp(sequences), self.reference_logp(sequences))

    @staticmethod
    def _logp(score_VV: Tensor, sequences: PackedSequences) -> Tensor:
        logp_TV = score_VV[sequences.input_ids].log_softmax(-1)
        logp_T = logp_TV.gather(-1, sequences.target[:, None]).squeeze(-1)
        return logp_T.reshape(-1, LENGTH).sum(-1)


class Pairs(LightningDataModule):
    """ROWS made-up pairs in steps of four, two micro-batches each; the last step of an epoch has two."""

    constraints = ("cost",)
    stop_ids = frozenset[int]()

    def require(self, needs: object) -> None:
        pass

    def train_dataloader(self) -> StepLoader[PackedBatch]:
        trainer = self.trainer
        assert trainer is not None
        return StepLoader(np.arange(ROWS), pack, 4, by_rows(2), seed=0, start=lambda steps: position(trainer, steps))

    def val_dataloader(self) -> EvalLoader[PackedBatch]:
        return EvalLoader(np.arange(6), pack, 2)


def pack(micro: MicroBatch, step: Any) -> PackedBatch:
    tokens = torch.cat([(uniforms(2 * (LENGTH + 1), "pair", int(i)) * VOCABULARY).long() for i in micro.rows])
    tokens_NT = tokens.reshape(-1, LENGTH + 1)
    size = len(micro.rows)
    label_B4 = torch.stack([uniforms(4, "label", int(i)).float() * 2 - 1 for i in micro.rows])
    index_B = torch.from_numpy(np.asarray(micro.rows))
    return PackedBatch(
        PackedSequences(
            tokens_NT[:, :-1].flatten(),
            tokens_NT[:, 1:].flatten(),
            torch.arange(LENGTH).repeat(2 * size),
            torch.arange(0, 2 * size * LENGTH + 1, LENGTH, dtype=torch.int32),
        ),
        Annotation(Pair(label_B4[:, 0], label_B4[:, 1]), Pair(label_B4[:, 2], label_B4[:, 3])),
        index_B,
        index_B,
        Pair(torch.full((size,), LENGTH), torch.full((size,), LENGTH)),
        torch.ones(size, dtype=torch.bool),
        torch.tensor(len(step)),
    )


def cost_of_policy(module: LightningModule, data: object, *, seed: int, epoch: int) -> CostEstimate:
    """A made-up cost that depends on the weights and on a draw."""
    score = next(module.parameters()).detach()
    mean = score.diagonal().double().mean() + uniforms(1, seed, epoch)[0]
    return CostEstimate(mean, torch.tensor(0.1), 8, torch.tensor(0.5), 8.0)


class PassBy(Callback):
    def __init__(self, places: Places) -> None:
        self.places = places

    def on_train_batch_end(self, *args: Any) -> None:
        self.places.pass_by("step")

    def on_validation_batch_start(self, *args: Any) -> None:
        self.places.pass_by("validation")

    def on_train_epoch_end(self, *args: Any) -> None:
        self.places.pass_by("dual")

    def on_train_end(self, *args: Any) -> None:
        self.places.pass_by("end")


class PassByLogger(Logger):
    """Stands between the real loggers: one of them has the row, the other has not."""

    name, version = "", ""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        self.places.pass_by("logging")

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


class PassByCheckpoint(CheckpointFiles):
    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        super().save_checkpoint(checkpoint, path, storage_options)
        if self.places.due("half a checkpoint", 1):
            os.truncate(path, os.path.getsize(path) // 2)
        self.places.pass_by("half a checkpoint")
        self.places.pass_by("whole checkpoint")


class Job(NamedTuple):
    """A fit of ``variant`` in ``folder``, from its last checkpoint if it has one, to the death it may meet."""

    path: str
    variant: str
    place: str | None = None
    count: int = 0
    max_epochs: int | None = None

    @property
    def folder(self) -> Path:
        return Path(self.path)


def fit(job: Job) -> None:
    """One fit, to its end or to its death."""
    options = dict(VARIANTS[job.variant])
    if job.max_epochs is not None:
        options["max_epochs"] = job.max_epochs
    every_n_steps, ship = options.pop("every_n_steps"), options.pop("ship", "last")
    schedule = options.pop("schedule", Cosine(final=0.1))
    places = Places(job.place, job.count, job.folder.with_suffix(".tally"))
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=job.path,
        logger=[MetricsCSV(), PassByLogger(places), TensorBoardRun()],
        callbacks=[
            RunFolder(),
            DualAscent(limit=0.2, lr=0.5, estimator=cost_of_policy, ship=ship),
            PassBy(places),
            RunCheckpoint(every_n_steps),
            StopOnSignal(),
        ],
        plugins=[PassByCheckpoint(places)],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
        **{"log_every_n_steps": 1, **options},
    )
    module = PreferenceAlignment(
        Bigram(places),
        ConstrainedDPO(),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.05),
        schedule=schedule,
    )
    last = job.folder / "checkpoints" / "last.ckpt"
    torch.manual_seed(hash64("whatever the process drew before", os.getpid()))
    trainer.fit(module, Pairs(), ckpt_path=str(last) if last.exists() else None)
    places.write()


def run(job: Job) -> int:
    """The exit code of a child that fits: 0, or minus the signal that killed it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.dup2(2, 1)  # standard output is for answers
    code = 1
    try:
        fit(job)
        code = 0
    finally:
        if code:
            traceback.print_exc()
        os._exit(code)


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = Job(*json.loads(line))
        tally = job.folder.with_suffix(".tally")
        tally.unlink(missing_ok=True)
        code = run(job)
        print(json.dumps([code, json.loads(tally.read_text(encoding="utf-8")) if tally.exists() else {}]), flush=True)


if __name__ == "__main__":
    main()
