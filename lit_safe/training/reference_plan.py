"""Whether, for which pairs and where the reference is scored before training, and whether it stays in memory."""

import hashlib
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lightning import Trainer

from lit_safe.execution.quiet import quiet
from lit_safe.precision import compute_dtype
from lit_safe.protocols.pair import FreesReference
from lit_safe.protocols.run import ReadsReference
from lit_safe.protocols.trainer import connected
from lit_safe.types import MemoryEstimate, PackedBatch

Precompute: TypeAlias = bool | Literal["auto"]


def pairs_to_score(trainer: Trainer, data: Any, setting: Precompute, kept: str | None) -> Iterable[PackedBatch] | None:
    """Batches of the pairs to score before the first step; None if every step scores its own.

    ``auto`` scores ahead if the run uses its pairs more than once, or if a folder keeps the scores for other runs. A
    resumed run gets the same batches as the run that it continues, so that scores round alike.

    Args:
        trainer: As training begins, or before: then its settings say how many steps the run has.
        data: If it has no ``batches_of_steps``, ``auto`` scores nothing ahead, and True all training pairs.
        setting: ``precompute_reference``.
        kept: ``reference_cache_dir``.
    """
    if setting is False:
        return None
    total, each = _steps(trainer, data)
    if hasattr(data, "batches_of_steps"):
        batches, uses = data.batches_of_steps(total, each)
    elif setting == "auto":
        return None
    else:
        batches, uses = data.batches_of("train"), total / each
    return None if setting == "auto" and kept is None and uses <= 1 else batches


def _steps(trainer: Trainer, data: Any) -> tuple[int, int]:
    """Optimizer steps of the run and of an epoch."""
    if trainer.training:
        return int(trainer.estimated_stepping_batches), max(1, int(trainer.num_training_batches))
    each, limit = len(data.train_dataloader()), trainer.limit_train_batches
    each = max(1, min(each, limit) if isinstance(limit, int) else int(each * (1.0 if limit is None else limit)))
    bounds = [trainer.max_steps] if trainer.max_steps >= 0 else []
    bounds += [trainer.max_epochs * each] if trainer.max_epochs is not None and trainer.max_epochs >= 0 else []
    return min(bounds, default=each), each


def validation_batches(trainer: Trainer, data: Any) -> Iterator[Any]:
    """The batches of the split that the validations of a fit read; none if it has no validation."""
    counts = list(trainer.num_val_batches)
    if not any(counts):
        return iter(())
    return islice(data.val_dataloader(), None if math.inf in counts else int(sum(counts)))


def reference_stays(module: Any, trainer: Trainer, scored_ahead: bool) -> bool:
    """Whether the reference stays in memory while the policy trains.

    It does if steps score with it, or if something asks for it again and again: an objective that compares with
    responses to other prompts (KTO), an anchor, or a callback that measures costs or drift. Otherwise it leaves before
    the first step. Whatever asks for it later reads it again.
    """
    if not scored_ahead or not isinstance(module.pair, FreesReference) or module.anchor.reads_reference:
        return True
    if module.mismatch is not None:
        return True
    callbacks = connected(trainer).callbacks
    return any(isinstance(callback, ReadsReference) and callback.reads_reference for callback in callbacks)


def memory_of_a_step(module: Any, trainer: Trainer | None, data: Any) -> MemoryEstimate:
    """Bytes of a training step of a run, without the reference if it does not stay in memory.

    Args:
        module: Its pair is loaded. Fine-tuning has no ``scores_ahead``; ``reads_reference`` says what its steps use.
        trainer: None if no run is known; a reference is then counted.
        data: Set up.
    """
    needed: MemoryEstimate = module.pair.memory_estimate(*data.largest_micro_batch)
    if not hasattr(module, "scores_ahead"):
        return needed if getattr(module, "reads_reference", False) else needed._replace(reference=0)
    if trainer is None:
        return needed
    scored = module.reference_free or module.scores_ahead(trainer, data) is not None
    stays = reference_stays(module, trainer, scored)
    return needed if stays else needed._replace(reference=0)


def stored_scores(module: Any, folder: str | None) -> Path | None:
    """The file of this reference's scores that an earlier run wrote, if it exists."""
    place = _folder(module, folder)
    if place is None or not any(place.glob("reference-*.npz")):  # weights are hashed only if there is something to find
        return None
    path = file_of_scores(module, folder)
    return path if path is not None and path.exists() else None


def file_of_scores(module: Any, folder: str | None) -> Path | None:
    """The file that keeps the scores of this reference: in ``folder``, or else in the run folder.

    Its name is a hash of everything that a score depends on besides the tokens: the reference's weights and
    configuration, and the type of products. None if the trainer has no folder of its own.
    """
    place = _folder(module, folder)
    if place is None:
        return None
    with quiet(module, seed=0):
        computed = f"{module.pair.reference_digest()}, products in {compute_dtype(module.device)}"
    name = hashlib.sha256(computed.encode()).hexdigest()[:32]
    return place / f"reference-{name}.npz"


def _folder(module: Any, folder: str | None) -> Path | None:
    root = Path(module.trainer.default_root_dir)
    if folder is None:
        return None if root.resolve() == Path.cwd() else root / "reference"
    return Path(folder).expanduser()
