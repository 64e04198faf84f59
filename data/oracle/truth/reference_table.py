"""The reference's response probabilities for every prompt, enumerated once for all runs of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer

from data.oracle.truth.enumeration import Floats, enumerate_policy, world_ids
from data.oracle.world import oracle_world
from lit_safe.precision import run_precision
from lit_safe.protocols.trainer import connected


class ReferenceTable(Callback):
    """Writes the log-probabilities of the final policy of fine-tuning, which is the reference of the later runs.

    Args:
        path: The file to write, of NumPy's ``npz``: ``reference_PK`` [P, K] in nats, the last cell malformed text.
        prompts: Number of the world's prompts, as in ``oracle_world``. This and the next two options must equal the
            data's.
        hopeless: Whether the world has the prompt without any safe response.
        seed: Seed of the world.
        batch_size: Number of sequences scored at once.
    """

    def __init__(
        self, path: str, prompts: int = 64, hopeless: bool = False, seed: int = 0, batch_size: int = 512
    ) -> None:
        super().__init__()
        self.path = Path(path)
        self.options: dict[str, Any] = {"prompts": prompts, "hopeless": hopeless, "seed": seed}
        self.batch_size = batch_size

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Enumerate the policy and write the file."""
        pair: Any = pl_module.pair
        ids = world_ids(oracle_world(**self.options), connected(trainer).datamodule)
        with run_precision(pl_module, pl_module.device):
            reference_PK = enumerate_policy(pair, *ids, batch=self.batch_size)
        if trainer.is_global_zero:
            np.savez_compressed(self.path, reference_PK=reference_PK)


def read_reference(path: Path) -> Floats:
    """[P, K] log-probabilities that ``ReferenceTable`` wrote."""
    with np.load(path, allow_pickle=False) as found:
        return np.asarray(found["reference_PK"], np.float64)
