"""The comparison's right side: TRL's DPOTrainer on the same rows, weights and hyperparameters."""

from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from measured import BETA, CLIP, LEARNING_RATE, METRICS, STEPS, WEIGHT_DECAY, Ids, Measured, Snapshot, Triple
from rows import Record
from trl import DPOConfig, DPOTrainer


class Recorder(transformers.TrainerCallback):
    """Keeps metrics of every optimizer step, and log-probs before the first and the last."""

    trainer: DPOTrainer

    def __init__(self) -> None:
        self.snapshots: dict[int, Snapshot] = {}
        self.metrics: list[dict[str, float]] = []

    def on_step_begin(self, args: Any, state: transformers.TrainerState, control: Any, **_: Any) -> None:
        if state.global_step in (0, STEPS):
            self.snapshots[state.global_step] = snapshot(self.trainer, prepared(self.trainer))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "grad_norm" in logs:  # and not the summary at the end
            self.metrics.append({name: logs[name] for name in METRICS})


def build(records: list[Record], policy: Path, reference: Path, folder: Path) -> tuple[DPOTrainer, Recorder]:
    """A trainer in which one step holds all ``records``; TRL tokenises them here."""
    args = DPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
        beta=BETA,
        per_device_train_batch_size=len(records),
        max_steps=STEPS + 1,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=CLIP,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    recorder = Recorder()
    trainer = DPOTrainer(
        _load(policy),
        ref_model=_load(reference),
        args=args,
        train_dataset=datasets.Dataset.from_list(records),
        processing_class=transformers.AutoTokenizer.from_pretrained(policy),
        callbacks=[recorder],
    )
    recorder.trainer = trainer
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer, recorder


def prepared(trainer: DPOTrainer) -> list[Triple]:
    """Ids as the trainer's dataset holds them."""
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [tuple(tuple(row[column]) for column in columns) for row in trainer.train_dataset]


def train(trainer: DPOTrainer, recorder: Recorder, ids: list[Triple]) -> Measured:
    """STEPS + 1 optimizer steps on ``ids`` in place of the trainer's own."""
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    trainer.train_dataset = datasets.Dataset.from_list([dict(zip(columns, row, strict=True)) for row in ids])
    trainer.train()
    return Measured(recorder.snapshots, recorder.metrics)


def snapshot(trainer: DPOTrainer, ids: list[Triple]) -> Snapshot:
    """Log-probs by the method in which TRL scores a reference; it takes the policy as well."""
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    batch = trainer.data_collator([{name: list(x) for name, x in zip(columns, row, strict=True)} for row in ids])
    return Snapshot(*(_by_ids(trainer, model, batch, ids) for model in (trainer.model, trainer.ref_model)))


def _by_ids(trainer: DPOTrainer, model: Any, batch: Any, ids: list[Triple]) -> dict[tuple[Ids, Ids], float]:
    chosen, rejected = trainer.compute_ref_log_probs(model, batch)
    sides = zip(ids, chosen.tolist(), rejected.tolist(), strict=True)
    return {(row[0], row[1 + i]): value for row, *values in sides for i, value in enumerate(values)}


def _load(folder: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
