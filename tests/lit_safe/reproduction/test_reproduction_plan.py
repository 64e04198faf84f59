"""The plan of a reproduction: every command is one that we have, and it is told before anything runs."""

from pathlib import Path

import pytest
import yaml

from lit_safe.errors.message import SettingError
from lit_safe.installation import find_config
from lit_safe.reproduction.methods import METHODS
from lit_safe.reproduction.plan import (
    ORACLE_METHODS,
    SCALES,
    ScaleName,
    pipeline,
    pipeline_file,
    plan_lines,
    planned,
    write_pipelines,
)

REAL: list[ScaleName] = ["135m", "7b"]


@pytest.mark.parametrize("scale", REAL)
def test_every_stage_is_a_method_or_prepares_one_and_has_an_estimate(scale: ScaleName) -> None:
    path = SCALES[scale].pipeline
    assert path is not None
    stages = pipeline(path, 3)
    for stage in stages:
        measures = stage.command == "evaluate" and stage.model in METHODS
        assert (
            stage.name in METHODS or measures or stage.name in ("answers", "sft_llama2") or stage.command == "annotate"
        )
        assert ("merge" if stage.merge else stage.command) in SCALES[scale].minutes
        if stage.merge is None and stage.command == "fit":
            assert stage.options["seed_everything"] == 3


@pytest.mark.parametrize("scale", REAL)
def test_the_pipeline_that_is_written_is_the_one_that_is_planned(scale: ScaleName, tmp_path: Path) -> None:
    path = SCALES[scale].pipeline
    assert path is not None
    write_pipelines(scale, tmp_path, [0, 5])
    content = yaml.safe_load(pipeline_file(tmp_path, 5).read_text(encoding="utf-8"))
    assert content["folder"] == str(tmp_path / "seed_5")
    written = {entry["name"]: entry.get("options", {}) for entry in content["stages"]}
    assert written == {stage.name: stage.options for stage in pipeline(path, 5)}
    steps = planned(scale, tmp_path, [0, 5])
    assert steps[1].words == ("stages", "-c", str(tmp_path / "seed_5.yaml"), "--folder", str(tmp_path / "seed_5"))


def test_the_oracle_runs_every_method_of_its_list_once_a_seed() -> None:
    (step,) = planned("oracle", Path("runs/x"), [0, 1, 2])
    assert all(Path(find_config(f"configs/oracle/{file}.yaml")).exists() for file in ORACLE_METHODS.values())
    assert set(ORACLE_METHODS) <= set(METHODS)
    words = " ".join(step.words)
    assert "--seeds 0 1 2 --options --trainer.limit_train_batches=24" in words
    assert planned("oracle", Path("runs/x"), [0])[0].minutes < step.minutes <= 60


def test_the_plan_names_time_hardware_and_every_command() -> None:
    lines = plan_lines("7b", planned("7b", Path("runs/x"), [0]))
    text = "\n".join(lines)
    assert "8 GPUs" in text
    assert "2 TB of disk" in text
    assert "Nobody has run this here" in text
    assert "lit-safe stages -c runs/x/seed_0.yaml --folder runs/x/seed_0" in text
    assert "about 29 h" in text


@pytest.mark.parametrize("seeds", [[], [1, 1], [-1]])
def test_seeds_that_cannot_be_are_refused(seeds: list[int]) -> None:
    with pytest.raises(SettingError, match="distinct numbers >= 0"):
        planned("oracle", Path("runs/x"), seeds)
