"""Whether, for which pairs and where the reference is scored before training."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lightning import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_safe.execution.quiet import quiet
from lit_safe.precision import compute_dtype
from lit_safe.types import PackedBatch

Precompute: TypeAlias = bool | Literal["auto"]


def pairs_to_score(trainer: Trainer, data: Any, setting: Precompute, kept: str | None) -> Iterable[PackedBatch] | None:
    """Batches of the pairs to score before the first step; None if every step scores its own.

    ``auto`` scores ahead if the run uses its pairs more than once, or if a folder keeps the scores for other runs. A
    resumed run gets the same batches as the run that it continues, so that scores round alike.

    Args:
        trainer: As training begins.
        data: If it has no ``batches_of_steps``, ``auto`` scores nothing ahead, and True all training pairs.
        setting: ``precompute_reference``.
        kept: ``reference_cache_dir``.
    """
    if setting is False:
        return None
    total, each = int(trainer.estimated_stepping_batches), max(1, int(trainer.num_training_batches))
    if hasattr(data, "batches_of_steps"):
        batches, uses = data.batches_of_steps(total, each)
    elif setting == "auto":
        return None
    else:
        batches, uses = data.batches_of("train"), total / each
    if setting == "auto" and kept is None and uses <= 1:
        rank_zero_info("reference: scored in every step, because this run uses each pair once")
        return None
    return batches


def file_of_scores(module: Any, folder: str | None) -> Path | None:
    """The file that keeps the scores of this reference: in ``folder``, or else in the run folder.

    Its name is a hash of everything that a score depends on besides the tokens: the reference's weights and
    configuration, and the type of products. None if the trainer has no folder of its own.
    """
    root = Path(module.trainer.default_root_dir)
    if folder is None and root.resolve() == Path.cwd():
        return None
    with quiet(module, seed=0):
        computed = f"{module.pair.reference_digest()}, products in {compute_dtype(module.device)}"
    name = hashlib.sha256(computed.encode()).hexdigest()[:32]
    return (root / "reference" if folder is None else Path(folder).expanduser()) / f"reference-{name}.npz"
