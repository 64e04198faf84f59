"""What fails at an epoch's end or after training costs nothing that was trained, and can be made up for."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor

from lit_safe.commands.report import report
from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.objectives import ConstrainedDPO
from lit_safe.report.before_after import BeforeAfter
from lit_safe.report.contents import FIGURE, PAGE
from lit_safe.runs.checkpoints import load_checkpoint, shipped
from lit_safe.runs.end_of_run import failures
from lit_safe.runs.loggers.metrics_csv import MetricsCSV
from lit_safe.runs.run_checkpoint import RunCheckpoint
from lit_safe.runs.run_folder import RunFolder
from lit_safe.training.module import PreferenceAlignment
from lit_safe.types import CostEstimate
from tests.lit_safe.dual_world import BETA, ExactCost, TableCost
from tests.lit_safe.held_out_world import HeldOut, NamedTable


class Breaks(ExactCost):
    """An estimator that fails at the ends of some epochs, as a scorer does that is away, or gives NaN."""

    def __init__(self, at: set[int], nan: bool = False) -> None:
        super().__init__()
        self.at, self.nan = at, nan

    def __call__(self, module: Any, data: Any, *, seed: int, epoch: int) -> Any:
        estimate: CostEstimate = super().__call__(module, data, seed=seed, epoch=epoch)
        if epoch not in self.at:
            return estimate
        if self.nan:
            return estimate._replace(mean=estimate.mean * torch.nan)
        raise FileNotFoundError("scorers/mine/card.json")


class Flaky(TableCost):
    """A cost function that works until it is told otherwise."""

    broken = False

    def __call__(self, prompts: list[str], responses: list[str]) -> Tensor:
        return super().__call__(prompts, responses) * (torch.nan if self.broken else 1)


def module() -> PreferenceAlignment:
    return PreferenceAlignment(
        NamedTable(), ConstrainedDPO(beta=BETA), lambda parameters: torch.optim.Adam(parameters, lr=0.05)
    )


def fit(
    folder: Path, *callbacks: Any, resume: bool = False, data: HeldOut | None = None, **options: Any
) -> PreferenceAlignment:
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=[MetricsCSV()],
        callbacks=[RunFolder(), RunCheckpoint(None), *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        **{"max_epochs": 3, **options},
    )
    model = module()
    last = folder / "checkpoints" / "last.ckpt"
    trainer.fit(model, datamodule=data or HeldOut(), ckpt_path=last if resume else None, weights_only=True)
    return model


def dual(estimator: Any = None, **options: Any) -> DualAscent:
    return DualAscent(**{"limit": -0.3, "lr": 0.5, "estimator": estimator or ExactCost(), **options})


def state(model: PreferenceAlignment) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in model.state_dict().items() if "means" not in name}


def saved(folder: Path) -> dict[str, Any]:
    return load_checkpoint(folder / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize("options", [{}, {"max_steps": 12, "max_epochs": -1}], ids=["by epochs", "by steps"])
@pytest.mark.parametrize("ship", ["last", "average"])
@pytest.mark.parametrize("nan", [False, True], ids=["raises", "NaN"])
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_dual_step_that_fails_leaves_its_epoch_and_is_taken_by_the_resumed_run(
    tmp_path: Path, epoch: int, nan: bool, ship: str, options: dict[str, Any]
) -> None:
    whole = fit(tmp_path / "whole", dual(ship=ship), **options)
    with pytest.raises(FloatingPointError if nan else FileNotFoundError):
        fit(tmp_path / "run", dual(Breaks({epoch}, nan), ship=ship), **options)
    assert saved(tmp_path / "run")["global_step"] == 4 * (epoch + 1)
    estimator = ExactCost()
    resumed = fit(tmp_path / "run", dual(estimator, ship=ship), resume=True, **options)
    assert estimator.epochs[0] == epoch
    assert state(resumed) == state(whole)
    run, other = saved(tmp_path / "run"), saved(tmp_path / "whole")
    assert run["optimizer_states"][0]["state"][0]["exp_avg"].equal(other["optimizer_states"][0]["state"][0]["exp_avg"])
    assert run["epoch"] == other["epoch"]


def test_a_failed_estimate_of_the_shipped_average_costs_itself_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ascent = dual(Breaks({3}), ship="average")
    model = fit(tmp_path / "run", ascent)
    assert ascent.failed is not None
    assert "the shipped average's cost was not estimated (FileNotFoundError: scorers/mine/card.json)" in caplog.text
    assert saved(tmp_path / "run")["global_step"] == 12
    assert state(model) == state(fit(tmp_path / "whole", dual(ship="average")))


def test_the_checkpoint_keeps_the_iterate_and_everything_else_gets_the_average(tmp_path: Path) -> None:
    iterate = fit(tmp_path / "last", dual())
    average = fit(tmp_path / "average", dual(ship="average"))
    checkpoint = saved(tmp_path / "average")
    assert checkpoint["state_dict"]["pair.logit_PK"].equal(iterate.pair.logit_PK)
    assert not iterate.pair.logit_PK.equal(average.pair.logit_PK)
    assert shipped(checkpoint)["pair.logit_PK"].equal(average.pair.logit_PK)
    assert shipped(checkpoint)["multiplier"].equal(average.multiplier)
    read = module()
    read.on_load_checkpoint(checkpoint)  # as commands do
    assert checkpoint["state_dict"]["pair.logit_PK"].equal(average.pair.logit_PK)


def test_what_fails_after_training_costs_the_report_alone_and_a_resumed_run_writes_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, cost = tmp_path / "run", Flaky()
    whole = fit(tmp_path / "whole", BeforeAfter(TableCost()), dual())
    watcher = BeforeAfter(cost)

    breaks = LambdaCallback(on_train_epoch_end=lambda *_: setattr(cost, "broken", True))
    with caplog.at_level(logging.ERROR):
        model = fit(folder, watcher, dual(), breaks)
    assert state(model) == state(whole)
    assert saved(folder)["global_step"] == 12
    [line] = failures([watcher])
    assert line in caplog.text
    assert "\n" not in line
    assert f"`python train.py report {folder}` writes the report later" in line
    assert not (folder / "report.json").exists()

    fit(folder, BeforeAfter(TableCost()), dual(), resume=True)
    for name in ("pairs.csv", "rollouts.csv"):
        assert (folder / name).read_text(encoding="utf-8") == (tmp_path / "whole" / name).read_text(encoding="utf-8")
    ours, theirs = (
        json.loads((run / "report.json").read_text(encoding="utf-8")) for run in (folder, tmp_path / "whole")
    )
    assert ours["metrics"] == theirs["metrics"]
    assert ours["limit"] == theirs["limit"]
    assert ours["training"]["steps"] == 12


def test_a_page_that_cannot_be_drawn_costs_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plot_run(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("lit_safe.report.contents.plot_run", plot_run)
        fit(folder, BeforeAfter(TableCost()), dual())
    assert not (folder / FIGURE).exists()
    page = (folder / PAGE).read_text(encoding="utf-8")
    (folder / PAGE).unlink()
    assert report([str(folder)]) == 0  # from report.json, without a model
    assert (folder / FIGURE).stat().st_size > 0
    assert (folder / PAGE).read_text(encoding="utf-8") == page


def test_a_folder_that_can_have_no_report_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "none").mkdir()
    fit(tmp_path / "bare", dual())
    (tmp_path / "bare" / "config.yaml").write_text("{}", encoding="utf-8")
    with pytest.raises(FileNotFoundError):
        fit(tmp_path / "part", BeforeAfter(TableCost()), dual(Breaks({1})))
    (tmp_path / "part" / "config.yaml").write_text("{}", encoding="utf-8")
    caplog.clear()
    assert report([str(tmp_path / name) for name in ("none", "bare", "part")]) == 1
    none, bare, part = caplog.messages
    assert "there is no" in none
    assert "ran without BeforeAfter" in bare
    assert "training has not ended: `python train.py fit -c" in part
