"""The callback that estimates the cost at the end of an epoch and moves the multiplier.

Letters: C constraints; a multiplier is [] or [C], in reward nats per cost unit.
"""

import logging
from typing import Any, Literal, get_args

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from lit_safe.constraint.controllers import Controller, Stateful
from lit_safe.constraint.controllers.chosen import chosen
from lit_safe.constraint.costs import CostEstimator
from lit_safe.constraint.dual_checks import check_dual, start_of
from lit_safe.constraint.dual_curves import constraints, measured, named, publish, publish_multiplier, show, suffixes
from lit_safe.constraint.dual_epochs import DualEpochs
from lit_safe.constraint.dual_line import dual_lines
from lit_safe.constraint.frozen_policy import FrozenPolicyWarning as FrozenPolicyWarning
from lit_safe.constraint.frozen_policy import complete_epochs, warn_of_frozen_policy
from lit_safe.constraint.limits import Standing, standing
from lit_safe.constraint.multiplier import BoundWatch, agree
from lit_safe.constraint.safety_margin import CertifiedWith, Margin, SafetyMargin
from lit_safe.constraint.stop_rule import StopRule
from lit_safe.errors.message import SettingError
from lit_safe.execution.ranks import failing_together
from lit_safe.protocols.run import SavesEpochEnd
from lit_safe.protocols.trainer import connected
from lit_safe.training.averaging import IterateAverage
from lit_safe.training.module import PreferenceAlignment
from lit_safe.training.schedules import Schedule
from lit_safe.training.shared_weights import reshard
from lit_safe.types import CostEstimate

log = logging.getLogger(__name__)

Ship = Literal["last", "average"]


class DualAscent(Callback):
    """Moves the module's multiplier towards a cost limit, once at the end of each complete training epoch.

    The estimate is of the policy as the epoch left it. An epoch that ends early (``max_steps``, early stopping) takes
    no step; its remainder does, if training is resumed. With ``lr: 0`` the multiplier stays and everything is still
    estimated and logged, so that every objective's run draws the same curves. The rule of the step is a controller; a
    run without one takes the projected subgradient step with ``lr``, ``schedule`` and ``maximum``.

    Logged at each epoch's last optimizer step, with a suffix ``_<constraint>`` where there are several:
    ``dual/multiplier`` (after the step; its start value at step 0; not where the objective does not read it and no
    cost is estimated), ``dual/cost``, ``dual/stderr``, ``dual/violation`` (cost - limit), ``dual/margin`` (if one is
    set), ``dual/unsafe`` (share of samples with a cost > 0), ``dual/effective`` (sample size), what else the estimator
    measured, and what the controller used (``dual/lr`` of the subgradient step; 0 without a step).

    Args:
        limit: Largest acceptable E[cost], in cost units; a list gives each constraint its own.
        lr: Step size, nats per squared cost unit; 0 never moves the multiplier. A list gives each constraint its own.
            docs/constraints.md says how to choose it.
        schedule: Factor on ``lr`` by the number of the step, constant by default. One that falls (Robbins and Monro
            1951) goes far while the multiplier is far off, and averages the estimator's noise once it is near.
        maximum: Upper end of the multiplier; null is 10. There one unit of cost outweighs 10 nats of reward, odds of
            22,000 to 1: beyond it preferences hardly change, and a limit not met there is out of reach. A list gives
            each constraint its own.
        controller: Another rule than the subgradient step (configs/controller/). It has its own step and maximum.
        margin: How far below the limit the multiplier steers, in cost units; a list gives each constraint its own.
            ``auto`` computes it after each estimate, from its spread and ``margin_for``. Reports speak of the limit.
        margin_for: The certificate that ``margin: auto`` prepares for.
        estimator: Where E[cost] comes from; null estimates nothing.
        every_n_epochs: Estimate and step at the end of every n-th epoch alone.
        warmup_epochs: Epochs at the start whose ends take no step (they are estimated and logged).
        freeze_last_epochs: Epochs at the end that train under one multiplier, with no step after them either.
        stop: When to end before the last epoch; null never does.
        ship: What the module holds after training. ``last`` is on the limit once ``lr`` is no more than Newton's step.
            ``average`` is the polynomial-decay average, over the epochs since ``warmup_epochs``, of the trained
            parameters and the multiplier: close to the solution even where the multiplier swings, but it drags the
            way there along, which in a run of few epochs is most of it. Its own cost is estimated at the end, as
            ``dual/shipped_cost``.
        seed: Of the estimator's draws; null takes the run's.
        show_samples: How many of the responses that were scored TensorBoard shows after each estimate (8 at most);
            safety data makes offensive ones likely.

    Raises:
        ValueError: If an argument lies outside its range, a multiplier is to move without an estimator, or a controller
            and one of ``lr``, ``schedule`` and ``maximum`` are both given.
    """

    def __init__(
        self,
        limit: float | list[float] = 0.0,
        lr: float | list[float] = 0.0,
        schedule: Schedule | None = None,
        maximum: float | list[float] | None = None,
        controller: Controller | None = None,
        margin: Margin = 0.0,
        margin_for: CertifiedWith = CertifiedWith(),  # noqa: B008  (frozen)
        estimator: CostEstimator | None = None,
        every_n_epochs: int = 1,
        warmup_epochs: int = 0,
        freeze_last_epochs: int = 0,
        stop: StopRule | None = None,
        ship: Ship = "last",
        seed: int | None = None,
        show_samples: int = 0,
    ) -> None:
        super().__init__()
        self.limit = torch.tensor(limit, dtype=torch.float64)
        if not bool(self.limit.isfinite().all()):
            raise ValueError(f"limit must be finite, got {limit}")
        self.controller = chosen(controller, lr, schedule, maximum)
        self.margin = SafetyMargin(margin, margin_for)
        if self.steps and estimator is None:
            who = "lr > 0" if controller is None else f"controller {type(controller).__name__}"
            raise ValueError(f"{who} needs an estimator of the cost, e.g. --dual.estimator configs/cost/rollout.yaml")
        self.epochs = DualEpochs(every_n_epochs, warmup_epochs, freeze_last_epochs)
        if ship not in get_args(Ship):
            raise ValueError(f"ship must be one of {get_args(Ship)}, got {ship!r}")
        if stop is not None and estimator is None:
            raise ValueError("stop needs an estimate of the cost: set dual.estimator")
        self.stop, self.counted = stop, 0  # estimates in a row that count towards the stop
        self.estimator = estimator
        self.ship = ship
        self.seed = seed
        self.show_samples = show_samples
        self.average = IterateAverage()
        self.standing: Standing | None = None
        self.bounds = BoundWatch()
        self.failed: str | None = None
        self._remembers = False  # whether the controller has its state: from a step, or from a checkpoint

    @property
    def steps(self) -> bool:
        """Whether any multiplier is ever to move."""
        return self.controller.moves

    # -- Lightning's hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what could only fail epochs later, and set the controller's start value. A checkpoint overrides it.

        Raises:
            ValueError: On what ``check`` raises, and for a strategy or a callback that would alter what is kept.
        """
        if stage != "fit" or self._idle(pl_module):
            return
        module = _aligned(pl_module)
        self.check(trainer, module, connected(trainer).datamodule)
        strategy = trainer.strategy
        gives_whole = isinstance(strategy, DDPStrategy | SingleDeviceStrategy) or hasattr(strategy, "plan")
        if self.ship == "average" and not gives_whole:
            raise SettingError(f"ship: average needs whole parameters on every rank, not {type(strategy).__name__}")
        if int(module.dual_epoch) < 0:
            module.multiplier.copy_(start_of(self, module))

    def check(self, trainer: Trainer, module: PreferenceAlignment, data: Any) -> None:
        """Compare limit, multiplier, constraints, controller and cost function, before anything is trained.

        Raises:
            ValueError: If shapes differ, a callback averages the multiplier, or controller or estimator cannot work.
        """
        check_dual(self, trainer, module, data)

    @property
    def reads_reference(self) -> bool:
        """Whether costs are estimated: estimates use log-ratios, or measure drift."""
        return self.estimator is not None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the curve, look ahead for steps that no policy will follow, and catch up on one a resume skipped."""
        if self._idle(pl_module):
            return
        module = _aligned(pl_module)
        if module.multiplier.dtype.itemsize < 4:
            raise ValueError(f"the multiplier is in {module.multiplier.dtype}, which loses its steps: keep it in fp32")
        if (self.epochs.freeze_last or self.controller.needs_end) and complete_epochs(trainer) is None:
            raise SettingError(
                "freeze_last_epochs and a schedule count from the end: set trainer.max_epochs or trainer.max_steps"
            )
        if self.ship == "average" and self.average.count != max(0, int(module.dual_epoch) + 1 - self.epochs.warmup):
            raise ValueError("ship: average cannot resume from a checkpoint that was written without its average")
        if isinstance(self.controller, Stateful) and int(module.dual_epoch) >= 0 and not self._remembers:
            raise ValueError(
                f"{type(self.controller).__name__} cannot resume from a checkpoint that was written without its state"
            )
        if self.steps:
            warn_of_frozen_policy(trainer, module, lambda epoch: self._moves(trainer, epoch), self.epochs.every_n)
        if trainer.global_step == 0:
            publish_multiplier(trainer, module)
        if trainer.current_epoch > 0 and trainer.is_last_batch:
            # Lightning counts an epoch as done whose checkpoint was written after its last batch but before its end,
            # and never ends it on resume; the policy is still the one it left
            self._end_of_epoch(trainer, module, trainer.current_epoch - 1)
        trainer.should_stop = trainer.should_stop or self.stopped

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the epoch, then estimate, step, log; before any checkpoint callback, which Lightning keeps last."""
        module = pl_module
        if self._idle(module) or not trainer.is_last_batch or int(_aligned(module).dual_epoch) >= trainer.current_epoch:
            return
        if self._estimates_at(trainer.current_epoch):
            for callback in connected(trainer).callbacks:
                if isinstance(callback, SavesEpochEnd):
                    callback.save_within_epoch_end(trainer, self)
        self._end_of_epoch(trainer, _aligned(module), trainer.current_epoch)
        trainer.should_stop = trainer.should_stop or self.stopped

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

    @property
    def stopped(self) -> bool:
        """Whether the rule ``stop`` ends the run."""
        return self.stop is not None and self.counted >= self.stop.in_a_row

    def acts_after_training(self) -> bool:
        """Whether an average takes the iterate's place."""
        return self.ship == "average" and self.average.count > 0

    def state_dict(self) -> dict[str, Any]:
        """The average and the controller's state, where there are any, and what was last known.

        The multiplier is one of the module's buffers.
        """
        known: dict[str, Any] = {"standing": None if self.standing is None else self.standing.state_dict(),
                 "bounds": self.bounds.state_dict(), "counted": self.counted}  # fmt: skip
        if isinstance(self.controller, Stateful):
            known |= {"controller": type(self.controller).__name__, "controller_state": self.controller.state_dict()}
        return {**known, **(self.average.state_dict() if self.ship == "average" else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from ``state_dict()``."""
        if self.ship == "average" and "mean" in state_dict:
            self.average.load_state_dict(state_dict)
        if state_dict.get("standing") is not None:
            self.standing = Standing.from_state_dict(state_dict["standing"])
        self.bounds.load_state_dict(state_dict.get("bounds", {}))
        self.counted = int(state_dict.get("counted", 0))
        if isinstance(self.controller, Stateful) and state_dict.get("controller") == type(self.controller).__name__:
            self.controller.load_state_dict(state_dict["controller_state"])
            self._remembers = True

    def notes(self) -> list[str]:
        """Sentences for a report: a multiplier at an end of its interval, and a margin below the limit."""
        below = self.margin.sentence() if self.steps else ""
        return [*self.bounds.notes(), *([f"The multiplier steered to less than the limit: {below}."] if below else [])]

    # -- the step

    def _end_of_epoch(self, trainer: Trainer, module: PreferenceAlignment, epoch: int) -> None:
        if int(module.dual_epoch) >= epoch:
            return  # taken already: the hook fired twice, before and after a resume
        if self.ship == "average" and epoch >= self.epochs.warmup:
            self.average.add(_iterate(module))  # a policy with the multiplier that it was trained under
        if self.estimator is None or not self._estimates_at(epoch):
            module.dual_epoch.fill_(epoch)
            publish_multiplier(trainer, module)
            return
        estimate = self._estimate(trainer, module, self.estimator, epoch)
        before = module.multiplier.detach().to("cpu", copy=True)
        margin = self.margin.of(estimate, self.limit)
        moves = self._moves(trainer, epoch)
        after = before
        if moves:
            number, total = self.epochs.number(epoch, complete_epochs(trainer))
            after = self.controller.step(before, estimate, self.limit - margin, number, total)
            self._remembers = True
        agree(after, module.device)
        # the two change together: a checkpoint of one without the other would take a step twice, or never
        module.multiplier.copy_(after)
        module.dual_epoch.fill_(epoch)
        self.standing = standing(constraints(trainer), self.limit, estimate, epoch)
        if self.stop is not None:
            counts = self.stop.counts(self.standing, before, after, self.controller.maximum, moves)
            self.counted = self.counted + 1 if counts else 0
        if trainer.is_global_zero:
            reads = module.objective.reads_multiplier
            for line in dual_lines(self.standing, estimate, before, after, reads):
                log.info("%s", line)
        if self.steps and trainer.is_global_zero:
            cost, top = estimate.mean.double(), self.controller.maximum
            self.bounds.see(suffixes(trainer, before), before, after, cost, self.limit, top)
        curves = {**self.controller.curves(), **({"margin": margin} if self.margin else {})}
        used = {f"dual/{name}": value if moves or name == "margin" else torch.zeros_like(value)
                for name, value in curves.items()}  # fmt: skip
        publish(trainer, measured(trainer, module.multiplier, estimate, self.standing, used))
        show(trainer, estimate.samples[: self.show_samples])

    def _estimate(
        self, trainer: Trainer, module: PreferenceAlignment, estimator: CostEstimator, epoch: int
    ) -> CostEstimate:
        data = connected(trainer).datamodule
        with failing_together():
            seed = module.seed if self.seed is None else self.seed
            estimate = estimator(module, data, seed=seed, epoch=epoch).cpu()
        if not bool(estimate.mean.isfinite().all()):
            raise FloatingPointError(f"the estimated cost is {estimate.mean.tolist()}")
        if estimate.mean.shape != module.multiplier.shape:
            raise ValueError(
                f"the estimated cost has shape {list(estimate.mean.shape)}, the module's multiplier "
                f"{list(module.multiplier.shape)}: model.multiplier takes one start value for each constraint"
            )
        return estimate

    def _moves(self, trainer: Trainer, epoch: int) -> bool:
        """Whether the end of ``epoch`` takes a step."""
        return self.steps and self.epochs.moves(epoch, complete_epochs(trainer))

    def _estimates_at(self, epoch: int) -> bool:
        return self.estimator is not None and self.epochs.estimates(epoch)

    def _idle(self, module: LightningModule) -> bool:
        """Whether there is nothing to do: a module without a multiplier, and nobody asked for one to be moved."""
        return not self.steps and self.estimator is None and not isinstance(module, PreferenceAlignment)


def dual_of(trainer: Trainer) -> DualAscent | None:
    """What estimates costs and moves the multiplier, if anything does."""
    return next((c for c in connected(trainer).callbacks if isinstance(c, DualAscent)), None)


def _aligned(module: LightningModule) -> PreferenceAlignment:
    if not isinstance(module, PreferenceAlignment):
        raise TypeError(f"DualAscent moves the multiplier of a PreferenceAlignment, {type(module).__name__} has none")
    return module


def _iterate(module: PreferenceAlignment) -> dict[str, Tensor]:
    reshard(module.pair)
    trained = {name: p.data for name, p in module.named_parameters() if p.requires_grad}
    return {**trained, "multiplier": module.multiplier}
