"""The comparison's left side: PreferenceData, PolicyReference and PreferenceAlignment under a Lightning Trainer."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from measured import BETA, CLIP, LEARNING_RATE, METRICS, STEPS, WEIGHT_DECAY, Ids, Measured, Snapshot, Triple

from data.annotators.flags import Flags
from data.module import PreferenceData
from data.sources.trl import TRL
from lit_safe.objectives import DPO
from lit_safe.training.module import PreferenceAlignment
from lit_safe.types import IGNORE, PackedBatch
from models.backbone import Layout
from models.pair import PolicyReference
from models.reference import Checkpoint
from models.sources import HuggingFace


def load_data(rows: Path, policy: Path, micro_batch_pairs: int) -> PreferenceData:
    """All train rows in one optimizer step, in micro-batches."""
    data = PreferenceData(
        [TRL(str(rows))], Flags(), pairs_per_step=10_000, micro_batch_pairs=micro_batch_pairs, tokenizer=str(policy)
    )
    data.setup()
    return data


def triples(data: PreferenceData) -> dict[str, Triple]:
    """Ids of the train rows by the text of the chosen response."""
    pairs, texts = data.tokenised, data.pairs("train")
    index = data.rows_of("train")
    assert len(texts) == len(index)
    return {
        text.row.chosen: tuple(tuple(side.at(i).tolist()) for side in (pairs.prompt, pairs.chosen, pairs.rejected))
        for text, i in zip(texts, map(int, index), strict=True)
    }


class Recorder(lightning.Callback):
    """Keeps metrics of every optimizer step, and log-probs before the first and the last."""

    def __init__(self) -> None:
        self.snapshots: dict[int, Snapshot] = {}
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: PreferenceAlignment, batch: list[PackedBatch], batch_idx: int
    ) -> None:
        if trainer.global_step in (0, STEPS):
            policy, reference = pl_module.pair.policy_logp, pl_module.pair.reference_logp
            self.snapshots[trainer.global_step] = Snapshot(_by_ids(batch, policy), _by_ids(batch, reference))

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        self.metrics.append({name: float(trainer.callback_metrics[f"train/{name}"]) for name in METRICS})


def train(data: PreferenceData, policy: Path, reference: Path, layout: Layout) -> Measured:
    """STEPS + 1 optimizer steps of DPO."""
    pair = PolicyReference(
        HuggingFace(str(policy), dtype="float32"),
        reference=Checkpoint(HuggingFace(str(reference), dtype="float32")),
        layout=layout,
    )
    optimizer = partial(torch.optim.AdamW, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    module = PreferenceAlignment(pair, DPO(beta=BETA), optimizer, gradient_clip_norm=CLIP)
    recorder = Recorder()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=-1,
        max_steps=STEPS + 1,
        limit_val_batches=0,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[recorder],
    )
    trainer.fit(module, datamodule=data)
    return Measured(recorder.snapshots, recorder.metrics)


@torch.no_grad()
def _by_ids(batches: list[PackedBatch], logp: Any) -> dict[tuple[Ids, Ids], float]:
    found: dict[tuple[Ids, Ids], float] = {}
    for batch in batches:
        packed = batch.sequences
        bounds = packed.cu_seqlens.tolist()
        for start, end, value in zip(bounds[:-1], bounds[1:], logp(packed).tolist(), strict=True):
            scored = int((packed.target[start:end] != IGNORE).sum())
            ids = tuple(packed.input_ids[start:end].tolist())
            found[ids[:-scored], ids[-scored:]] = value
    return found
