"""The multiplier of a cost limit: how it moves, when, and what is said of it.

Letters: C constraints; a multiplier is [] or [C], in reward nats per cost unit.
"""

import logging
import math
from typing import Any, Literal, get_args

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from lit_safe.constraint.costs import Checkable, CostEstimator
from lit_safe.constraint.dual_curves import constraints, named, publish, publish_multiplier, show, suffixes
from lit_safe.constraint.dual_line import dual_lines
from lit_safe.constraint.frozen_policy import FrozenPolicyWarning as FrozenPolicyWarning
from lit_safe.constraint.frozen_policy import complete_epochs, warn_of_frozen_policy
from lit_safe.constraint.limits import Standing, standing
from lit_safe.constraint.multiplier import BoundWatch, agree, dual_step
from lit_safe.errors.message import SettingError
from lit_safe.execution.ranks import failing_together
from lit_safe.protocols.run import SavesEpochEnd
from lit_safe.training.averaging import IterateAverage
from lit_safe.training.module import PreferenceAlignment
from lit_safe.training.schedules import Constant, Schedule
from lit_safe.types import CostEstimate

log = logging.getLogger(__name__)

Ship = Literal["last", "average"]


class DualAscent(Callback):
    """Moves the module's multiplier towards a cost limit, once at the end of each complete training epoch.

    The estimate is of the policy as the epoch left it. An epoch that ends early (``max_steps``, early stopping) takes
    no step; its remainder does, if training is resumed. With ``lr: 0`` the multiplier stays and everything is still
    estimated and logged, so that every objective's run draws the same curves.

    Logged at each epoch's last optimizer step, with a suffix ``_<constraint>`` where there are several:
    ``dual/multiplier`` (after the step; its start value at step 0; not where the objective does not read it and no
    cost is estimated), ``dual/lr`` (0 without a step), ``dual/cost``, ``dual/stderr``, ``dual/violation`` (cost -
    limit), ``dual/unsafe`` (share of samples with a cost > 0), ``dual/effective`` (sample size), and what else the
    estimator measured.

    ``lr`` = 1 / s is Newton's step, where s is how far the cost of a policy that has settled falls when the multiplier
    rises by one; from twice that on the multiplier swings for ever. At the objective's optimum s = Var(cost) / beta
    (variance among responses to one prompt). docs/constraints.md says how to measure s, and what to do short of that.

    Args:
        limit: Largest acceptable E[cost], in cost units; a list gives each constraint its own.
        lr: Step size, nats per squared cost unit; 0 never moves the multiplier. A list gives each constraint its own.
        schedule: Factor on ``lr`` by the number of the step, constant by default. One that falls (Robbins and Monro
            1951) goes far while the multiplier is far off, and averages the estimator's noise once it is near.
        maximum: Upper end of the multiplier. At the default, one unit of cost outweighs 10 nats of reward, odds of
            22,000 to 1: beyond it preferences hardly change, and a limit not met there is out of reach.
        estimator: Where E[cost] comes from; null estimates nothing.
        every_n_epochs: Estimate and step at the end of every n-th epoch alone.
        warmup_epochs: Epochs at the start whose ends take no step (they are estimated and logged).
        freeze_last_epochs: Epochs at the end that train under one multiplier, with no step after them either.
        ship: What the module holds after training. ``last`` is on the limit once ``lr`` is no more than Newton's step.
            ``average`` is the polynomial-decay average, over the epochs since ``warmup_epochs``, of the trained
            parameters and the multiplier: close to the solution even where the multiplier swings, but it drags the
            way there along, which in a run of few epochs is most of it. Its own cost is estimated at the end, as
            ``dual/shipped_cost``.
        seed: Of the estimator's draws; null takes the run's.
        show_samples: How many of the responses that were scored TensorBoard shows after each estimate (8 at most);
            safety data makes offensive ones likely.

    Raises:
        ValueError: If an argument lies outside its range, or ``lr`` > 0 has no estimator.
    """

    def __init__(
        self,
        limit: float | list[float] = 0.0,
        lr: float | list[float] = 0.0,
        schedule: Schedule | None = None,
        maximum: float = 10.0,
        estimator: CostEstimator | None = None,
        every_n_epochs: int = 1,
        warmup_epochs: int = 0,
        freeze_last_epochs: int = 0,
        ship: Ship = "last",
        seed: int | None = None,
        show_samples: int = 0,
    ) -> None:
        super().__init__()
        self.limit = torch.tensor(limit, dtype=torch.float64)
        if not bool(self.limit.isfinite().all()):
            raise ValueError(f"limit must be finite, got {limit}")
        self.lr = torch.tensor(lr, dtype=torch.float64)
        if not bool((self.lr.isfinite() & (self.lr >= 0)).all()):
            raise ValueError(f"lr must be >= 0 and finite, got {lr}")
        if not (math.isfinite(maximum) and maximum > 0):
            raise ValueError(f"maximum must be > 0, got {maximum}")
        if self.steps and estimator is None:
            raise ValueError("lr > 0 needs an estimator of the cost, e.g. --dual.estimator configs/cost/rollout.yaml")
        if every_n_epochs < 1 or warmup_epochs < 0 or freeze_last_epochs < 0:
            raise ValueError(
                "every_n_epochs must be >= 1, warmup_epochs and freeze_last_epochs >= 0, "
                f"got {every_n_epochs}, {warmup_epochs}, {freeze_last_epochs}"
            )
        if ship not in get_args(Ship):
            raise ValueError(f"ship must be one of {get_args(Ship)}, got {ship!r}")
        self.schedule = schedule or Constant()
        self.maximum = maximum
        self.estimator = estimator
        self.every_n_epochs = every_n_epochs
        self.warmup_epochs = warmup_epochs
        self.freeze_last_epochs = freeze_last_epochs
        self.ship = ship
        self.seed = seed
        self.show_samples = show_samples
        self.average = IterateAverage()
        self.standing: Standing | None = None
        self.bounds = BoundWatch()
        self.failed: str | None = None

    @property
    def steps(self) -> bool:
        """Whether any multiplier is ever to move."""
        return bool((self.lr > 0).any())

    # -- Lightning's hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what could only fail epochs later.

        Raises:
            ValueError: On what ``check`` raises, and for a strategy or a callback that would alter what is kept.
        """
        if stage != "fit" or self._idle(pl_module):
            return
        self.check(trainer, _aligned(pl_module), trainer.datamodule)  # type: ignore[attr-defined]
        if self.ship == "average" and not isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy):
            raise SettingError(
                f"ship: average needs whole parameters on every rank, not {type(trainer.strategy).__name__}"
            )

    def check(self, trainer: Trainer, module: PreferenceAlignment, data: Any) -> None:
        """Compare limit, multiplier, constraints and cost function, before anything is trained.

        Raises:
            ValueError: If shapes differ, a callback averages the multiplier, or the estimator cannot work.
        """
        if self.steps and not module.objective.reads_multiplier:
            raise SettingError(
                f"dual.lr is {self.lr.tolist()}, and {type(module.objective).__name__} does not read the multiplier: "
                "leave dual.lr at 0, or name an objective that reads it (configs/objective/c_dpo.yaml)"
            )
        averaging = [c for c in trainer.callbacks if isinstance(c, WeightAveraging)]  # type: ignore[attr-defined]
        if self.steps and averaging:
            raise SettingError(
                f"{type(averaging[0]).__name__} averages buffers, the multiplier among them, and a resumed run would "
                "take its step twice: use --dual.ship average, or --dual.lr 0"
            )
        for name, value in (("limit", self.limit), ("lr", self.lr)):
            if value.ndim and value.shape != module.multiplier.shape:
                raise SettingError(
                    f"{name} has shape {list(value.shape)}, the module's multiplier {list(module.multiplier.shape)}"
                )
        constraints = data.constraints
        if module.multiplier.ndim and len(module.multiplier) != len(constraints):
            raise SettingError(f"{len(module.multiplier)} multipliers for the data's constraints {list(constraints)}")
        if self.steps and bool((module.multiplier > module.multiplier.new_tensor(self.maximum)).any()):
            raise SettingError(f"multiplier {module.multiplier.tolist()} starts above its maximum {self.maximum}")
        if self.estimator is None:
            return
        shape = [] if len(constraints) == 1 else [len(constraints)]
        if list(module.multiplier.shape) != shape:
            raise SettingError(
                f"model.multiplier has shape {list(module.multiplier.shape)} and the data have {len(constraints)} "
                f"constraints, {', '.join(constraints)}: give {'one number' if not shape else f'a list of {shape[0]}'}"
            )
        if isinstance(self.estimator, Checkable) and not _fitted_later(self.estimator, trainer):
            self.estimator.check(data, len(constraints))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the curve, look ahead for steps that no policy will follow, and catch up on one a resume skipped."""
        if self._idle(pl_module):
            return
        module = _aligned(pl_module)
        if module.multiplier.dtype.itemsize < 4:
            raise ValueError(f"the multiplier is in {module.multiplier.dtype}, which loses its steps: keep it in fp32")
        if (self.freeze_last_epochs or self.schedule != Constant()) and complete_epochs(trainer) is None:
            raise SettingError(
                "freeze_last_epochs and a schedule count from the end: set trainer.max_epochs or trainer.max_steps"
            )
        if self.ship == "average" and self.average.count != max(0, int(module.dual_epoch) + 1 - self.warmup_epochs):
            raise ValueError("ship: average cannot resume from a checkpoint that was written without its average")
        if self.steps:
            warn_of_frozen_policy(trainer, module, lambda epoch: self._moves(trainer, epoch), self.every_n_epochs)
        if trainer.global_step == 0:
            publish_multiplier(trainer, module)
        if trainer.current_epoch > 0 and trainer.is_last_batch:
            # Lightning counts an epoch as done whose checkpoint was written after its last batch but before its end,
            # and never ends it on resume; the policy is still the one it left
            self._end_of_epoch(trainer, module, trainer.current_epoch - 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the epoch, then estimate, step, log; before any checkpoint callback, which Lightning keeps last."""
        module = pl_module
        if self._idle(module) or not trainer.is_last_batch or int(_aligned(module).dual_epoch) >= trainer.current_epoch:
            return
        if self._estimates_at(trainer.current_epoch):
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, SavesEpochEnd):
                    callback.save_within_epoch_end(trainer, self)
        self._end_of_epoch(trainer, _aligned(module), trainer.current_epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the shipped iterate into the module, after the checkpoint of the last one."""
        self.failed = None
        if self._idle(pl_module) or not self.acts_after_training():
            return
        module = _aligned(pl_module)
        self.average.put(_iterate(module))
        if self.estimator is None:
            return
        try:
            estimate = self._estimate(trainer, module, self.estimator, trainer.current_epoch)
            publish(trainer, {**named("dual/shipped_multiplier", module.multiplier, trainer),
                                    **named("dual/shipped_cost", estimate.mean, trainer)})  # fmt: skip
            self.standing = standing(constraints(trainer), self.limit, estimate, trainer.current_epoch)
        except Exception as error:  # whatever it is, the weights are saved and shipped
            self.standing = None
            self.failed = f"dual: the shipped average's cost was not estimated ({type(error).__name__}: {error})"
            log.error("%s", self.failed)

    def acts_after_training(self) -> bool:
        """Whether an average takes the iterate's place."""
        return self.ship == "average" and self.average.count > 0

    def state_dict(self) -> dict[str, Any]:
        """The average, where one is kept, and what was last known; the multiplier lies in the module's buffers."""
        known = {"standing": None if self.standing is None else self.standing.state_dict(),
                 "bounds": self.bounds.state_dict()}  # fmt: skip
        return {**known, **(self.average.state_dict() if self.ship == "average" else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from ``state_dict()``."""
        if self.ship == "average" and "mean" in state_dict:
            self.average.load_state_dict(state_dict)
        if state_dict.get("standing") is not None:
            self.standing = Standing.from_state_dict(state_dict["standing"])
        self.bounds.load_state_dict(state_dict.get("bounds", {}))

    # -- the step

    def _end_of_epoch(self, trainer: Trainer, module: PreferenceAlignment, epoch: int) -> None:
        if int(module.dual_epoch) >= epoch:
            return  # taken already: the hook fired twice, before and after a resume
        if self.ship == "average" and epoch >= self.warmup_epochs:
            self.average.add(_iterate(module))  # a policy with the multiplier that it was trained under
        if self.estimator is None or not self._estimates_at(epoch):
            module.dual_epoch.fill_(epoch)
            publish_multiplier(trainer, module)
            return
        estimate = self._estimate(trainer, module, self.estimator, epoch)
        before = module.multiplier.detach().to("cpu", copy=True)
        lr = self._lr(trainer, epoch)
        after = dual_step(before, estimate.mean, self.limit, lr, self.maximum)
        agree(after, module.device)
        # the two change together: a checkpoint of one without the other would take a step twice, or never
        if self._moves(trainer, epoch):
            module.multiplier.copy_(after)
        module.dual_epoch.fill_(epoch)
        self.standing = standing(constraints(trainer), self.limit, estimate, epoch)
        if trainer.is_global_zero:
            reads = module.objective.reads_multiplier
            for line in dual_lines(self.standing, estimate, before, module.multiplier.cpu(), reads):
                log.info("%s", line)
        if self.steps and trainer.is_global_zero:
            cost, limit = estimate.mean.double(), self.limit
            self.bounds.see(suffixes(trainer, before), before, module.multiplier.cpu(), cost, limit, self.maximum)
        publish(trainer, {**self._measured(trainer, module, estimate), **named("dual/lr", lr, trainer)})
        show(trainer, estimate.samples[: self.show_samples])

    def _measured(self, trainer: Trainer, module: PreferenceAlignment, estimate: CostEstimate) -> dict[str, float]:
        assert self.standing is not None
        upper = self.standing.upper
        return {
            **named("dual/multiplier", module.multiplier, trainer),
            **named("dual/cost", estimate.mean, trainer),
            **named("dual/stderr", estimate.stderr, trainer),
            **named("dual/violation", estimate.mean - self.limit, trainer),
            **named("dual/upper", estimate.mean.new_tensor(upper).reshape(estimate.mean.shape), trainer),
            "dual/unsafe": float(estimate.unsafe),
            "dual/effective": estimate.effective,
            **estimate.also,
        }

    def _estimate(
        self, trainer: Trainer, module: PreferenceAlignment, estimator: CostEstimator, epoch: int
    ) -> CostEstimate:
        data = trainer.datamodule  # type: ignore[attr-defined]
        with failing_together():
            seed = module.seed if self.seed is None else self.seed
            estimate = estimator(module, data, seed=seed, epoch=epoch).cpu()
        if estimate.mean.shape != module.multiplier.shape:
            raise ValueError(
                f"the estimated cost has shape {list(estimate.mean.shape)}, the module's multiplier "
                f"{list(module.multiplier.shape)}: model.multiplier takes one start value for each constraint"
            )
        return estimate

    def _moves(self, trainer: Trainer, epoch: int) -> bool:
        """Whether the end of ``epoch`` takes a step."""
        total = complete_epochs(trainer)
        frozen = self.freeze_last_epochs > 0 and total is not None and epoch >= total - self.freeze_last_epochs
        return self.steps and epoch >= self.warmup_epochs and not frozen

    def _estimates_at(self, epoch: int) -> bool:
        return self.estimator is not None and (epoch + 1) % self.every_n_epochs == 0

    def _lr(self, trainer: Trainer, epoch: int) -> Tensor:
        """The step size [] or [C] at the end of ``epoch``, 0 where it takes no step."""
        if not self._moves(trainer, epoch):
            return torch.zeros_like(self.lr)
        epochs = complete_epochs(trainer)
        if epochs is None:
            return self.lr  # the schedule is constant then
        end = epochs - self.freeze_last_epochs
        number, total = ((at - self.warmup_epochs) // self.every_n_epochs for at in (epoch, end))
        return self.lr * self.schedule(number, total)

    def _idle(self, module: LightningModule) -> bool:
        """Whether there is nothing to do: a module without a multiplier, and nobody asked for one to be moved."""
        return not self.steps and self.estimator is None and not isinstance(module, PreferenceAlignment)


def dual_of(trainer: Trainer) -> DualAscent | None:
    """What estimates costs and moves the multiplier, if anything does."""
    return next((c for c in trainer.callbacks if isinstance(c, DualAscent)), None)  # type: ignore[attr-defined]


def _aligned(module: LightningModule) -> PreferenceAlignment:
    if not isinstance(module, PreferenceAlignment):
        raise TypeError(f"DualAscent moves the multiplier of a PreferenceAlignment, {type(module).__name__} has none")
    return module


def _fitted_later(estimator: CostEstimator, trainer: Trainer) -> bool:
    """Whether a callback fits the estimator's scorer after training has started."""
    folder = getattr(getattr(estimator, "cost", None), "folder", None)
    fitting = [c.cost for c in trainer.callbacks if getattr(c, "fit_cost", False)]  # type: ignore[attr-defined]
    return folder is not None and any(getattr(cost, "folder", None) == folder for cost in fitting)


def _iterate(module: PreferenceAlignment) -> dict[str, Tensor]:
    trained = {name: p.data for name, p in module.named_parameters() if p.requires_grad}
    return {**trained, "multiplier": module.multiplier}
