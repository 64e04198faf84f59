"""Lightning's strategy for models that are divided over ranks with torch's FSDP2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.strategy import Strategy
from torch import Tensor

from lit_safe.sharded import as_shared, gathered
from models.sharding.plan import ShardingPlan


class FullySharded(ModelParallelStrategy):
    """Divides weights, gradients and the optimizer's state over all ranks (FSDP2), in every decoder layer.

    A checkpoint is one file with whole tensors, the same as that of one process. So a run continues on another number
    of ranks, under another strategy, and every command reads its checkpoints. The first rank gathers one tensor at a
    time, and holds the whole file's contents in the memory of the CPU: 12 bytes for each weight that trains.

    Args:
        offload: Keep weights and the optimizer's state in the memory of the CPU. Each layer is copied to the device
            before it computes, and the optimizer steps on the CPU.
        process_group_backend: Null takes NCCL for GPUs and gloo for CPUs. ``offload`` needs "cpu:gloo,cuda:nccl".
    """

    def __init__(self, offload: bool = False, process_group_backend: str | None = None) -> None:
        super().__init__(save_distributed_checkpoint=False, process_group_backend=process_group_backend)
        self.offload = offload

    @property
    def plan(self) -> ShardingPlan | None:
        """How the module's pair divides its models; None before the ranks have met, and in commands without ranks."""
        if self._device_mesh is None:
            return None
        return ShardingPlan(self.device_mesh["data_parallel"], self.root_device, self.offload)

    def setup_environment(self) -> None:
        """Meet the other ranks. All of them share each weight."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def model_to_device(self) -> None:
        """Move what is not sharded, such as the multiplier, to the device."""
        if not self.offload:
            super().model_to_device()
            return
        assert self.lightning_module is not None
        for module in self.lightning_module.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(self.root_device)

    # A checkpoint is read after the model is built and before the optimizer, as under every other strategy

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """No: the weights are sharded before this strategy's setup."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Yes, with ``load_optimizer_state_dict``."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The module's state. Its shared tensors are gathered when the checkpoint is saved."""
        return Strategy.lightning_module_state_dict(self)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimizer's state, in the form that it has on one process."""
        return Strategy.optimizer_state(self, optimizer)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Gather every shared tensor on the first rank, which writes the file. All ranks must call this."""
        Strategy.save_checkpoint(self, gathered(checkpoint, self.is_global_zero), filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a whole checkpoint, on every rank."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Give each rank its part of the weights."""
        assert self.lightning_module is not None
        mine = self.lightning_module.state_dict()
        state = {
            name: as_shared(value, mine[name]) if name in mine and isinstance(value, Tensor) else value
            for name, value in checkpoint["state_dict"].items()
        }
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give each rank its part of the optimizer's state. Parameters have the numbers of the optimizer's groups."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            parts = {
                number: {name: _part(value, parameters[number]) for name, value in values.items()}
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": parts})


def _part(value: Any, parameter: Tensor) -> Any:
    """This rank's part of an entry of the optimizer's state: of a moment, which has its parameter's shape."""
    same = isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim > 0
    return as_shared(value, parameter) if same else value
