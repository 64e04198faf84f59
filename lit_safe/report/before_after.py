"""Evaluates the policy before the first optimizer step and after the last, and writes what changed."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lit_safe.commands.fit_scorer import TrainableScorer, fit_scorer
from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.evaluation.evaluate import Evaluation, evaluate
from lit_safe.execution.ranks import failing_together, of_first_rank
from lit_safe.protocols.trainer import connected
from lit_safe.report.contents import FIGURE, PAGE, Work, contents, write
from lit_safe.report.outcome import log_hparams
from lit_safe.report.tensorboard import add_picture
from lit_safe.runs.checkpoints import FOLDER, LAST
from lit_safe.training.module import PreferenceAlignment
from lit_safe.types import CostFunction, PackedBatch, ScoredResponse

log = logging.getLogger(__name__)


class BeforeAfter(Callback):
    """Writes ``report.md``, ``report.json``, ``report.png``, ``pairs.csv`` and ``rollouts.csv`` into the run folder.

    The evaluation before training lies in every checkpoint: a resumed run does not repeat it. The one after is of what
    the run ships: the last checkpoint is saved by then, and ``DualAscent`` has put its iterate in place. Where the
    evaluation or the report fails, what was trained stays: one line says so, and ``python train.py report`` with the
    run folder writes the report later. Both evaluations are logged as ``report/<name>``, at step 0 and at the last one.

    Args:
        cost: Scores responses that the policy samples to held-out prompts; null samples none.
        fit_cost: Fit ``cost`` to the train split first, and leave it out of the report where it then ranks held-out
            responses worse than its own minimum. For scorers that can be fitted in seconds.
        pairs: At most so many held-out pairs, rounded up to whole batches; null takes all of the val split.
        prompts: At most so many held-out prompts to answer.
        samples_per_prompt: Responses to each.
        max_new_tokens: Longest response.
        batch_size: Responses generated at once.
        show_samples: How many prompts ``report.md`` shows with the responses before and after training; safety data
            makes offensive ones likely.
        notes: Sentences for the report on what the data cannot show.
        seed: Of the responses; null takes the run's.

    Raises:
        ValueError: If ``fit_cost`` is set and there is no cost that could be fitted.
    """

    def __init__(
        self,
        cost: CostFunction | None = None,
        fit_cost: bool = False,
        pairs: int | None = None,
        prompts: int = 32,
        samples_per_prompt: int = 1,
        max_new_tokens: int = 48,
        batch_size: int = 16,
        show_samples: int = 0,
        notes: list[str] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if fit_cost and not isinstance(cost, TrainableScorer):
            raise ValueError(f"fit_cost: {type(cost).__name__} has no `fit` and `save`")
        self.cost = cost
        self.fit_cost = fit_cost
        self.pairs = pairs
        self.prompts = prompts
        self.samples_per_prompt = samples_per_prompt
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.show_samples = show_samples
        self.notes = list(notes or [])
        self.seed = seed
        self._before: Evaluation | None = None
        self._start: dict[str, Any] = {}  # what was there before the first step
        self._work: Work = {"seconds": 0.0, "tokens": 0, "pairs": 0, "peak_gib": None}
        self.failed: str | None = None
        self.report: dict[str, Any] | None = None  # the report.json of a run that has ended, on the first rank
        self._fitted = False
        self._step_started = 0.0

    # -- Lightning's hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Come after every callback that may still change the policy when training ends, and before checkpoints."""
        others = [callback for callback in connected(trainer).callbacks if callback is not self]
        at = next((k for k, callback in enumerate(others) if isinstance(callback, Checkpoint)), len(others))
        connected(trainer).callbacks = [*others[:at], self, *others[at:]]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate before the first step, unless a checkpoint brought that.

        Raises:
            ValueError: If training resumes from a checkpoint that was written without this callback.
        """
        if connected(trainer).fast_dev_run:
            return
        module = _aligned(pl_module)
        self._fit(trainer)
        if self._before is not None:
            return
        if trainer.global_step > 0:
            raise ValueError("the checkpoint has no evaluation from before training: resume without BeforeAfter")
        started = time.monotonic()
        self._before = self._evaluate(trainer, module, "before training")
        self._start = {"seconds": time.monotonic() - started, "multiplier": module.multiplier.tolist()}
        self._log(trainer, self._before)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the step's clock."""
        self._step_started = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Sequence[PackedBatch], batch_idx: int
    ) -> None:
        """Add the step to what training took, evaluations aside."""
        self._work["seconds"] += time.monotonic() - self._step_started
        self._work["tokens"] += sum(len(part.sequences.input_ids) for part in batch) * trainer.world_size
        self._work["pairs"] += int(batch[0].pairs_in_step)
        peak = trainer.callback_metrics.get("train/perf/peak_gib")
        self._work["peak_gib"] = self._work["peak_gib"] if peak is None else float(peak)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate what the run ships, and write the report; what fails here costs the report alone."""
        self.failed = None
        if self._before is None:
            return
        try:
            self._finish(trainer, _aligned(pl_module), self._before)
        except Exception as error:  # whatever it is, training is over and saved
            folder = Path(trainer.default_root_dir)
            reason = str(error).strip().partition("\n")[0]
            self.failed = (
                f"no report ({type(error).__name__}: {reason}). What was trained is in {folder / FOLDER / LAST}; "
                f"`python train.py report {folder}` writes the report later"
            )
            if trainer.is_global_zero:
                log.error("%s", self.failed)
            log.debug("", exc_info=True)

    def acts_after_training(self) -> bool:
        """Whether an evaluation after training belongs to the one before."""
        return self._before is not None

    def state_dict(self) -> dict[str, Any]:
        """The evaluation before training and what training took so far, as tensors and plain values."""
        before = None if self._before is None else self._before.state_dict()
        samples = [] if self._before is None else [tuple(sample) for sample in self._before.samples]
        return {"before": before, "samples": samples, "start": dict(self._start), "work": dict(self._work)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from ``state_dict()``."""
        if state_dict["before"] is not None:
            samples = tuple(ScoredResponse(*sample) for sample in state_dict.get("samples", ()))
            self._before = Evaluation.from_state_dict(state_dict["before"])._replace(samples=samples)
        self._start = dict(state_dict["start"])
        self._work.update(state_dict["work"])

    # -- the evaluations

    def _finish(self, trainer: Trainer, module: PreferenceAlignment, before: Evaluation) -> None:
        started = time.monotonic()
        after = self._evaluate(trainer, module, "after training")
        self._log(trainer, after)
        if not trainer.is_global_zero:
            return
        start = {**self._start, "seconds_after": time.monotonic() - started}
        dual = next((c for c in connected(trainer).callbacks if isinstance(c, DualAscent)), None)
        sampling = {"max_new_tokens": self.max_new_tokens, "seed": self._seed(module)}
        report = contents(trainer, module, (before, after), self._work, start, self.cost, sampling, self.notes, dual)
        folder = Path(trainer.default_root_dir)
        write(folder, report, before, after)
        self.report = report
        add_picture(trainer, "report", folder / FIGURE)
        log_hparams(trainer, module, report)
        log.info("report: %s", folder / PAGE)

    def _fit(self, trainer: Trainer) -> None:
        if not self.fit_cost or self._fitted:
            return
        assert isinstance(self.cost, TrainableScorer)
        self._fitted = True
        failed = 0
        with failing_together():
            if trainer.is_global_zero:  # the other ranks read what it wrote
                log.info("fitting %s to the train split", type(self.cost).__name__)
                failed = fit_scorer(_data(trainer), scorer=self.cost, device=str(trainer.strategy.root_device))
            failed = of_first_rank(failed)
        if failed:
            self.cost = None
            self.notes.append(
                "The scorer ranks held-out responses no better than it must to be used, so no share of unsafe "
                "responses is reported."
            )

    def _evaluate(self, trainer: Trainer, module: PreferenceAlignment, when: str) -> Evaluation:
        if trainer.is_global_zero:
            log.info("evaluating %s", when)
        return evaluate(
            module,
            _data(trainer),
            cost=self.cost,
            pairs=self.pairs,
            prompts=self.prompts,
            samples_per_prompt=self.samples_per_prompt,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            seed=self._seed(module),
            keep_samples=self.show_samples,
            earlier=self._before,
            untouched=self._before is None,
        )

    def _seed(self, module: PreferenceAlignment) -> int:
        return module.seed if self.seed is None else self.seed

    @staticmethod
    def _log(trainer: Trainer, evaluation: Evaluation) -> None:
        values = {f"report/{name}": estimate.mean for name, estimate in evaluation.summary().items()}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})


def _aligned(module: LightningModule) -> PreferenceAlignment:
    if not isinstance(module, PreferenceAlignment):
        raise TypeError(f"BeforeAfter evaluates a PreferenceAlignment, not {type(module).__name__}")
    return module


def _data(trainer: Trainer) -> Any:
    return connected(trainer).datamodule
