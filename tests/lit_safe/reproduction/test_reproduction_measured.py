"""What is read from the files of runs: exact expectations of the oracle, and means of sampled responses."""

import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from lit_safe.reproduction.measured import exact, read_oracle, read_runs
from tests.lit_safe.reproduction.seen_world import seen

HALVES = np.array([[0.5, 0.25, 0.25]])  # two answers and malformed text
REWARD, COST = np.array([[1.0, 3.0, -4.0]]), np.array([[[-1.0], [2.0], [0.0]]])


def test_expectations_by_hand() -> None:
    found = exact(HALVES, REWARD, COST)
    assert {name: value.tolist() for name, value in found.items()} == {
        "reward": [0.25],
        "cost": [0.0],
        "unsafe": [0.25],
    }


def write_oracle(folder: Path, policy: np.ndarray, seconds: float) -> None:
    folder.mkdir(parents=True)
    tables = {"policy_PK": np.log(policy), "reference_PK": np.log(HALVES), "reward_PK": REWARD, "cost_PKC": COST}
    np.savez(folder / "oracle.npz", **tables)
    (folder / "oracle.json").write_text(json.dumps({"seconds": {"training": seconds}}), encoding="utf-8")


def test_the_oracle_gives_every_policy_and_the_reference_at_every_prompt_and_seed(tmp_path: Path) -> None:
    for seed in (0, 3):
        write_oracle(tmp_path / "dpo+reference_support" / f"seed_{seed}", np.array([[0.25, 0.5, 0.25]]), 10.0 + seed)
    found = read_oracle(tmp_path)
    assert found.exact
    assert found.cells["sft"]["reward"] == {(0, 0): pytest.approx(0.25), (3, 0): pytest.approx(0.25)}
    assert found.cells["dpo"]["unsafe"] == {(0, 0): pytest.approx(0.5), (3, 0): pytest.approx(0.5)}
    assert found.seconds == {"dpo": [10.0, 13.0]}


def write_run(folder: Path, before: list[float], after: list[float], prompts: tuple[int, ...] = (7, 7, 9)) -> None:
    folder.mkdir(parents=True)
    rows = [f"{p},{k},{a},{b}" for k, (p, a, b) in enumerate(zip(prompts, before, after, strict=True))]
    (folder / "rollouts.csv").write_text(
        "\n".join(["prompt_id,sample,before_cost,after_cost", *rows]), encoding="utf-8"
    )


def test_a_run_gives_costs_and_unsafe_shares_by_prompt_and_the_start_is_sft(tmp_path: Path) -> None:
    write_run(tmp_path / "seed_0" / "dpo_helpful", [1, -1, -2], [2, 2, -2])
    write_run(tmp_path / "seed_0" / "c_dpo_1", [0, 0, 0], [-1, -1, -3])
    stages = {"dpo_helpful": {"trained": True, "model": True, "seconds": 61.0}, "c_dpo_1": {"trained": True}}
    (tmp_path / "seed_0" / "stages.json").write_text(json.dumps({"stages": stages}), encoding="utf-8")
    found = read_runs(tmp_path)
    assert found.cells["dpo_helpful"] == {"cost": {(0, 7): 2, (0, 9): -2}, "unsafe": {(0, 7): 1, (0, 9): 0}}
    assert found.cells["sft"]["unsafe"] == {(0, 7): 0.5, (0, 9): 0}
    assert found.spread["c_dpo_1"]["cost"] == pytest.approx(np.std([-1, -1, -3], ddof=1))
    assert found.seconds == {"dpo_helpful": [61.0]}, "a stage that is not done has no time"


def test_what_evaluate_judged_is_read_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "seed_1" / "safe_dpo" / "evaluation"
    write_run(tmp_path / "seed_1" / "safe_dpo", [-9], [-9], (5,))  # in other units: the evaluation's costs count
    rows = {
        "model": ["policy", "policy", "reference"],
        "harmful": [True, False, False],
        "prompt_id": [1, 2, 2],
        "refusal": [1.0, -1.0, 1.0],
        "unsafe/judge": [0.5, None, None],
        "reward": [3.0, None, 1.0],
    }
    folder.mkdir()
    pyarrow.parquet.write_table(pyarrow.table(rows), folder / "responses.parquet")
    seen = read_runs(tmp_path)
    found = seen.cells["safe_dpo"]
    assert seen.cells["sft"]["reward"] == {(1, 2): 1.0}
    assert found == {"reward": {(1, 1): 3.0}, "cost": {(1, 1): 0.5}, "unsafe": {(1, 1): 1.0}, "refused": {(1, 2): 0.0}}


def test_a_measured_sft_run_takes_the_place_of_what_another_run_measured_before_its_training(tmp_path: Path) -> None:
    write_run(tmp_path / "seed_0" / "dpo_helpful", [1, -1, -2], [2, 2, -2])
    folder = tmp_path / "seed_0" / "sft" / "evaluation"
    folder.mkdir(parents=True)
    rows = {"model": ["policy"], "harmful": [True], "prompt_id": [3], "refusal": [-1.0], "unsafe/judge": [1.0]}
    pyarrow.parquet.write_table(pyarrow.table(rows), folder / "responses.parquet")
    assert read_runs(tmp_path).cells["sft"] == {"cost": {(0, 3): 1.0}, "unsafe": {(0, 3): 1.0}}


def test_a_difference_is_paired_by_seed_and_prompt() -> None:
    found = seen().difference("dpo_helpful", "safe_dpo", "reward")
    assert found is not None
    assert (found.mean, found.of_seeds, found.seeds, found.prompts) == (1.0, pytest.approx(0), 2, 4)
    assert found.of_prompts == pytest.approx(0), "the prompts' own variation cancels"
    assert seen().difference("dpo_helpful", "sft", "cost") is None


def test_seeds_without_a_prompt_in_common_and_damaged_files_are_named(tmp_path: Path) -> None:
    write_run(tmp_path / "seed_0" / "dpo_helpful", [1], [1], (1,))
    write_run(tmp_path / "seed_1" / "dpo_helpful", [1], [1], (2,))
    with pytest.raises(ValueError, match="seeds 0, 1 were not evaluated on the same prompts"):
        read_runs(tmp_path).mean("dpo_helpful", "cost")
    path = tmp_path / "seed_1" / "dpo_helpful" / "rollouts.csv"
    path.write_text("prompt_id,sample\n1,0\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"rollouts\.csv cannot be read"):
        read_runs(tmp_path)
