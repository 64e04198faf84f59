"""Lightning's strategy for DeepSpeed's ZeRO-2: gradients and moments are divided over ranks, weights are not.

ZeRO-2 is ``P_os+g`` of Rajbhandari et al. 2020 (arXiv:1910.02054, section 5.2).
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.overrides.distributed import _sync_module_states
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.strategy import Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from models.extras import require
from models.sharding.flat import Part, combined, part_of

ELEMENTWISE = (SGD, Adam, AdamW)
"""Optimizers that treat each number alone. DeepSpeed joins the weights of a group in a vector and cuts it anywhere."""


class ZeroTwo(DDPStrategy):
    """Each rank holds all weights, and a part of the gradients and of the optimizer's state (DeepSpeed's ZeRO-2).

    DeepSpeed is given only the weights that train, in fp32. The reference, a frozen base and the multiplier are not its
    concern, and products follow the trainer's precision. It clips the gradient in its own step, by the norm over all
    ranks. A checkpoint is one file with whole tensors, the same as that of one process: a run continues on another
    number of ranks and under another strategy, and every command reads its checkpoints.

    Args:
        bucket: Number of gradients that are sent together. Buffers of this size are held: 4 bytes each.
        process_group_backend: Null takes NCCL for GPUs and gloo for CPUs.

    Raises:
        ValueError: If ``bucket`` is not positive.
    """

    def __init__(self, bucket: int = 50_000_000, process_group_backend: str | None = None) -> None:
        if bucket < 1:
            raise ValueError(f"bucket must be >= 1, got {bucket}")
        super().__init__(process_group_backend=process_group_backend)
        self.bucket = bucket
        self._engine: Any = None
        self._weights: list[list[nn.Parameter]] = []  # of each group of the optimizer
        self._completes = True  # whether the next backward pass is the last of its step

    def check_pair(self, pair: Any) -> None:
        """Refuse a pair that does not train in fp32, before it is loaded.

        Raises:
            ValueError: Names the setting.
        """
        if getattr(pair, "trainable_dtype", "float32") != "float32" or str(self.precision_plugin.precision)[:2] == "64":
            raise ValueError(
                "trainer.strategy ZeroTwo: weights train in fp32 alone: leave out trainable_dtype, and set "
                "--trainer.precision 32-true or bf16-mixed; or use -c configs/trainer/fsdp2.yaml"
            )

    def setup_environment(self) -> None:
        """Meet the other ranks.

        Raises:
            ModuleNotFoundError: If DeepSpeed is not installed.
        """
        if self.root_device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed takes a GPU that the trainer leaves alone
        require("deepspeed", extra="deepspeed", reason="trainer.strategy ZeroTwo")
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """Build the optimizer, and give DeepSpeed the weights that train."""
        super().setup(trainer)
        if trainer.state.fn == TrainerFn.FITTING:
            self._start(*self.optimizers)

    def configure_ddp(self) -> None:
        """Give all ranks the first one's weights. Nothing is wrapped: DeepSpeed hears of gradients by hooks."""
        assert self.model is not None
        _sync_module_states(self.model)

    def _start(self, optimizer: Optimizer) -> None:
        if type(optimizer) not in ELEMENTWISE:
            raise ValueError(
                f"trainer.strategy ZeroTwo: {type(optimizer).__name__} may not treat each number alone, and it "
                "would get vectors cut anywhere: use torch.optim.AdamW, Adam or SGD, or -c configs/trainer/fsdp2.yaml"
            )
        deepspeed = require("deepspeed", extra="deepspeed", reason="trainer.strategy ZeroTwo")
        deepspeed.init_distributed(self._process_group_backend, dist_init_required=False)
        self._weights = [list(group["params"]) for group in optimizer.param_groups]
        held = nn.ParameterList([weight for group in self._weights for weight in group])
        index = self.root_device.index
        settings = {
            "train_micro_batch_size_per_gpu": 1,  # for its own lines about speed alone
            "gradient_accumulation_steps": 1,
            "steps_per_print": 2**62,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {
                "stage": 2,
                "overlap_comm": self.root_device.type != "cpu",
                "reduce_bucket_size": self.bucket,
                "allgather_bucket_size": self.bucket,
            },
        }
        self._engine, *_ = deepspeed.initialize(
            args=Namespace(device_rank=-1 if index is None else index),
            model=held,
            model_parameters=list(held.parameters()),
            optimizer=optimizer,
            config=settings,
            dist_init_required=False,
        )

    def teardown(self) -> None:
        """Leave the weights without DeepSpeed's hooks."""
        if self._engine is not None:
            self._engine.destroy()
            self._engine = None
        super().teardown()

    # -- a step

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """A block whose backward passes are followed by another one of the same step."""
        self._completes = False
        try:
            yield
        finally:
            self._completes = True

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Add the gradient of ``closure_loss`` to this rank's part of the step's gradient."""
        self._engine.set_gradient_accumulation_boundary(self._completes)
        self._engine.backward(closure_loss)
        return closure_loss

    def clip_at(self, bound: float) -> None:
        """Scale the gradient of the next step to a norm of at most ``bound``; infinity leaves it as it is."""
        self._engine.optimizer.clip_grad = 0.0 if bound == float("inf") else bound

    def optimizer_step(
        self,
        optimizer: Optimizer,
        closure: Callable[[], Any],
        model: LightningModule | nn.Module | None = None,
        **kwargs: Any,
    ) -> Any:
        """Clip, update this rank's part of the weights, and gather them all. A norm that is not finite changes none."""
        closed = closure()
        self._engine.step()
        return closed

    def norm_of_step(self) -> Tensor:
        """The norm [] of the last step's gradient over all ranks, before clipping."""
        return torch.as_tensor(self._engine.get_global_grad_norm(), dtype=torch.float32, device=self.root_device)

    # -- checkpoints

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state as it is in one process. The first rank gets it, on the CPU. All ranks call this."""
        if self._engine is None:
            return Strategy.optimizer_state(self, optimizer)
        groups, state, first = [], {}, 0
        for group, weights in zip(_inner(optimizer).param_groups, self._weights, strict=True):
            (flat,) = group["params"]
            held = _inner(optimizer).state.get(flat, {})
            for number, part in enumerate(self._parts(weights, flat), first):
                whole = {name: self._whole(value, flat, part) for name, value in held.items()}
                if whole:
                    state[number] = whole
            groups.append({**group, "params": list(range(first, first + len(weights)))})
            first += len(weights)
        return {"state": state, "param_groups": groups}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Give each rank its part of the optimizer's state."""
        (optimizer,), (stored,) = self.optimizers, checkpoint["optimizer_states"]
        inner = _inner(optimizer)
        groups, state = [], {}
        for index, (group, old, weights) in enumerate(
            zip(inner.param_groups, stored["param_groups"], self._weights, strict=True)
        ):
            (flat,) = group["params"]
            of_weights = [stored["state"][number] for number in old["params"] if number in stored["state"]]
            if of_weights:
                names = of_weights[0]
                parts = self._parts(weights, flat)
                state[index] = {
                    name: combined([values[name] for values in of_weights], parts, flat)
                    if _is_moment(names[name], weights[0].shape)
                    else names[name]
                    for name in names
                }
            groups.append({**old, "params": [index]})
        inner.load_state_dict({"state": state, "param_groups": groups})

    def _parts(self, weights: list[nn.Parameter], flat: Tensor) -> list[Part]:
        """Which part of each weight lies where in this rank's vector of the group."""
        return part_of([weight.numel() for weight in weights], [w.shape for w in weights], self.global_rank, len(flat))

    def _whole(self, value: Any, flat: Tensor, part: Part) -> Any:
        """One weight's part of an entry of the state, from all ranks."""
        if not _is_moment(value, flat.shape):
            # a copy for each weight: torch would count a shared number of steps once for each of them
            return value.to("cpu", copy=True) if isinstance(value, Tensor) else value
        found = torch.zeros(part.shape.numel(), dtype=value.dtype, device=value.device)
        found[part.inside] = value[part.held]
        torch.distributed.all_reduce(found)
        return found.view(part.shape).cpu() if self.is_global_zero else torch.empty(0)


def _inner(optimizer: Any) -> Optimizer:
    """Torch's optimizer, whose parameters are this rank's vectors."""
    inner: Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


def _is_moment(value: Any, shape: torch.Size) -> bool:
    """Whether an entry of the state has a number for each weight, such as a moment."""
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape == shape
