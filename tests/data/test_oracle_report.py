"""A report of made-up runs: its figures are those of the runs, and estimators are as good as drawing them shows."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image

from data.oracle.study import estimators
from data.oracle.study.estimators import importance_bias, rollout_coverage
from data.oracle.study.report import write_report
from data.oracle.study.results import read_runs, summarise
from data.oracle.study.tradeoff import write_tradeoff
from data.oracle.truth.optimum import frontier, measure, regret, tilt
from lit_safe.statistics import clustered_mean

BETA = 0.5
RANDOM = np.random.default_rng(0)
P, K = 40, 6
REFERENCE = np.log(RANDOM.dirichlet(np.ones(K), P))
REWARD = RANDOM.normal(size=(P, K))
COST = 0.8 * REWARD[..., None] + RANDOM.normal(size=(P, K, 1))
TABLES = (REFERENCE, REWARD, COST)
OPTIMUM = tilt(*TABLES, 1.0, BETA)


def figures(logp_PK: np.ndarray) -> dict[str, Any]:
    found, lost = measure(logp_PK, *TABLES), regret(logp_PK, OPTIMUM, REFERENCE, BETA)
    names = ("reward", "unsafe", "malformed", "malformed_worst", "kl")
    values = {name: getattr(found, name) for name in names}
    values |= {"cost": float(found.cost[0]), "regret_share": lost.share}
    given = {f"wellformed/{name}": values[name] for name in ("reward", "cost", "unsafe", "kl", "regret_share")}
    return {**values, **given}


def made_up(name: str, seed: int, **other: Any) -> dict[str, Any]:
    """A run whose policy is half way to the optimum, or a little further with another seed."""
    final = figures(tilt(*TABLES, 1.0, BETA * (2 - 0.1 * seed)))
    drawn = frontier(*TABLES, BETA, (0.0, 1.0, 2.0))
    curve = [
        {"epoch": e, "step": 10 * e, "multiplier": [e / 2], "values": values}
        for e, values in enumerate((figures(REFERENCE), final))
    ]
    return {
        "name": name, "seed": seed, "objective": {"name": "X", "text": "X(beta=0.5)"}, "beta": BETA, "limit": -0.1,
        "anchor": {"name": "NoneType", "text": "None"}, "world": {"prompts": P, "seed": 0}, "constraints": ["cost"],
        "optimum": "tilt_at_limit", "multiplier": [0.5], "multiplier_at_optimum": [1.0], "final": final, "curve": curve,
        "multiplier_path": [{"step": step, "multiplier": [step / 20]} for step in (0, 5, 10)],
        "steps": 15,  # five more than the last measured epoch
        "reference": figures(REFERENCE), "at_optimum": figures(OPTIMUM), "masked": figures(OPTIMUM),
        "frontier": {"multiplier": [0.0, 1.0, 2.0], "reward": drawn.reward_M.tolist(), "cost": drawn.cost_MC.tolist()},
        "seconds": {"training": 60.0, "measuring": 9.0}, "command": f"python train.py fit --seed {seed}",
        "machine": {"cpus": 2, "threads": 1, "device": "cpu", "torch": "2.13", "lightning": "2.6"},
        **other,
    }  # fmt: skip


def save(folder: Path, *runs: dict[str, Any]) -> None:
    for run in runs:
        place = folder / run["name"] / f"seed_{run['seed']}"
        place.mkdir(parents=True)
        (place / "oracle.json").write_text(json.dumps({k: v for k, v in run.items() if k != "name"}), encoding="utf-8")


def test_a_folder_of_runs_becomes_a_report(tmp_path: Path) -> None:
    runs = [made_up("c_dpo", 0), made_up("c_dpo", 1), made_up("dpo", 0, limit=None, optimum="tilt")]
    save(tmp_path, *runs)
    write_report(tmp_path, read_runs(tmp_path))

    told = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["objectives"]["c_dpo"]["measured"][
        "reward"
    ]
    one, two = (run["final"]["reward"] for run in runs[:2])
    assert told["mean"] == pytest.approx((one + two) / 2)
    assert told["stderr"] == pytest.approx(abs(one - two) / 2)  # of two seeds: their difference / sqrt(2) / sqrt(2)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert f"| **C-DPO** (2 seeds) | {told['mean']:.3f} ± {told['stderr']:.3f} |" in text
    assert "python train.py fit --seed 1" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    tables = [{line.count("|") for line in rows[:7]}, {line.count("|") for line in rows[7:]}]
    assert all(len(widths) == 1 for widths in tables)
    for name in ("report", "report_plane", "report_multiplier", "report_malformed", "report_regret"):
        pixels = image.imread(tmp_path / f"{name}.png")
        assert pixels.shape[1] >= 800
        assert pixels.std() > 0.01  # something is drawn


def test_an_error_over_seeds_is_never_printed_as_0(tmp_path: Path) -> None:
    runs = [made_up("c_dpo", seed) for seed in (0, 1)]
    for run, reward in zip(runs, (1.0, 1.0004), strict=True):
        run["final"] |= {"reward": reward, "unsafe": 0.25}
    save(tmp_path, *runs)
    write_report(tmp_path, read_runs(tmp_path))
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| 1.000 ± 0.0002 |" in text
    assert "| 25.00 (each seed) |" in text
    assert not re.search(r"± 0(\.0+)?( |$)", text)
    assert "± is one standard error of the mean over seeds, not an interval" in text


def test_one_seed_has_no_error_and_the_worst_prompt_is_of_any_seed() -> None:
    (alone,) = summarise([made_up("dpo", 0)])
    assert alone.figures["reward"].stderr is None
    runs = [made_up("dpo", 0), made_up("dpo", 1)]
    (row,) = summarise(runs)
    assert row.figures["malformed_worst"].most == max(run["final"]["malformed_worst"] for run in runs)


def test_soft_dpo_is_said_to_be_c_dpo_at_multiplier_0(tmp_path: Path) -> None:
    soft = {"name": "ConstrainedDPO", "text": "ConstrainedDPO(beta=0.5, labels='soft')"}
    still = [{"step": step, "multiplier": [0.0]} for step in (0, 5)]
    write_report(
        tmp_path,
        [made_up("dpo_soft", 0, objective=soft, multiplier_path=still), made_up("c_dpo_dual", 0, objective=soft)],
    )
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "**DPO soft** (1 seed; ConstrainedDPO with soft labels at λ = 0)" in text
    assert "- **dpo_soft**: ConstrainedDPO(beta=0.5, labels='soft') at multiplier 0, which is DPO's population" in text
    assert "**C-DPO dual** (1 seed)" in text


def test_where_the_loss_has_no_minimum_the_report_says_so(tmp_path: Path) -> None:
    run = made_up("dpo", 0, optimum="population", diverges=True, at_optimum=dict.fromkeys(figures(OPTIMUM)))
    run["multiplier_at_optimum"] = [0.0]
    for values in (run["final"], run["curve"][1]["values"]):
        values |= {"regret_share": None, "wellformed/regret_share": None}
    write_report(tmp_path, [run])
    lines = [
        line
        for line in (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
        if "diverges: no optimum" in line
    ]
    assert len(lines) == 2
    assert all(set(line.split("|")[2:-1]) <= {" - ", "  "} for line in lines)


def test_a_figure_that_no_run_has_is_a_dash(tmp_path: Path) -> None:
    run = made_up("dpo", 0)
    run["final"] = {**run["final"], "regret_share": None}
    run["curve"][0]["values"] = run["final"]
    write_report(tmp_path, [run])
    line = next(
        line
        for line in (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| **DPO**")
    )
    assert line.split("|")[8].strip() == "-"


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([], "no runs"),
        ([made_up("a", 0), made_up("b", 0, beta=1.0)], "different worlds"),
        ([made_up("a", 0), made_up("a", 1, optimum="masked")], "different optima"),
    ],
)
def test_runs_that_cannot_share_a_table_are_refused(tmp_path: Path, runs: list[Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        write_report(tmp_path, runs)


def test_a_folder_without_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="seed_<k>"):
        read_runs(tmp_path)


# -- estimators against truth


def interval(value_n: Any, cluster_n: Any, weight_n: Any) -> tuple[float, float]:
    return clustered_mean(value_n, cluster_n, weight_n).interval


def test_rollout_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """95 % with 2,000 draws has a standard error of 0.5 %; few prompts and skewed costs take a little off."""
    rows = rollout_coverage(OPTIMUM, COST[..., 0], interval, settings=((64, 1), (64, 4)))
    for row in rows:
        assert 0.93 < row.coverage < 0.97
        assert abs(row.bias) < 4 * row.error / math.sqrt(row.draws)
    assert rows[1].half_width < rows[0].half_width


def test_answering_every_prompt_of_the_table_makes_the_interval_too_wide() -> None:
    """Four responses to each of all 40 prompts: prompts are no sample, though the interval thinks so."""
    costs = COST[..., 0] + np.linspace(-3, 3, P)[:, None]
    (row,) = rollout_coverage(REFERENCE, costs, interval, ((P, 4),), draws=500, replace=False)
    assert row.coverage > 0.99


def test_importance_weights_of_the_reference_itself_are_all_alike() -> None:
    """Then the estimate is a plain mean: unbiased, and as many effective samples as there are."""
    (row,) = importance_bias(REFERENCE, {"reference": REFERENCE}, COST[..., 0], interval, ((64, 2),))
    assert row.effective == pytest.approx(128)
    assert row.accepted == 1
    assert abs(row.bias) < 4 * row.bias_stderr
    assert 0.92 < row.coverage < 0.98


def test_the_further_the_policy_the_fewer_effective_samples() -> None:
    policies = {str(beta): tilt(*TABLES, 1.0, beta) for beta in (8.0, 1.0, 0.1)}
    rows = importance_bias(REFERENCE, policies, COST[..., 0], interval, ((64, 2),), draws=400)
    near, middle, far = rows
    assert near.effective > middle.effective > far.effective
    assert far.accepted == 0
    assert math.isnan(far.bias)
    assert abs(near.bias) < 0.05


def test_estimators_print_a_table_for_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez_compressed(
        tmp_path / "oracle.npz", policy_PK=OPTIMUM, reference_PK=REFERENCE, reward_PK=REWARD, cost_PKC=COST
    )
    (tmp_path / "oracle.json").write_text(json.dumps({"beta": BETA}), encoding="utf-8")
    estimators.main([str(tmp_path), "--mean", "lit_safe.statistics.clustered_mean", "--draws", "5"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    heads = [line for line in lines if "coverage (%)" in line]
    assert len(heads) == 3
    assert any(line.startswith("| this run | 64 | 2 |") for line in lines)


def test_a_tradeoff_names_each_runs_anchor_and_weight(tmp_path: Path) -> None:
    def anchored(name: str, weight: float) -> dict[str, Any]:
        text = f"ReferenceSupport(weight={weight}, floor=0.01)"
        return made_up(name, 0, anchor={"name": "ReferenceSupport", "text": text})

    save(
        tmp_path,
        made_up("safe_dpo", 0),
        anchored("safe_dpo+reference_support", 1.0),
        anchored("safe_dpo+reference_support=0.3", 0.3),
    )
    write_tradeoff(tmp_path)
    rows = [
        line.split("|")[1:5]
        for line in (tmp_path / "tradeoff.md").read_text(encoding="utf-8").splitlines()
        if "SafeDPO" in line
    ]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["SafeDPO", "none", "", "0"],
        ["SafeDPO", "reference_support", "0.3", "0"],
        ["SafeDPO", "reference_support", "1", "0"],
    ]
    assert image.imread(tmp_path / "tradeoff.png").std() > 0.01
