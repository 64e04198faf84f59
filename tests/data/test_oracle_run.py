import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from data.oracle.run import main
from data.oracle.study import Job
from data.oracle.study.inputs import SFT
from data.oracle.study.job import CONFIGS
from data.oracle.truth.optimum import measure, tilt
from data.oracle.truth.reference_table import read_reference
from data.oracle.world import oracle_world

OBJECTIVES = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in ("sft", "preference"))


def test_every_objective_is_measured_and_names_where_it_aims():
    assert {"dpo", "c_dpo", "c_dpo_dual", "safe_dpo"} <= set(OBJECTIVES)
    aims = {name: Job(name, "none", 0).aim["optimum"] for name in OBJECTIVES}
    assert aims["dpo"] == "tilt"
    assert aims["c_dpo_rectified"] == "rectified_at_limit"
    assert aims["c_dpo_dual"] == aims["c_dpo"] == "tilt_at_limit"
    assert {aims[name] for name in ("ipo", "bfpo", "modpo", "safe_daa_square", "robust_dpo_flipped")} == {"population"}
    assert aims["safe_dpo"] == aims["safe_dpo_soft"] == "masked"


def test_only_a_run_without_a_dual_step_is_told_the_optimal_multiplier():
    assert all(Job(name, "none", 0).at_optimal_multiplier for name in ("c_dpo", "c_dpo_rectified"))
    assert Job("sacpo", "none", 0).at_optimal_multiplier
    moved = ("dpo", "c_dpo_dual", "safe_dpo", "mocan", "pd_dpo")
    assert not any(Job(name, "none", 0).at_optimal_multiplier for name in moved)


def test_at_the_optimal_multiplier_the_tilted_reference_meets_the_limit():
    world = oracle_world(8)
    reference_PK = np.full(world.reward_PK.shape, -np.log(world.reward_PK.shape[1]))
    job = Job("c_dpo", "none", 0)
    multiplier = job.optimal_multiplier(reference_PK, prompts=8)
    optimum_PK = tilt(reference_PK, world.reward_PK, world.cost_PKC, multiplier, job.aim["beta"])
    assert measure(optimum_PK, reference_PK, world.reward_PK, world.cost_PKC).cost == pytest.approx([-0.15], abs=1e-6)
    job, positive_PKC = Job("c_dpo_rectified", "none", 0), np.maximum(world.cost_PKC, 0)
    multiplier = job.optimal_multiplier(reference_PK, prompts=8)
    optimum_PK = tilt(reference_PK, world.reward_PK, positive_PKC, multiplier, job.aim["beta"])
    assert measure(optimum_PK, reference_PK, world.reward_PK, positive_PKC).cost == pytest.approx([0.05], abs=1e-6)


def test_the_limit_of_the_dual_step_is_the_limit_that_is_measured():
    for name in OBJECTIVES:
        content = yaml.safe_load(Path(CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
        if "dual" in content and name != "log_barrier":  # whose limit is on a loss, and has no optimum
            assert content["dual"]["limit"] == Job(name, "none", 0).aim["limit"]


def test_the_flips_of_the_data_are_the_flips_that_are_measured():
    (source,) = Job("dpo_flipped", "none", 0).config["data"]["init_args"]["sources"]
    assert source["init_args"]["flip"] == Job("dpo_flipped", "none", 0).aim["flip"] > 0


def study(folder, *words):
    short = ("--options", "--trainer.limit_train_batches", "10", "--trainer.max_epochs", "2")
    return main(["--folder", str(folder), "--prompts", "4", "--workers", "1", "--anchors", "none", *words, *short])


@pytest.fixture
def hasty(monkeypatch, tmp_path):
    """A barely trained reference, which is as good a reference as any, in a folder that is no checkout."""
    monkeypatch.chdir(tmp_path)
    short = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "20")
    monkeypatch.setattr("data.oracle.study.inputs.SFT", (*SFT, *short))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_of_the_optimal_multiplier_alone_needs_no_other_run_and_grows_by_a_seed(tmp_path, hasty):
    result = tmp_path / "c_dpo" / "seed_0" / "oracle.json"
    assert study(tmp_path, "--objectives", "c_dpo", "--seeds", "0") == 0
    told = result.read_text(encoding="utf-8")
    assert study(tmp_path, "--objectives", "c_dpo", "--seeds", "0", "1") == 0
    assert result.read_text(encoding="utf-8") == told  # with its seconds and its command: it was not trained again
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["objectives"]["c_dpo"]["seeds"] == [0, 1]

    assert json.loads(told)["multiplier"] == pytest.approx(json.loads(told)["multiplier_at_optimum"], abs=1e-4)
    with np.load(result.with_name("oracle.npz")) as measured:  # the exported reference is the tabled one
        np.testing.assert_allclose(
            np.exp(read_reference(tmp_path / "reference.npz")), np.exp(measured["reference_PK"]), atol=1e-4
        )
