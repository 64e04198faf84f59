"""The papers' stories, told by trained language models and checked by enumeration: minutes, on sixteen prompts."""

import json

import pytest

from data.oracle.study import Job, Study

QUICK = ("dpo_soft", "safe_dpo_soft", "c_dpo")
DUAL = ("c_dpo_dual", "c_dpo_dual_from_far")
LIMIT = -0.15

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # the first test waits for all runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    study = Study(tmp_path_factory.mktemp("oracle"), prompts=16)
    study.prepare([0], workers=2)
    short = ("--trainer.limit_train_batches", "40", "--trainer.max_epochs")
    epochs = {"dpo_soft": "14", "c_dpo": "14", "safe_dpo_soft": "16", **dict.fromkeys(DUAL, "20")}
    many = ("--dual.estimator.samples_per_prompt", "256")  # as many of the sixteen prompts as usually of 64
    jobs = [
        Job(name, "reference_support", 0, (*short, epochs[name], *(many if name in DUAL else ())))
        for name in (*DUAL, *QUICK)
    ]
    assert not study.train(jobs, workers=2)
    return {
        job.objective: json.loads((study.run_folder(job) / "oracle.json").read_text(encoding="utf-8")) for job in jobs
    }


def test_dpo_raises_reward_and_cost(runs):
    before, after = runs["dpo_soft"]["reference"], runs["dpo_soft"]["final"]
    assert after["reward"] > before["reward"] + 0.8
    assert after["cost"] > before["cost"] + 0.1
    assert after["unsafe"] > before["unsafe"] + 0.1


def test_c_dpo_at_the_optimal_multiplier_lies_on_the_frontier(runs):
    final = runs["c_dpo"]["final"]
    assert final["wellformed/cost"] == pytest.approx(LIMIT, abs=0.02)
    assert final["wellformed/regret_share"] < 0.03


@pytest.mark.parametrize("name", DUAL)
def test_the_multiplier_finds_its_optimum_from_either_side(runs, name):
    (optimal,), (found,) = runs[name]["multiplier_at_optimum"], runs[name]["multiplier"]
    assert found == pytest.approx(optimal, rel=0.05)
    assert runs[name]["final"]["cost"] == pytest.approx(LIMIT, abs=0.02)


def test_safe_dpo_leaves_next_to_nothing_unsafe(runs):
    assert runs["safe_dpo_soft"]["reference"]["unsafe"] > 0.2
    assert runs["safe_dpo_soft"]["final"]["unsafe"] < 0.005


@pytest.mark.parametrize("name", [*QUICK, *DUAL])
def test_with_the_anchor_no_objective_drifts_into_malformed_text(runs, name):
    assert runs[name]["final"]["malformed"] < 0.02
