"""Run by ``test_sharded.py`` and ``test_zero.py``: fits a tiny language model in one process and on two ranks.

Each fit runs in processes of its own, which are forked after the imports.
"""

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer

from lit_safe.constraint.costs.rollout import RolloutCost
from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.objectives import DPO, ConstrainedDPO
from lit_safe.runs.run_checkpoint import RunCheckpoint
from lit_safe.sharded import whole
from lit_safe.training.module import PreferenceAlignment
from models.adaptation import LoRA
from models.pair import PolicyReference
from models.reference import AdapterOff
from models.sharding.strategy import FullySharded
from models.sharding.zero import ZeroTwo
from models.sources import TinyLlama
from tests.lit_safe.pair_world import pairs, trainer
from tests.lit_safe.runs.test_checkpoints import Full
from tests.lit_safe.training.module_two_ranks import Length

KILLED_AT, SAVED_AT = 5, 3  # steps
STRATEGIES: dict[str, Any] = {"fsdp2": FullySharded, "zero2": lambda: ZeroTwo(bucket=1000)}


class Kept(Callback):
    """Keeps what this rank ended with, and how many numbers of the policy it held between steps."""

    def __init__(self, file: Path, kill: bool = False) -> None:
        self.file, self.kill = file, kill
        self.held = 0

    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
        self.held = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in module.parameters())
        if self.kill and trainer.global_step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        seen = {name: float(value) for name, value in trainer.callback_metrics.items() if "/perf/" not in name}
        trained = [whole(p.detach()).flatten() for p in module.parameters() if p.requires_grad]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        kept = {"weights": torch.cat(trained), "multiplier": float(module.multiplier), "seen": seen, "held": self.held}
        torch.save({**kept, "estimate": module.pair.memory_estimate(64, 16)._asdict()}, self.file)


def fit(folder: Path, rank: int, ranks: int, kind: str, *, kill: bool = False, resume: Path | None = None) -> None:
    """One fit as one of ``ranks`` processes."""
    strategy: Any = STRATEGIES[sys.argv[2]]() if ranks > 1 else "auto"
    lora = kind == "lora"
    # a step is the gradient itself: Adam would blow the rounding of a gradient near 0 up to a whole step
    optimizer: Any = partial(torch.optim.SGD, lr=0.1, momentum=0.5)
    if kind == "adamw":
        optimizer = partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1)
    pair = PolicyReference(
        TinyLlama(),
        adaptation=LoRA(r=4) if lora else None,
        reference=AdapterOff() if lora else None,
        gradient_checkpointing=lora,
    )
    callbacks: list[Callback] = [Kept(folder / f"{rank}.pt", kill), RunCheckpoint(every_n_steps=SAVED_AT)]
    if kind == "dual":
        estimator = RolloutCost(Length(), samples_per_prompt=3, max_new_tokens=8)
        callbacks.insert(0, DualAscent(limit=0.0, lr=0.5, estimator=estimator, ship="average"))
    module = PreferenceAlignment(
        pair,
        ConstrainedDPO() if kind == "dual" else DPO(),
        optimizer,
        multiplier=0.5 if kind == "dual" else 0.0,
        gradient_clip_norm=0.05,
        precompute_reference=kind in ("cached", "adamw"),
    )
    trainer(
        folder,
        devices=ranks,
        strategy=strategy,
        max_epochs=2,
        limit_val_batches=1.0,
        callbacks=callbacks,
        enable_checkpointing=True,
    ).fit(
        module,
        pairs(pairs_per_step=5, micro_batch_pairs=2, eval_batch_pairs=3, seed=1),
        ckpt_path=resume,
        weights_only=True,
    )


def forked(ranks: int, run: Callable[[int], None]) -> list[int]:
    """Calls ``run(rank)`` in ``ranks`` new processes; their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(ranks):
        if child := os.fork():
            children.append(child)
            continue
        if ranks > 1:  # as torchrun sets them
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "GROUP_RANK": "0"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(ranks)}
            os.environ |= {"TORCHELASTIC_RUN_ID": "tests"}
        status = 1
        try:
            torch.set_num_threads(1)
            run(rank)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)  # a thread of gloo may still hold Python objects (tests/ranks.py)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def both(folder: Path, kind: str) -> None:
    """In one process, then on two ranks."""
    for ranks in (1, 2):
        place = folder / kind / str(ranks)
        status = forked(ranks, lambda rank, place=place, ranks=ranks: fit(place, rank, ranks, kind))
        assert status == [0] * ranks, (kind, ranks, status)


def killed_and_resumed(folder: Path, kind: str) -> None:
    """Two ranks are killed between two steps, and another two and one process continue."""
    status = forked(2, lambda rank: fit(folder / "killed", rank, 2, kind, kill=True))
    assert status == [-signal.SIGKILL] * 2, status
    last = folder / "killed" / "checkpoints" / "last.ckpt"
    for ranks in (2, 1):  # first on as many ranks, into another folder; then on one
        place = folder / "resumed" / str(ranks)
        status = forked(ranks, lambda rank, place=place, ranks=ranks: fit(place, rank, ranks, kind, resume=last))
        assert status == [0] * ranks, (ranks, status)


def full_disk(folder: Path, kind: str) -> None:
    """The first rank's disk is full after the first save. Each rank leaves its error as text."""
    place = folder / "full"

    def run(rank: int) -> None:
        plain = Path.open

        def opened(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            saved = (place / "checkpoints" / "last.ckpt").exists()
            return Full(self, "w") if mode == "wb" and saved else plain(self, mode, *args, **kwargs)

        Path.open = opened  # type: ignore[assignment,method-assign]  # a disk that fills up
        try:
            fit(place, rank, 2, kind)
        except Exception as error:
            (place / f"{rank}.txt").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")

    assert forked(2, run) == [0, 0]


if __name__ == "__main__":
    where = Path(sys.argv[1])
    for what in sys.argv[3:]:
        if what.startswith("killed "):
            killed_and_resumed(where, what.removeprefix("killed "))
        elif what.startswith("full "):
            full_disk(where, what.removeprefix("full "))
        else:
            both(where, what)
