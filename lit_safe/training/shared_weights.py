"""Asks a pair to divide its weights over ranks, where the trainer's strategy wants that."""

from typing import Any

from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from lit_safe.errors.message import SettingError
from lit_safe.protocols.pair import Shardable

OTHERS = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)


def check_strategy(strategy: Any) -> None:
    """Refuse strategies that shard models in other ways, before anything is read.

    A step here is several backward passes, one clipping by the norm of the whole gradient, and one step of a torch
    optimizer. Lightning's DeepSpeedStrategy would leave out the clipping and add up no gradients. With bf16-mixed
    it would cast the multiplier and the labels to bf16.

    Raises:
        ValueError: Names the strategy, and the one to use instead.
    """
    if isinstance(strategy, OTHERS) and not hasattr(strategy, "offload"):
        raise SettingError(
            f"trainer.strategy {type(strategy).__name__}: not supported: -c configs/trainer/fsdp2.yaml divides "
            "weights, gradients and the optimizer's state over ranks, and -c configs/trainer/deepspeed_zero2.yaml all "
            "but the weights"
        )


def share_weights(pair: Any, trainer: Any) -> None:
    """Tell a pair, before it is loaded, the plan of the trainer's strategy. Does nothing if the strategy has none.

    Raises:
        ValueError: If the pair's models cannot be sharded.
    """
    strategy = None if trainer is None else trainer.strategy
    check_pair = getattr(strategy, "check_pair", None)
    if check_pair is not None:
        check_pair(pair)
    plan = getattr(strategy, "plan", None)
    if plan is None:
        return
    if not isinstance(pair, Shardable):
        raise SettingError(
            f"trainer.strategy {type(strategy).__name__}: a {type(pair).__name__} cannot be sharded: use "
            "--trainer.strategy ddp"
        )
    pair.shard_over(plan)


def reshard(pair: Any) -> None:
    """Give back the weights that passes without gradient have left whole. Anything but a sharded pair has none."""
    if isinstance(pair, Shardable):
        pair.reshard()
