"""The reference is in memory only in runs that ask for it, and what is announced says so."""

from pathlib import Path
from typing import Any

import pytest
from lightning import Callback

from lit_safe.anchors.preferred_nll import PreferredNLL
from lit_safe.anchors.reference_support import ReferenceSupport
from lit_safe.constraint.costs.labels import LabelledUnsafe
from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.objectives import KTO
from lit_safe.training.reference_plan import memory_of_a_step
from lit_safe.training.sft import SupervisedFineTuning
from models.pair import PolicyReference
from models.sources import TinyLlama
from tests.lit_safe.pair_world import adamw, aligned, pairs, talk, trainer
from tests.lit_safe.training.test_reference_cache import Counting

AHEAD: dict[str, Any] = {"precompute_reference": True}


class Watch(Callback):
    """What is announced when training begins, and whether the reference is in memory in each step."""

    def __init__(self) -> None:
        self.announced, self.held = -1, set[bool]()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.announced = memory_of_a_step(pl_module, trainer, trainer.datamodule).reference

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.held.add(pl_module.pair._open_reference is not None)


@pytest.mark.parametrize(
    ("options", "callbacks", "held"),
    [
        (AHEAD, [], False),
        (AHEAD | {"anchor": PreferredNLL(0.5)}, [], False),
        ({"precompute_reference": False}, [], True),
        (AHEAD | {"anchor": ReferenceSupport()}, [], True),
        (AHEAD | {"objective": KTO()}, [], True),
        (AHEAD, [DualAscent(estimator=LabelledUnsafe(), lr=0.0)], True),
        (AHEAD, [DualAscent(lr=0.0)], False),
    ],
    ids=[
        "scored ahead",
        "nll",
        "scored in each step",
        "an anchor reads it",
        "an objective",
        "costs are estimated",
        "none is",
    ],
)
def test_a_step_holds_the_reference_only_if_the_run_asks_for_it(
    options: dict[str, Any], callbacks: list[Callback], held: bool, tmp_path: Path
) -> None:
    watch, module, data = Watch(), aligned(**options), pairs()
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=2, callbacks=[watch, *callbacks])
    run.fit(module, data)
    assert watch.held == {held}
    assert (watch.announced > 0) is held
    # doctor has a trainer that trains nothing yet
    fresh = aligned(**options)
    fresh.configure_model()
    planned = trainer(tmp_path, max_epochs=1, limit_train_batches=2, callbacks=callbacks)
    assert memory_of_a_step(fresh, planned, data).reference == watch.announced


def test_fine_tuning_holds_none(tmp_path: Path) -> None:
    watch, module = Watch(), SupervisedFineTuning(PolicyReference(TinyLlama()), adamw(0.01))
    trainer(tmp_path, max_steps=2, callbacks=[watch]).fit(module, talk())
    assert watch.held == {False}
    assert watch.announced == 0


def test_a_validation_reads_the_scores_of_its_pairs_which_are_stored_once(tmp_path: Path) -> None:
    found = []
    kept = {"precompute_reference": True, "reference_cache_dir": str(tmp_path / "kept")}
    for options in ({"precompute_reference": False}, kept):
        pair = Counting(TinyLlama())
        run = trainer(tmp_path, max_epochs=3, limit_val_batches=1.0)
        run.fit(aligned(pair=pair, **options), pairs())
        found.append((pair.scored, float(run.callback_metrics["eval/loss"])))
    (often, in_steps), (once, ahead) = found
    assert (often, once) == (3 * 2 * (26 + 4), 2 * (26 + 4))
    assert ahead == pytest.approx(in_steps, abs=1e-5)
    pair = Counting(TinyLlama())
    trainer(tmp_path, limit_val_batches=1.0).validate(aligned(pair=pair, **kept), pairs(), verbose=False)
    assert pair.scored == 0, "neither does a later command"
