"""The base of preference training and fine-tuning: one optimizer step per item of the training loader."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning import Callback, LightningModule
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from lit_safe.errors.message import SettingError
from lit_safe.execution.process_memory import peak_bytes
from lit_safe.execution.rng import isolated
from lit_safe.hashing import hash64
from lit_safe.phases import phase
from lit_safe.precision import check_trainable, check_trainer_precision, run_precision
from lit_safe.protocols.data import RunData
from lit_safe.protocols.pair import LaysOut, PairModel
from lit_safe.protocols.trainer import connected
from lit_safe.runs.checkpoints import shipped
from lit_safe.training.clipped_step import clipped_step
from lit_safe.training.finite import FiniteNorms
from lit_safe.training.metrics import SUMS, Means, Scalars, on_host, together
from lit_safe.training.micro_batch import choose_micro_batch, ranks_on
from lit_safe.training.optimizers import optimizer_over
from lit_safe.training.schedules import Schedule
from lit_safe.training.shared_weights import check_strategy, reshard, share_weights
from lit_safe.types import PackedSequences

WINDOW = "window"  # key in a checkpoint
ROWS = "rows"  # of a window, among the values of its last step


@dataclass
class Window:
    """Quantities other than means that are logged about the optimizer steps since the last log entry.

    ``seconds`` is the time inside optimizer steps, without validations, dual steps, reports and checkpoints.
    """

    tokens: int = 0
    rows: Tensor | int = 0
    seconds: float = 0.0
    rate: float = math.nan  # learning rate of the last step
    last: Mapping[str, Tensor | float] = field(default_factory=dict)  # values of the last step


class StepModule(LightningModule):
    """A LightningModule whose loader yields the micro-batches of one optimizer step at a time.

    Optimization is manual, so a step has the same rows however it is divided into micro-batches and ranks. Each
    micro-batch contributes its part of the step's loss. Ranks synchronise gradients once, at the last micro-batch.

    Args:
        pair: The policy and its reference.
        optimizer: Optimizer of the trainable parameters.
        schedule: Factor on the learning rate by optimizer step.
        gradient_clip_norm: Bound on the gradient's 2-norm in a step. None disables clipping.
        metric_names: Names of the quantities that training and validation log.
        decay_norms: Whether the optimizer's weight decay also applies to norms and biases.
    """

    data_protocol: type = RunData
    """The protocol that the data module must meet."""

    def __init__(
        self,
        pair: PairModel,
        optimizer: OptimizerCallable,
        schedule: Schedule,
        gradient_clip_norm: float | None,
        metric_names: Sequence[str],
        decay_norms: bool = False,
    ) -> None:
        super().__init__()
        if gradient_clip_norm is not None and not gradient_clip_norm > 0:
            raise ValueError(f"gradient_clip_norm must be > 0, or null for no bound, got {gradient_clip_norm}")
        self.automatic_optimization = False
        self.pair = pair
        self.optimizer = optimizer
        self.schedule = schedule
        self.gradient_clip_norm = gradient_clip_norm
        self.decay_norms = decay_norms
        self.train_means = Means(metric_names)
        self.eval_means = Means(metric_names)
        self._window = Window()
        self._norms = FiniteNorms()

    def configure_callbacks(self) -> list[Callback]:
        """Add no callbacks. Check the trainer's settings before anything is read.

        Raises:
            ValueError: If the trainer's precision, strategy, accumulation, clipping or a callback is not supported.
        """
        check_trainer_precision(str(self.trainer.precision), self.trainer.strategy.root_device)
        check_strategy(self.trainer.strategy)
        if self.trainer.accumulate_grad_batches != 1:
            raise SettingError(
                "trainer.accumulate_grad_batches: not supported; set data.pairs_per_step (pairs per optimizer step) "
                "and data.micro_batch_tokens (tokens per forward pass); in fine-tuning rows_per_step"
            )
        if self.trainer.gradient_clip_val is not None:
            raise SettingError("trainer.gradient_clip_val: not supported; set model.gradient_clip_norm")
        for callback in connected(self.trainer).callbacks:
            if isinstance(callback, StochasticWeightAveraging):
                raise SettingError(
                    "StochasticWeightAveraging is not supported: it replaces the schedule during a run, so the run "
                    "could not be resumed. Use --dual.ship average"
                )
        return []

    def setup(self, stage: str) -> None:
        """Make the policy stop at the tokens that end the data's responses."""
        self.take_stop_tokens(connected(self.trainer).datamodule)

    def take_stop_tokens(self, data: Any) -> None:
        """Make the policy stop at the tokens that end the responses of ``data``, besides its tokenizer's own end token.

        Every command that runs a policy calls this after ``data.setup``. Checkpoints and exports keep these tokens.
        """
        self.pair.stop_at(data.stop_ids)

    def configure_model(self) -> None:
        """Load policy and reference, once. Choose the size of the micro-batches if the user has not."""
        share_weights(self.pair, self._trainer)
        self.pair.load()
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            device, data = self.trainer.strategy.root_device, self.trainer.datamodule  # type: ignore[attr-defined]
            with run_precision(self, device):
                choose_micro_batch(self.pair, data, device, ranks_on(device, self.trainer.num_devices))

    @property
    def seed(self) -> int:
        """The run's seed, used in every random draw of training: the data module's seed, or 0 without a trainer."""
        return 0 if self._trainer is None else int(getattr(connected(self.trainer).datamodule, "seed", 0))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build the optimizer of the trainable parameters. The schedule advances once per optimizer step.

        Raises:
            ValueError: If neither ``max_epochs`` nor ``max_steps`` bounds the run, or a trainable weight is below fp32
                without being configured so.
        """
        check_trainable(self.named_parameters(), getattr(self.pair, "trainable_dtype", "float32"))
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = optimizer_over(self.optimizer, trained, decay_norms=self.decay_norms)
        estimated = self.trainer.estimated_stepping_batches
        if math.isinf(estimated):
            raise ValueError("the learning-rate schedule needs an end: set trainer.max_epochs or trainer.max_steps")
        total = int(estimated)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.schedule(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def complete(self, item: Any) -> Any:
        """Complete a batch, or each micro-batch of a step. The data module calls this while ids are on the host."""
        return [self.completed(batch) for batch in item] if isinstance(item, list) else self.completed(item)

    def completed(self, batch: Any) -> Any:
        """A batch with the rows of the models' input, so that no pass waits for a size from its device."""
        if not isinstance(self.pair, LaysOut):
            return batch
        return batch._replace(sequences=self.pair.laid_out(batch.sequences))

    def optimizer_step_over(self, shares: Sequence[Callable[[], Tensor]]) -> Tensor:
        """Run one optimizer step.

        Args:
            shares: This rank's parts of the step's loss, one per forward and backward pass. All ranks must have equally
                many. Each call returns a part []: for a micro-batch, its sum of losses / number of rows in the step.

        Returns:
            The gradient norm [] before clipping.

        Raises:
            FloatingPointError: If the norm is not finite. The weights are unchanged then.
        """
        started = time.perf_counter()
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        with phase("optimizer"):
            optimizer.zero_grad()
        # dropout must not depend on earlier random draws, so that a resumed run draws the same numbers
        with isolated(hash64("step", self.seed, self.global_step, self.global_rank)):
            for index, share in enumerate(shares):
                with contextlib.nullcontext() if index == len(shares) - 1 else self._no_sync():
                    # ranks average gradients, but the step's loss is a sum over ranks
                    loss = share() * self.trainer.world_size
                    # the trainer's autocast is active here and would round products of fp32 gradients too
                    with phase("backward", whole=True), torch.autocast(self.device.type, enabled=False):
                        self.manual_backward(loss)
        with phase("optimizer"):
            bound = float("inf") if self.gradient_clip_norm is None else self.gradient_clip_norm
            self._window.rate = optimizer.param_groups[0]["lr"]
            norm = clipped_step(self.trainer.strategy, optimizer, bound, self._norms, self.global_step)
            self._scheduler().step()
        if self._ends_window():
            self._norms.settle()  # the time of a window is that of its device
        self._window.seconds += time.perf_counter() - started
        return norm

    def _scheduler(self) -> torch.optim.lr_scheduler.LambdaLR:
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
        return scheduler

    def _no_sync(self) -> contextlib.AbstractContextManager[Any]:
        block = getattr(self.trainer.strategy, "block_backward_sync", None)
        return contextlib.nullcontext() if block is None else block()

    def count(self, sequences: PackedSequences, present: Tensor) -> None:
        """Add a micro-batch's tokens and its rows with ``present`` [B] (bool) to the counts behind ``perf/*``."""
        self._window.tokens += len(sequences.input_ids)
        self._window.rows = self._window.rows + present.sum()  # on the device, without waiting for it

    def log_training(self, norm: Tensor, extra: Mapping[str, Tensor | float]) -> None:
        """Log the window's means every ``trainer.log_every_n_steps`` optimizer steps, and start a new window.

        Args:
            norm: The step's gradient norm [].
            extra: Further values of the last step, by name.
        """
        with phase("metrics"):
            self._window.last = {**extra, "grad_norm": norm, "learning_rate": self._window.rate}
            if self._ends_window():
                self._log_window()

    def _ends_window(self) -> bool:
        return self.global_step % max(1, connected(self.trainer).log_every_n_steps) == 0

    def window_parts(self) -> list[Means]:
        """What a window adds up."""
        return [self.train_means]

    def window_means(self, found: Sequence[dict[str, float]]) -> dict[str, float]:
        """The logged means by name, from those of each of ``window_parts``."""
        return found[0]

    def _log_window(self) -> None:
        window, self._window = self._window, Window()
        ranks, parts = self.trainer.world_size, self.window_parts()
        last, *means = together(Scalars({**window.last, ROWS: window.rows}), *parts)
        for part in parts:
            part.reset()
        rows = last.pop(ROWS)
        values = {
            **self.window_means(means),
            **last,
            "epoch": self.global_step / max(1, int(self.trainer.num_training_batches)),
            "perf/peak_gib": _peak_gib(self.device),
        }
        if window.seconds > 0:
            values["perf/tokens_per_s"] = window.tokens * ranks / window.seconds
            values["perf/rows_per_s"] = rows * ranks / window.seconds
        self.publish("train", values)

    def publish(self, prefix: str, values: Mapping[str, Tensor | float]) -> None:
        """Write ``<prefix>/<name>`` to every logger at this optimizer step, and to the trainer's callback metrics."""
        named = {f"{prefix}/{name}": value for name, value in on_host(values).items()}
        for logger in self.loggers:
            logger.log_metrics(named, step=self.global_step)
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in named.items()})

    def on_train_start(self) -> None:
        """Set the learning rate from this run's schedule.

        A checkpoint's optimizer holds the next learning rate of the earlier schedule. If the run now has more epochs or
        steps, its schedule gives another rate.
        """
        self._window = Window(last=self._window.last)
        scheduler = self._scheduler()
        factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
        for group, base, factor in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, factors, strict=True):
            group["lr"] = base * factor

    def on_train_end(self) -> None:
        """Log the last window, even if it has fewer steps than others."""
        self._norms.settle()
        if not self._ends_window():
            self._log_window()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Replace this rank's sums in the checkpoint by those of all ranks. Lightning calls this on every rank."""
        self._norms.settle()
        checkpoint[WINDOW] = on_host(self._window.last)  # needed by a run that is resumed after its last step
        for name, means in self._means():
            checkpoint["state_dict"].update({f"{name}.{k}": v for k, v in means.over_ranks().items()})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the window: the first rank takes the sums of all ranks, the others start at zero.

        A fit continues from the iterate. All other commands load the weights that the run ships.
        """
        trainer = self._trainer  # None if a command reads the checkpoint without a trainer
        if trainer is None or trainer.state.fn != TrainerFn.FITTING:
            checkpoint["state_dict"] = shipped(checkpoint)
        self._window = Window(last=checkpoint.get(WINDOW, {}))
        if self.global_rank == 0:
            return
        for name, _ in self._means():
            for key in (f"{name}.{state}" for state in SUMS):
                checkpoint["state_dict"][key] = torch.zeros_like(checkpoint["state_dict"][key])

    def _means(self) -> list[tuple[str, Means]]:
        return [(name, part) for name, part in self.named_modules() if isinstance(part, Means)]

    def on_validation_epoch_start(self) -> None:
        """Reset the means before a validation."""
        self.eval_means.reset()

    def on_validation_epoch_end(self) -> None:
        """Publish the means over the split, exact over ranks."""
        if not self.trainer.sanity_checking:
            self._publish_split("eval")
        self.eval_means.reset()
        reshard(self.pair)

    def _publish_split(self, prefix: str) -> None:
        means = self.eval_means.compute()
        self.publish(prefix, means)
        if self.trainer.state.fn != TrainerFn.FITTING:  # a fit logs curves, other commands print the values
            for name, value in means.items():
                rank_zero_info(f"{prefix}/{name:<32} {float(value):.6g}")

    def on_test_epoch_start(self) -> None:
        """Reset the means before a test."""
        self.eval_means.reset()

    def on_test_epoch_end(self) -> None:
        """Publish the means over the split, exact over ranks."""
        self._publish_split("test")
        self.eval_means.reset()
        reshard(self.pair)


def _peak_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return peak_bytes() / 2**30
