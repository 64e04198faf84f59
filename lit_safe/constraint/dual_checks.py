"""Compares limit, multiplier, constraints, controller and estimator, before anything is trained.

Letters: C constraints.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from lit_safe.constraint.controllers.settings import check_shapes, listed
from lit_safe.constraint.controllers.subgradient import ProjectedSubgradient
from lit_safe.constraint.costs import Checkable, CostEstimator
from lit_safe.constraint.limits import check_limit
from lit_safe.errors.message import SettingError
from lit_safe.protocols.trainer import connected
from lit_safe.training.module import PreferenceAlignment

if TYPE_CHECKING:
    from lit_safe.constraint.dual_ascent import DualAscent


def check_dual(dual: "DualAscent", trainer: Trainer, module: PreferenceAlignment, data: Any) -> None:
    """All comparisons.

    Raises:
        ValueError: If shapes differ, a callback averages the multiplier, or controller or estimator cannot work.
    """
    if dual.steps:
        _check_that_it_may_move(dual, trainer, module)
    if module.multiplier_auto:
        module.size_multiplier(data.constraints)
        if dual.controller.own_start:
            raise SettingError(f"model.multiplier is auto, and dual.controller {dual.controller.own_start}")
    check_shapes(module.multiplier, limit=dual.limit, margin=dual.margin.values)
    start = start_of(dual, module)
    constraints: Sequence[str] = data.constraints
    if module.multiplier.ndim and len(module.multiplier) != len(constraints):
        raise SettingError(f"{len(module.multiplier)} multipliers for the data's constraints {list(constraints)}")
    dual.margin.check(dual.limit, constraints)
    top = dual.controller.maximum
    if dual.steps and bool((start > top.to(start.dtype)).any()):
        raise SettingError(f"multiplier {start.tolist()} starts above its maximum {listed(top)}")
    if dual.estimator is None:
        return
    shape = [] if len(constraints) == 1 else [len(constraints)]
    if list(module.multiplier.shape) != shape:
        raise SettingError(
            f"model.multiplier has shape {list(module.multiplier.shape)} and the data have {len(constraints)} "
            f"constraints, {', '.join(constraints)}: give {'one number' if not shape else f'a list of {shape[0]}'}"
        )
    if isinstance(dual.estimator, Checkable) and not _fitted_later(dual.estimator, trainer):
        dual.estimator.check(data, len(constraints))
        check_limit(dual.limit - dual.margin.values, getattr(dual.estimator, "cost", None))


def start_of(dual: "DualAscent", module: PreferenceAlignment) -> Tensor:
    """The multiplier of the first epoch, [] or [C]; for ``auto``, one that the controller allows until it is estimated.

    Raises:
        ValueError: If the controller's settings do not fit the number of constraints, or the start is out of range.
    """
    given, rule = module.multiplier, dual.controller
    if module.multiplier_auto:
        allowed = rule.maximum.clamp(max=1.0).maximum(rule.minimum)
        given = allowed.to(given).expand(given.shape)
    return rule.start(given, module.objective.beta)


def _check_that_it_may_move(dual: "DualAscent", trainer: Trainer, module: PreferenceAlignment) -> None:
    if not module.objective.reads_multiplier:
        rule = dual.controller
        if isinstance(rule, ProjectedSubgradient):
            what, leave = f"dual.lr is {rule.lr.tolist()}", "leave dual.lr at 0"
        else:
            what, leave = f"dual.controller is {type(rule).__name__}", "leave dual.controller out"
        raise SettingError(
            f"{what}, and {type(module.objective).__name__} does not read the multiplier: "
            f"{leave}, or name an objective that reads it (configs/objective/c_dpo.yaml)"
        )
    averaging = [c for c in connected(trainer).callbacks if isinstance(c, WeightAveraging)]
    if averaging:
        raise SettingError(
            f"{type(averaging[0]).__name__} averages buffers, the multiplier among them, and a resumed run would "
            "take its step twice: use --dual.ship average, or --dual.lr 0"
        )


def _fitted_later(estimator: CostEstimator, trainer: Trainer) -> bool:
    """Whether a callback fits the estimator's scorer after training has started."""
    folder = getattr(getattr(estimator, "cost", None), "folder", None)
    fitting = [getattr(c, "cost", None) for c in connected(trainer).callbacks if getattr(c, "fit_cost", False)]
    return folder is not None and any(getattr(cost, "folder", None) == folder for cost in fitting)
