import csv
import json
import logging
import math
import shutil

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.constraint.limits import standing
from lit_safe.evaluation.evaluate import Evaluation, differences, evaluate
from lit_safe.evaluation.settings import settings_of
from lit_safe.objectives import ConstrainedDPO
from lit_safe.report.before_after import BeforeAfter
from lit_safe.report.markdown import markdown
from lit_safe.report.plots import plot_run, read_curves
from lit_safe.report.tables import (
    estimate_from_json,
    estimate_to_json,
    number,
    read_tables,
    with_error,
    with_interval,
    write_tables,
)
from lit_safe.runs.loggers.metrics_csv import MetricsCSV
from lit_safe.runs.loggers.tensorboard import TensorBoardRun
from lit_safe.runs.run_checkpoint import RunCheckpoint
from lit_safe.runs.run_folder import RunFolder
from lit_safe.statistics.clustered import Estimate, clustered_mean
from lit_safe.types import CostEstimate
from tests.lit_safe.dual_world import ExactCost, K, P, TableCost
from tests.lit_safe.held_out_world import HeldOut, module

FILES = ("report.json", "report.md", "report.png", "pairs.csv", "rollouts.csv")


def trainer(folder, *callbacks, **options) -> Trainer:
    defaults = {"max_epochs": 3, "log_every_n_steps": 1, "num_sanity_val_steps": 0, "accelerator": "cpu"}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(
        default_root_dir=folder,
        logger=[MetricsCSV(), TensorBoardRun()],
        callbacks=[RunFolder(), RunCheckpoint(), *callbacks],
        **{**defaults, **quiet, **options},
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "dpo"
    policy = module()
    watcher = BeforeAfter(TableCost(), samples_per_prompt=4, notes=["A note of ours."], show_samples=2)
    trainer(folder, watcher, DualAscent()).fit(policy, HeldOut())
    return folder, policy, json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_a_run_leaves_a_report_whose_numbers_are_those_of_the_policy_before_and_after(run):
    folder, policy, report = run
    assert all((folder / name).stat().st_size > 0 for name in FILES)
    after = evaluate(policy, HeldOut(), cost=TableCost(), samples_per_prompt=4).summary()
    before = evaluate(module(), HeldOut(), cost=TableCost(), samples_per_prompt=4).summary()
    for name, entry in report["metrics"].items():
        assert entry["before"]["mean"] == before[name].mean, name
        assert entry["after"]["mean"] == after[name].mean, name
        assert entry["difference"]["mean"] == pytest.approx(after[name].mean - before[name].mean, abs=1e-12), name
    assert set(report["metrics"]) == set(after)
    assert (
        report["metrics"]["logps/accuracies"]["after"]["mean"] > report["metrics"]["logps/accuracies"]["before"]["mean"]
    )


def test_the_report_records_how_the_policy_was_evaluated(run):
    settings = run[2]["settings"]
    assert settings["scorer"] == "TableCost"
    assert settings["max_new_tokens"] == 48
    assert settings["data seed"] == settings["response seed"] == 0
    assert settings_of(run[2]) == settings


def test_the_report_counts_what_training_took(run):
    _, _, report = run
    assert report["training"]["steps"] == 12
    assert report["training"]["pairs"] == 12 * P * K * (K - 1) // 2
    assert report["training"]["seconds"] > 0


def test_the_page_names_what_a_reader_must_know(run):
    text = (run[0] / "report.md").read_text(encoding="utf-8")
    for part in (
        "DPO(beta=0.1", "a table of logits", "its first logits", "licence none needed", "responses from reference",
        "keeps 4, swaps 24 and drops 12", "harm 40.0 %", "40 of 41 rows kept", "clustered by prompt", "A note of ours.",
        "these are few", "Content warning", "python ", "torch ",
    ):  # fmt: skip
        assert part in text, part


def test_samples_are_shown_only_on_request(run, tmp_path):
    _, _, report = run
    assert "Content warning" not in markdown({**report, "samples": []})
    trainer(tmp_path / "run", BeforeAfter(TableCost()), max_epochs=1).fit(module(), HeldOut())
    assert json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))["samples"] == []


def test_the_tables_come_back_to_the_bit(run, tmp_path):
    before, after = read_tables(run[0])
    write_tables(tmp_path, before, after)
    for name in ("pairs.csv", "rollouts.csv"):
        assert (tmp_path / name).read_text(encoding="utf-8") == (run[0] / name).read_text(encoding="utf-8")
    np.testing.assert_array_equal(before.pairs["logratio_chosen"], 0)


def test_tables_and_checkpoints_from_before_entropy_was_measured_are_read_without_it(run, tmp_path):
    with (run[0] / "rollouts.csv").open(newline="", encoding="utf-8") as file:
        rows = [{k: v for k, v in row.items() if "entropy" not in k} for row in csv.DictReader(file)]
    with (tmp_path / "rollouts.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    shutil.copy(run[0] / "pairs.csv", tmp_path)
    now, then = read_tables(run[0])[1], read_tables(tmp_path)[1]
    state = now.state_dict()
    del state["rollouts"]["entropy"]
    for old in (then, Evaluation.from_state_dict(state)):
        assert set(now.summary()) - set(old.summary()) == {"rollouts/entropy_per_token"}
        assert set(differences(now, old)) == set(old.summary())
        write_tables(tmp_path, old, now)
        assert np.isnan(read_tables(tmp_path)[0].rollouts["entropy"]).all()


def test_before_and_after_stand_in_the_event_file_at_the_first_and_the_last_step(run):
    events = EventAccumulator(str(run[0] / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    points = {point.step: point.value for point in events.Scalars("report/logps/accuracies")}
    entry = run[2]["metrics"]["logps/accuracies"]
    assert points == pytest.approx({0: entry["before"]["mean"], 12: entry["after"]["mean"]})
    assert any("hparams" in tag for tag in events.summary_metadata)


def test_what_is_evaluated_is_what_ships_whatever_the_order_of_callbacks(tmp_path):
    policy = module()
    policy.objective = ConstrainedDPO()  # which reads the multiplier that moves
    ascent = DualAscent(lr=0.3, estimator=ExactCost(), ship="average")
    trainer(tmp_path / "run", BeforeAfter(TableCost()), ascent, max_epochs=4).fit(policy, HeldOut())
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    shipped = evaluate(policy, HeldOut(), cost=TableCost()).summary()
    assert report["metrics"]["logps/chosen"]["after"]["mean"] == shipped["logps/chosen"].mean
    assert report["training"]["multiplier"] == [0.0, pytest.approx(float(policy.multiplier))]
    assert "the multiplier went from 0.0 to" in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")


class Interrupt(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 5:
            raise KeyError("power cut")


def test_a_resumed_run_reports_the_policy_from_before_the_first_step(run, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(KeyError):
        trainer(folder, BeforeAfter(TableCost(), samples_per_prompt=4), Interrupt()).fit(module(), HeldOut())
    checkpoint = str(folder / "checkpoints" / "last.ckpt")
    fresh = BeforeAfter(TableCost(), samples_per_prompt=4)
    trainer(folder, fresh).fit(module(), HeldOut(), ckpt_path=checkpoint, weights_only=True)
    assert (folder / "pairs.csv").read_text(encoding="utf-8") == (run[0] / "pairs.csv").read_text(encoding="utf-8")
    assert (
        json.loads((folder / "report.json").read_text(encoding="utf-8"))["training"]["pairs"]
        == run[2]["training"]["pairs"]
    )


def test_training_with_a_report_is_bit_for_bit_training_without(run, tmp_path):
    policy = module()
    trainer(tmp_path / "run").fit(policy, HeldOut())
    assert torch.equal(policy.pair.logit_PK, run[1].pair.logit_PK)


class Fitted(TableCost):
    """A cost function that must be fitted first, and may turn out to be useless."""

    def __init__(self, auc: float) -> None:
        self.auc, self.seen = auc, []

    def fit(self, prompts, responses, unsafe, prompt_ids):
        self.seen = list(responses)

    def save(self, card): ...


@pytest.mark.parametrize("useful", [True, False])
def test_a_scorer_is_fitted_before_it_is_used_and_left_out_where_it_ranks_like_a_coin(tmp_path, monkeypatch, useful):
    calls = []

    def fit_scorer(data, *, scorer, device):
        calls.append((scorer, device))
        return 0 if useful else 1

    monkeypatch.setattr("lit_safe.report.before_after.fit_scorer", fit_scorer)
    scorer = Fitted(0.7)
    trainer(tmp_path / "run", BeforeAfter(scorer, fit_cost=True), max_epochs=1).fit(module(), HeldOut())
    assert calls == [(scorer, "cpu")], "fitted once, where the run computes"
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert ("rollouts/unsafe" in report["metrics"]) is useful
    assert ("no share of unsafe" in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")) is not useful


def test_a_cost_that_cannot_be_fitted_is_not_asked_to_be():
    with pytest.raises(ValueError, match="TableCost has no `fit`"):
        BeforeAfter(TableCost(), fit_cost=True)


def test_numbers_read_as_people_write_them():
    assert number("logps/accuracies", 0.4567) == "45.7"
    assert number("logps/accuracies", -0.0001, signed=True) == "0.0"
    assert number("rollouts/kl_per_token", math.nan) == "n/a"
    assert with_interval("logratios/margins", Estimate(1.5, 0.0, 9, 9)) == "+1.50 [n/a, n/a]"


def test_an_interval_without_a_bound_is_null_in_json_and_does_not_cost_the_report():
    estimate = clustered_mean([8.0] * 30 + [2.0], range(31))  # one response stopped early: no bound holds below
    assert estimate.interval[0] == -math.inf
    written = json.loads(json.dumps(estimate_to_json(estimate), allow_nan=False))
    assert written["low"] is None
    assert written["high"] == estimate.interval[1]
    assert with_error("rollouts/tokens", estimate_from_json(written)) == with_error("rollouts/tokens", estimate)
    assert with_error("rollouts/tokens", estimate).startswith("7.8 [n/a, ")
    cost = CostEstimate(*(torch.tensor(x) for x in (0.1, 0.2)), 31, torch.tensor(0.1), 31.0,
                        bounds=torch.tensor([0.0, math.inf]))  # fmt: skip
    [row] = standing(("harm",), torch.tensor(0.0), cost, 0).as_json()
    assert row["upper"] is None
    assert row["verdict"] == "undecided"


def test_curves_skip_the_cells_that_a_row_does_not_have(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,time,a,b\n1,0.5,2.0,\n1,0.6,,7\n2,0.7,3.0,\n", encoding="utf-8")
    assert read_curves(tmp_path / "metrics.csv") == {"a": ([1, 2], [2.0, 3.0]), "b": ([1], [7.0])}


def test_a_line_of_curves_with_too_many_cells_is_named(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,a\n1,2.0\n2,3.0,4.0\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"metrics\.csv, line 3: has more cells than the header has names"):
        read_curves(tmp_path / "metrics.csv")


def test_a_figure_without_curves_draws_no_empty_legend(run, tmp_path):
    plot_run(run[2], tmp_path / "metrics.csv", tmp_path / "report.png")  # a warning is an error here
    assert (tmp_path / "report.png").stat().st_size > 0


def test_the_last_word_is_where_the_report_is(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "lit_safe"):
        trainer(tmp_path / "run", BeforeAfter(), max_epochs=1).fit(module(), HeldOut())
    assert caplog.messages[-1] == f"report: {tmp_path / 'run' / 'report.md'}"


def test_policies_compared_under_other_labels_are_refused():
    one = evaluate(module(), HeldOut())
    swapped = {**one.pairs, "cost_chosen": one.pairs["cost_rejected"], "cost_rejected": one.pairs["cost_chosen"]}
    with pytest.raises(ValueError, match="the labels differ: cost_chosen of pair"):
        differences(one, Evaluation(swapped, one.rollouts))
