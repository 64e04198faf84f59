"""What is computed once, before the first step of a preference run: states of frozen layers and reference scores."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any

from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_safe.protocols.pair import FreesReference, HasTrunk
from lit_safe.training.reference_cache import ReferenceCache
from lit_safe.training.reference_plan import (
    file_of_scores,
    pairs_to_score,
    reference_stays,
    stored_scores,
    validation_batches,
)
from lit_safe.training.trunk_cache import TrunkCache
from lit_safe.types import PackedBatch

if TYPE_CHECKING:
    from lit_safe.training.module import PreferenceAlignment


def fill_stores(module: PreferenceAlignment, data: Any) -> None:
    """Store the states of frozen layers, score the reference, prepare the anchor. The reference may leave memory then.

    Validations read what is stored too.
    """
    trainer, pair = module.trainer, module.pair
    storage = pair.trunk_storage() if isinstance(pair, HasTrunk) else None
    if storage is not None:
        used = pairs_to_score(trainer, data, True, None) or ()
        module.trunk_cache = TrunkCache(storage)
        module.trunk_cache.fill(module, lambda: chain(used, validation_batches(trainer, data)))  # type: ignore[arg-type]  # batches of pairs
    batches = None if module.reference_free else module.scores_ahead(trainer, data)
    if batches is not None:
        _score(module, chain(batches, validation_batches(trainer, data)))
    elif module.reference_free:
        rank_zero_info("reference: not scored, because the objective needs none")
    elif module.precompute_reference == "auto" and hasattr(data, "batches_of_steps"):
        rank_zero_info("reference: scored in every step, because this run uses each pair once")
    module.anchor.prepare(module, data)
    stays = reference_stays(module, trainer, module.reference_free or batches is not None)
    if not stays and isinstance(pair, FreesReference):
        pair.free_reference()


def find_scores(module: PreferenceAlignment) -> None:
    """Use the reference scores that an earlier run has stored, if the trainer validates or tests and does not fit."""
    fitting = module.trainer.state.fn == TrainerFn.FITTING or module.reference_cache is not None
    if fitting or module.reference_free or module.precompute_reference is False:
        return
    path = stored_scores(module, module.reference_cache_dir)
    if path is not None:
        module.reference_cache = ReferenceCache()
        module.reference_cache.load(path)


def _score(module: PreferenceAlignment, batches: Iterable[PackedBatch]) -> None:
    """Score the responses of ``batches`` with the reference, except those whose scores are stored."""
    path = file_of_scores(module, module.reference_cache_dir)
    module.reference_cache = cache = ReferenceCache()
    if path is not None:
        cache.load(path)
    cache.fill(module, batches if module.trunk_cache is None else map(module.with_trunk, batches), path)
