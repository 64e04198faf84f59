import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from data.micro_batches import Rank, by_rows
from data.steps import EvalLoader, StepLoader, position

ROWS = np.arange(100, 111)  # 11 rows; in steps of 4 an epoch has 3 steps, the last with 3 rows


def keep(micro, step):
    return micro, step


def steps_of(rows=ROWS, per_step=4, micro=2, seed=0, rank=Rank(), epoch=0, first=0):  # noqa: B008 - immutable
    return list(StepLoader(rows, keep, per_step, by_rows(micro), seed, rank, lambda steps: (epoch, first)))


def rows_in(step):
    return sorted(row for micro, _ in step for row in micro.rows.tolist())


def test_an_epoch_holds_every_row_once_and_its_last_step_the_rest():
    steps = steps_of()
    assert [len(rows_in(step)) for step in steps] == [4, 4, 3]
    assert sorted(row for step in steps for row in rows_in(step)) == list(range(11))
    assert [len(whole) for step in steps for _, whole in step] == [4, 4, 4, 4, 3, 3]


@given(count=st.integers(1, 30), per_step=st.integers(1, 9), micro=st.integers(1, 5), world=st.integers(1, 4))
def test_ranks_together_run_what_one_rank_runs_in_equally_many_equally_large_micro_batches(
    count, per_step, micro, world
):
    rows = np.arange(count)
    alone = steps_of(rows, per_step, micro)
    shared = [steps_of(rows, per_step, micro, rank=Rank(rank, world)) for rank in range(world)]
    for step, shares in zip(alone, zip(*shared, strict=True), strict=True):
        assert sorted(row for share in shares for row in rows_in(share)) == rows_in(step)
        shapes = {tuple(len(m.rows) + m.fillers for m, _ in share) for share in shares}
        assert len(shapes) == 1
        assert all(0 < size <= micro for size in shapes.pop())
        assert {len(whole) for share in shares for _, whole in share} == {len(rows_in(step))}
    assert all(micro.fillers == 0 for step in alone for micro, _ in step)


def test_order_depends_on_seed_epoch_and_rows_and_not_on_where_a_row_stands():
    named = lambda steps, rows: [sorted(rows[rows_in(step)].tolist()) for step in steps]  # noqa: E731
    shuffled = np.random.default_rng(0).permutation(ROWS)
    assert named(steps_of(), ROWS) == named(steps_of(shuffled), shuffled)
    others = [steps_of(), steps_of(seed=1), steps_of(epoch=1)]
    assert len({str(named(steps, ROWS)) for steps in others}) == 3


def test_a_loader_starts_at_the_step_where_training_stands():
    assert [rows_in(step) for step in steps_of(first=2)] == [rows_in(step) for step in steps_of()[2:]]
    assert steps_of(first=3) == []


@given(count=st.integers(1, 30), size=st.integers(1, 5), world=st.integers(1, 4))
def test_evaluation_counts_every_row_once_over_all_ranks_in_equally_many_batches(count, size, world):
    shares = [list(EvalLoader(np.arange(count), keep, size, Rank(rank, world))) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    assert len(shares[0]) == len(EvalLoader(np.arange(count), keep, size, Rank(0, world)))
    assert sorted(row for share in shares for micro, _ in share for row in micro.rows.tolist()) == list(range(count))


def test_a_checkpoint_of_other_data_is_refused_and_the_change_named():
    state = StepLoader(ROWS, keep, 4, by_rows(2), 0).state_dict()
    StepLoader(ROWS[::-1], keep, 4, by_rows(1), 0, Rank(1, 2)).load_state_dict(state)
    with pytest.raises(ValueError, match="rows_per_step, seed changed"):
        StepLoader(ROWS, keep, 5, by_rows(2), 1).load_state_dict(state)
    with pytest.raises(ValueError, match="other data: rows changed"):
        StepLoader(ROWS[1:], keep, 4, by_rows(2), 0).load_state_dict(state)


def test_a_step_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1 row"):
        StepLoader(ROWS, keep, 0, by_rows(2), 0)
    with pytest.raises(ValueError, match="at least 1 row"):
        EvalLoader(ROWS, keep, 0)


class Recorder(LightningModule):
    """Takes one optimizer step per item and writes down what it saw."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, step, batch_idx):
        self.seen.append((self.global_step, rows_in(step)))
        self.manual_backward(self.weight.sum())
        self.optimizers().step()

    def validation_step(self, batch, batch_idx):
        pass


class SaveAt(Callback):
    """Writes a checkpoint in a hook, named by the optimizer steps that were done."""

    def __init__(self, folder, hook):
        self.folder = folder
        setattr(self, hook, self.save)

    def save(self, trainer, *_):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


class Ahead:
    """A loader that has fetched two items before it is asked for one."""

    def __init__(self, loader):
        self.loader = loader
        self.state_dict, self.load_state_dict = loader.state_dict, loader.load_state_dict

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        items = iter(self.loader)
        ready = [item for _, item in zip(range(2), items, strict=False)]
        return iter([*ready, *items])


class Rows(LightningDataModule):
    def __init__(self, ahead):
        super().__init__()
        self.ahead = ahead

    def train_dataloader(self):
        loader = StepLoader(ROWS, keep, 4, by_rows(2), 0, start=lambda steps: position(self.trainer, steps))
        return Ahead(loader) if self.ahead else loader

    def val_dataloader(self):
        return EvalLoader(ROWS, keep, 4)


def fit(folder, ckpt_path=None, ahead=False, callbacks=(), **options):
    module = Recorder()
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, num_sanity_val_steps=0, callbacks=list(callbacks),
        enable_checkpointing=False, **{"max_epochs": 3, **options},
    )  # fmt: skip
    trainer.fit(module, datamodule=Rows(ahead), ckpt_path=ckpt_path, weights_only=True)
    return module.seen


@pytest.mark.parametrize("ahead", [False, True], ids=["in time", "fetched ahead"])
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_end", "on_train_epoch_end"])
@pytest.mark.parametrize(
    "options", [{}, {"limit_train_batches": 2}, {"val_check_interval": 1}, {"max_steps": 9, "max_epochs": -1}], ids=str
)
def test_a_run_resumed_from_any_checkpoint_sees_exactly_the_remaining_steps(tmp_path, ahead, hook, options):
    whole = fit(tmp_path, callbacks=[SaveAt(tmp_path, hook)], ahead=ahead, **options)
    assert whole == fit(tmp_path, **options)
    per_epoch = options.get("limit_train_batches", 3)
    assert [step for step, _ in whole] == list(range(3 * per_epoch))
    every_step = hook == "on_train_batch_end" or (hook == "on_validation_end" and "val_check_interval" in options)
    checkpoints = list(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) == (3 * per_epoch if every_step else 3)
    for checkpoint in checkpoints:
        rest = fit(tmp_path, ckpt_path=checkpoint, ahead=ahead, **options)
        assert rest == whole[int(checkpoint.stem) :], f"resumed after step {checkpoint.stem}"


def test_a_run_that_was_killed_in_a_step_sees_that_step_again(tmp_path):
    class Crash(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 4:
                raise KeyError("killed")

    whole = fit(tmp_path)
    with pytest.raises(KeyError, match="killed"):
        fit(tmp_path, callbacks=[SaveAt(tmp_path, "on_train_batch_end"), Crash()])
    assert fit(tmp_path, ckpt_path=tmp_path / "4.ckpt") == whole[4:]


def test_lightning_neither_rewraps_nor_repeats_rows_with_its_sampler_left_on(tmp_path):
    assert fit(tmp_path, use_distributed_sampler=True) == fit(tmp_path, use_distributed_sampler=False)
