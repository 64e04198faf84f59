"""TRL's side of the step benchmark: DPOTrainer on the same ids in the same order."""

import gc
import time
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl.trainer.utils
from trl import DPOConfig, DPOTrainer

from tests.peers.step.cases import ROBUST, weights
from tests.peers.step.count import Operations
from tests.peers.step.job import BETA, CLIP, LEARNING_RATE, Job, Run

COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


class InOrder(DPOTrainer):
    """Trains on rows that are tokenised already, in their order, and times the scoring of the reference."""

    ahead = ahead_operations = 0.0
    counted: Operations

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def _precompute_ref_logps(self, *arguments: Any, **keywords: Any) -> Any:
        started, done = time.perf_counter(), self.counted.done
        found = super()._precompute_ref_logps(*arguments, **keywords)
        type(self).ahead, type(self).ahead_operations = time.perf_counter() - started, self.counted.done - done
        return found


class Recorder(transformers.TrainerCallback):
    """Measures each step."""

    def __init__(self, counted: Operations, run: Run) -> None:
        self.counted, self.run = counted, run
        self._since, self._done = 0.0, 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._since, self._done = time.perf_counter(), self.counted.done

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now, done = time.perf_counter(), self.counted.done
        self.run.seconds.append(now - self._since)
        self.run.operations.append(done - self._done)
        self._since, self._done = now, done

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "grad_norm" in logs:  # and not the summary at the end
            self.run.losses.append(logs["loss"])


def train(job: Job) -> list[Run]:
    """A run for each multiplier, with the sum of two of TRL's losses that equals C-DPO's."""
    return [_train(job, i, multiplier) for i, multiplier in enumerate(job.multipliers or (None,))]


def _train(job: Job, number: int, multiplier: float | None) -> Run:
    gc.collect()  # the run before is in reference cycles
    args = DPOConfig(
        output_dir=str(Path(job.folder) / str(number)),
        use_cpu=True,
        bf16=False,
        beta=BETA,
        per_device_train_batch_size=job.pairs_per_step,
        max_steps=job.steps,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=CLIP,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **({} if multiplier is None else _losses(multiplier)),
        **job.options,
    )
    counted, run = Operations(), Run()
    plain = trl.trainer.utils._ChunkedLogProbFunction.apply

    def apply(hidden_RD: torch.Tensor, weight_VD: torch.Tensor, *rest: Any) -> Any:
        counted.head(hidden_RD, weight_VD.shape[0])
        return plain(hidden_RD, weight_VD, *rest)

    policy, reference = (
        transformers.AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32) for _ in range(2)
    )
    for model in (policy, reference):
        counted.watch(model)
    InOrder.counted, InOrder.ahead, InOrder.ahead_operations = counted, 0.0, 0.0
    used = job.ids[: job.steps * job.pairs_per_step]
    trl.trainer.utils._ChunkedLogProbFunction.apply = apply
    try:
        trainer = InOrder(
            policy,
            ref_model=None if job.options.get("precompute_ref_log_probs") else reference,
            args=args,
            train_dataset=datasets.Dataset.from_list([dict(zip(COLUMNS, row, strict=True)) for row in used]),
            processing_class=transformers.AutoTokenizer.from_pretrained(job.model),
            callbacks=[Recorder(counted, run)],
        )
        del reference, model
        trainer.remove_callback(transformers.PrinterCallback)
        run.ahead, run.ahead_operations = InOrder.ahead, InOrder.ahead_operations
        trainer.train()
    finally:
        trl.trainer.utils._ChunkedLogProbFunction.apply = plain
    return run


def _losses(multiplier: float) -> dict[str, Any]:
    """Settings that make DPOTrainer's loss that of C-DPO."""
    return {"loss_type": ["sigmoid", "robust"], "loss_weights": list(weights(multiplier)), "label_smoothing": ROBUST}
