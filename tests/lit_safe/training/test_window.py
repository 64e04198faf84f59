"""What is logged of a window of optimizer steps, and what it costs."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback

from lit_safe.anchors.preferred_nll import PreferredNLL
from lit_safe.anchors.reference_mass import ReferenceMass
from lit_safe.anchors.reference_support import ReferenceSupport
from lit_safe.objectives import SafeDPO
from lit_safe.runs.run_checkpoint import RunCheckpoint
from lit_safe.training import stepping
from lit_safe.training.schedules import Linear
from lit_safe.training.sft import SupervisedFineTuning
from models.pair import PolicyReference
from models.sources import TinyLlama
from tests.lit_safe.pair_world import adamw, aligned, pairs, talk, trainer
from tests.lit_safe.waits import Waits


class Recorded(Callback):
    """What a module publishes, by step, and the sum of the losses that it went backward from."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}
        self.optimised: Counter[int] = Counter()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        publish, backward = pl_module.publish, pl_module.manual_backward

        def note(prefix: str, values: Any) -> None:
            publish(prefix, values)
            self.rows[pl_module.global_step] = {k: float(v) for k, v in values.items()}

        def note_loss(loss: torch.Tensor) -> None:
            self.optimised[pl_module.global_step + 1] += loss.item()
            backward(loss)

        pl_module.publish, pl_module.manual_backward = note, note_loss


def recorded(module: Any, data: Any, **options: Any) -> dict[int, dict[str, float]]:
    """What a fit logs, by step."""
    record = Recorded()
    options.setdefault("callbacks", []).insert(0, record)
    trainer(**{"max_epochs": 1, **options}).fit(module, data)
    return record.rows


def test_the_learning_rate_logged_is_that_of_the_step() -> None:
    found = recorded(aligned(lr=1.0, schedule=Linear()), pairs())
    assert [row["learning_rate"] for row in found.values()] == pytest.approx([1 - step / 7 for step in range(7)])


def test_a_finished_run_given_more_epochs_starts_at_the_rate_of_its_new_schedule(tmp_path: Path) -> None:
    def fit(epochs: int, **resume: Any) -> dict[int, dict[str, float]]:
        record = Recorded()
        callbacks = [record, RunCheckpoint()]
        run = trainer(tmp_path, max_epochs=epochs, callbacks=callbacks, enable_checkpointing=True)
        run.fit(aligned(lr=0.01, schedule=Linear()), pairs(), **resume)
        return record.rows

    fit(1)
    resumed = fit(2, ckpt_path=tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    expected = {step: 0.01 * (1 - (step - 1) / 14) for step in range(8, 15)}
    assert {step: row["learning_rate"] for step, row in resumed.items()} == pytest.approx(expected)


def test_the_last_window_is_logged_however_short_and_a_longer_run_goes_on_with_it(tmp_path: Path) -> None:
    def fit(folder: str, epochs: int, **resume: Any) -> dict[int, dict[str, float]]:
        record = Recorded()
        callbacks = [record, RunCheckpoint()]
        run = trainer(
            tmp_path / folder, max_epochs=epochs, log_every_n_steps=4, callbacks=callbacks, enable_checkpointing=True
        )
        # auto would score the reference at the steps of one epoch, and before those of two: equal to rounding alone
        run.fit(aligned(precompute_reference=False), pairs(), **resume)
        return {step: {k: v for k, v in row.items() if not k.startswith("perf")} for step, row in record.rows.items()}

    short, long = fit("cut", 1), fit("whole", 2)
    assert list(short) == [4, 7]
    assert list(long) == [4, 8, 12, 14]
    assert short[7]["grad_norm"] > 0
    resumed = fit("cut", 2, ckpt_path=tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)
    assert resumed == {step: long[step] for step in (8, 12, 14)}
    assert list(recorded(aligned(), pairs(), log_every_n_steps=7)) == [7], "a full window is logged once"


def test_a_run_resumed_for_its_end_alone_logs_its_last_window(tmp_path: Path) -> None:
    class Fails(Callback):
        """Something at the end of training, that works the second time."""

        failed: str | None = None

        def __init__(self, works: bool) -> None:
            self.works = works

        def acts_after_training(self) -> bool:
            return True

        def on_train_end(self, *_: Any) -> None:
            if not self.works:
                raise OSError("no space left on device")

    def fit(works: bool, **resume: Any) -> dict[int, dict[str, float]]:
        record, callbacks = Recorded(), [Fails(works), RunCheckpoint()]
        run = trainer(
            tmp_path, max_epochs=1, log_every_n_steps=4, callbacks=[record, *callbacks], enable_checkpointing=True
        )
        run.fit(aligned(anchor=PreferredNLL()), pairs(), **resume)
        return record.rows

    whole = fit(works=True)
    with pytest.raises(OSError, match="no space left"):
        fit(works=False)
    (last,) = fit(works=True, ckpt_path=tmp_path / "checkpoints" / "last.ckpt", weights_only=True).items()
    assert last == (
        7,
        {k: v for k, v in whole[7].items() if k not in ("perf/tokens_per_s", "perf/rows_per_s")}
        | {"perf/peak_gib": last[1]["perf/peak_gib"]},
    )


def test_speeds_are_those_of_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    class Slow(Callback):
        """Whatever lies between two steps takes an hour."""

        def on_train_batch_end(self, *_: Any) -> None:
            now[0] += 3600

        on_validation_end = on_train_epoch_end = on_train_batch_start = on_train_batch_end

    def clock() -> float:
        now[0] += 1  # a step reads it when it begins and when it ends
        return now[0]

    monkeypatch.setattr(stepping.time, "perf_counter", clock)
    found = recorded(aligned(), pairs(), log_every_n_steps=3, limit_val_batches=1.0, callbacks=[Slow()])
    speeds = {step: row["perf/rows_per_s"] for step, row in found.items() if "perf/rows_per_s" in row}
    assert speeds == {3: 4.0, 6: 4.0, 7: 2.0}  # six steps of four pairs, and one of two


@pytest.mark.parametrize("every", [1, 2], ids=["a logged step", "a step that is not logged"])
def test_a_step_waits_for_its_device_once_and_once_more_to_log(every: int) -> None:
    waits = Waits()

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 2:
                waits.__enter__()

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                waits.__exit__(None, None, None)

    module = aligned(anchor=ReferenceSupport(), precompute_reference=True)
    data = pairs(micro_batch_pairs=2)
    trainer(max_steps=4, log_every_n_steps=every, callbacks=[Watch()]).fit(module, data)
    assert waits.seen["finite.py:take"] == 1, "a gradient that is not finite stops the run"
    logged = {"metrics.py:together": 1} if every == 1 else {}
    there = {place: n for place, n in waits.seen.items() if place.partition(":")[0] in ("metrics.py", "module.py")}
    assert there == logged
    assert not any(place.startswith("reference_cache") for place in waits.seen), "ids are read before they are moved"


ANCHORS = {
    "none": None,
    "on pairs": PreferredNLL(0.5),
    "on a share of the pairs": ReferenceSupport(weight=3.0, share=0.5),
    "on the step": ReferenceMass(
        weight=5.0, samples_per_prompt=4, samples_per_step=4, max_prompts=3, prompts_per_step=2, max_new_tokens=4
    ),
}


@pytest.mark.parametrize("name", ANCHORS)
def test_the_loss_logged_is_the_loss_optimised(name: str) -> None:
    record, module = Recorded(), aligned(SafeDPO(), lr=0.02, anchor=ANCHORS[name])
    run = trainer(max_steps=5, callbacks=[record])  # the last step has three pairs
    run.fit(module, pairs(micro_batch_pairs=3))
    assert {step: row["loss"] for step, row in record.rows.items()} == pytest.approx(dict(record.optimised), rel=1e-5)
    last = record.rows[5]
    if name == "none":
        assert "loss/anchor" not in last
    else:
        assert last["loss/objective"] + last["loss/anchor"] == pytest.approx(last["loss"])
        assert last["loss/anchor"] > 0


def test_the_loss_of_fine_tuning_is_the_mean_over_tokens_that_is_optimised() -> None:
    record = Recorded()
    module = SupervisedFineTuning(PolicyReference(TinyLlama()), adamw(0.01))
    run = trainer(max_steps=3, callbacks=[record])
    run.fit(module, talk(micro_batch_rows=3))
    assert {step: row["loss"] for step, row in record.rows.items()} == pytest.approx(dict(record.optimised), rel=1e-5)
