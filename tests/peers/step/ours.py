"""lit_safe's side of the step benchmark."""

import gc
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch

from data.module import PreferenceData
from data.schema import Row
from data.sources.trl import TRL
from data.steps import ordered
from lit_safe.objectives import DPO, ConstrainedDPO
from lit_safe.training.module import PreferenceAlignment
from models.backbone import Backbone
from models.pair import PolicyReference
from models.sources import HuggingFace
from tests.peers.step.cases import SAFE, UNSAFE, Record
from tests.peers.step.count import Operations
from tests.peers.step.job import BETA, CLIP, LEARNING_RATE, Job, Run, Triple


class SafeChosen:
    """Equal rewards; the chosen response is safe and the rejected one is not."""

    constraints = ("harm",)

    def __repr__(self) -> str:
        return "SafeChosen()"

    def rewards(self, row: Row) -> tuple[float, float]:
        return 0.0, 0.0

    def costs(self, row: Row) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return (SAFE,), (UNSAFE,)


def load_data(
    records: list[Record], model: str, max_length: int, pairs_per_step: int, micro_batch_pairs: int | None = None
) -> PreferenceData:
    """The rows as lit_safe prepares them; those that cannot be used are left out on both sides."""
    data = PreferenceData(
        [TRL(records)],
        SafeChosen(),
        pairs_per_step=pairs_per_step,
        micro_batch_pairs=micro_batch_pairs,
        max_length=max_length,
        tokenizer=model,
        on_bad_row="skip",
    )
    data.setup()
    return data


def in_order(data: PreferenceData) -> list[Triple]:
    """Ids of the training pairs in the order of the first epoch."""
    loader, pairs = data.train_dataloader(), data.tokenised
    index = data.rows_of("train")[ordered(loader.row_ids, loader.seed, 0)]
    sides = pairs.prompt, pairs.chosen, pairs.rejected
    return [tuple(side.at(i).tolist() for side in sides) for i in map(int, index)]  # type: ignore[misc]


class Recorder(lightning.Callback):
    """Measures each step."""

    def __init__(self) -> None:
        self.run, self.counted = Run(), Operations()
        self._since, self._done = 0.0, 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: PreferenceAlignment) -> None:
        pair: Any = pl_module.pair
        policy, open_reference = pair._both()
        self.counted.watch(policy.causal_lm)
        with open_reference() as reference:
            self.counted.watch(reference.causal_lm)
        self._since, self._done = time.perf_counter(), self.counted.done

    def on_train_batch_start(self, *_: object) -> None:
        if not self.run.seconds:
            self.run.ahead, self.run.ahead_operations = self._turn()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        seconds, operations = self._turn()
        self.run.seconds.append(seconds)
        self.run.operations.append(operations)
        self.run.losses.append(float(trainer.callback_metrics["train/loss"]))

    def _turn(self) -> tuple[float, float]:
        """Seconds and operations since the last turn."""
        now, done = time.perf_counter(), self.counted.done
        found = now - self._since, done - self._done
        self._since, self._done = now, done
        return found


def train(job: Job) -> list[Run]:
    """A run for each multiplier. With ``precompute_reference`` they share the reference's scores, in a folder."""
    return [_train(job, multiplier) for multiplier in job.multipliers or (None,)]


def _train(job: Job, multiplier: float | None) -> Run:
    gc.collect()  # the run before is in reference cycles
    data = load_data(job.records, job.model, job.max_length, job.pairs_per_step, job.options.get("micro_batch_pairs"))
    pair = PolicyReference(HuggingFace(job.model, dtype="float32"), layout=job.options.get("layout", "auto"))
    ahead = job.options.get("precompute_reference", "auto")
    module = PreferenceAlignment(
        pair,
        DPO(beta=BETA) if multiplier is None else ConstrainedDPO(beta=BETA),
        partial(torch.optim.AdamW, lr=LEARNING_RATE, weight_decay=0.0),
        multiplier=multiplier or 0.0,
        gradient_clip_norm=CLIP,
        precompute_reference=ahead,
        reference_cache_dir=str(Path(job.folder) / "reference") if ahead is True and job.multipliers else None,
    )
    recorder = Recorder()
    with _counted(recorder.counted):
        lightning.Trainer(
            accelerator="cpu",
            default_root_dir=job.folder,
            max_epochs=-1,
            max_steps=job.steps,
            limit_val_batches=0,
            log_every_n_steps=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[recorder],
        ).fit(module, datamodule=data)
    return recorder.run


class _counted:  # a context, read as a verb
    """Counts what passes through a head."""

    def __init__(self, operations: Operations) -> None:
        self.operations, self._plain = operations, Backbone.at_head

    def __enter__(self) -> None:
        def at_head(backbone: Backbone, hidden_RD: torch.Tensor) -> Any:
            head = self._plain(backbone, hidden_RD)
            self.operations.head(head.hidden_TD, head.weight_VD.shape[0])
            return head

        Backbone.at_head = at_head  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        Backbone.at_head = self._plain  # type: ignore[method-assign]
