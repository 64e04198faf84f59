from pathlib import Path

import numpy as np
import pytest
import yaml

from data.oracle.run import CONFIGS, Job, Study

OBJECTIVES = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in ("sft", "preference"))


def test_every_objective_is_measured_and_names_where_it_aims():
    assert {"dpo", "c_dpo", "c_dpo_dual", "safe_dpo"} <= set(OBJECTIVES)
    aims = {name: Job(name, "none", 0).aim["optimum"] for name in OBJECTIVES}
    assert aims["dpo"] == "tilt"
    assert aims["c_dpo_dual"] == aims["c_dpo"] == "tilt_at_limit"
    assert aims["safe_dpo"] == aims["safe_dpo_soft"] == "masked"


def test_only_a_run_without_a_dual_step_is_told_the_optimal_multiplier():
    assert Job("c_dpo", "none", 0).at_optimal_multiplier
    assert not any(Job(name, "none", 0).at_optimal_multiplier for name in ("dpo", "c_dpo_dual", "safe_dpo"))


def test_the_optimal_multiplier_comes_from_another_runs_tables(tmp_path):
    """Two responses, the costly one worth 3 nats more: its chance is sigma(3 - multiplier), the cost that minus 1."""
    tables = {"reference_PK": np.log([[0.5, 0.5, 1e-30]]), "reward_PK": np.array([[3.0, 0.0, 0.0]])}
    np.savez(tmp_path / "tables.npz", **tables, cost_PKC=np.array([[[0.0], [-1.0], [0.0]]]))
    multiplier = Job("c_dpo", "none", 0).optimal_multiplier(tmp_path / "tables.npz")
    assert multiplier == pytest.approx(3 - np.log(0.85 / 0.15), abs=1e-6)


def test_a_run_without_anyone_to_show_the_reference_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="no run is left"):
        Study(tmp_path).train([Job("c_dpo", "none", 0)], workers=1)


def test_the_limit_of_the_dual_step_is_the_limit_that_is_measured():
    for name in OBJECTIVES:
        content = yaml.safe_load(Path(CONFIGS / f"{name}.yaml").read_text())
        if "dual" in content:
            assert content["dual"]["limit"] == Job(name, "none", 0).aim["limit"]
