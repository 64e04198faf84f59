"""Every shipped YAML is parsed by the real command line and constructed; nothing is swallowed."""

import sys
from pathlib import Path

import pytest

from lit_safe.cli import SafeCLI, main

CONFIGS = Path(__file__).parents[1] / "configs"
# the only thing a machine without an accelerator may replace
HERE = ["--trainer.accelerator", "cpu", "--trainer.strategy", "auto", "--trainer.devices", "1"]
HERE += ["--trainer.precision", "32-true"]
DATA = ["--data", str(CONFIGS / "data" / "trl.yaml")]

SFT = ["-c", str(CONFIGS / "experiment" / "sft_7b.yaml")]
TOKENS = [*SFT, "--model.token_objective", str(CONFIGS / "token_objective" / "star_dss.yaml")]
STAGES = [str(CONFIGS / "oracle" / name) for name in ("sft.yaml", "preference.yaml")]

CHANGED = {  # experiments that change another one
    name: ["-c", str(CONFIGS / "experiment" / of)]
    for name, of in {"study.yaml": "quickstart.yaml", "study_sft.yaml": "quickstart_sft.yaml"}.items()
}
GROUPS = {
    "objective": lambda path: ["--model.objective", path, *DATA],
    "model": lambda path: ["--model.pair", path, *DATA],
    "data": lambda path: ["--data", path],
    "cost": lambda path: ["--dual.estimator", path, *DATA],
    "controller": lambda path: [
        "--dual.controller",
        path,
        "--dual.estimator",
        str(CONFIGS / "cost/rollout.yaml"),
        *DATA,
    ],
    "trainer": lambda path: ["-c", path, *DATA],
    "score": lambda path: ["-c", path, *DATA],
    "anchor": lambda path: ["--model.anchor", path, *DATA],
    "oracle": lambda path: ["-c", *([path] if path in STAGES else [STAGES[1], "-c", path])],
    "baseline": lambda path: [*DATA, "-c", path],
    "token_objective": lambda path: [*SFT, "--model.token_objective", path],
    "token_weights": lambda path: [*TOKENS, "--model.token_weights", path],
    "experiment": lambda path: [*CHANGED.get(Path(path).name, []), "-c", path],
}
SHIPPED = [path for group in GROUPS for path in sorted(CONFIGS.glob(f"**/{group}/*.yaml"))]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_shipped_yaml_is_constructed(path: Path) -> None:
    words = ["-c", str(CONFIGS / "base.yaml"), *GROUPS[path.parent.name](str(path)), *HERE]
    cli = main(words, run=False)
    assert cli.model is not None
    assert cli.datamodule is not None
    assert not list(Path.cwd().iterdir()), "a constructor did I/O"


@pytest.mark.parametrize("path", sorted((CONFIGS / "evaluation").glob("*.yaml")), ids=lambda path: path.name)
def test_a_shipped_evaluation_is_constructed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SafeCLI, "_run_subcommand", lambda self, command: None)
    base = ["-c", str(CONFIGS / "base.yaml"), "--data", "data.questions.Questions", *HERE]
    built = main(["evaluate", *base, "-c", str(path)]).config_init["evaluate"]
    assert all(hasattr(suite.source, "describe") for suite in built["suites"].values())
    assert callable(built["refusal_judge"])
    assert not list(Path.cwd().iterdir()), "a constructor did I/O"


def test_no_yaml_is_left_out() -> None:
    others = {CONFIGS / "base.yaml", *(CONFIGS / "scorer").glob("*.yaml")}  # scorers: tests/models/test_scorers*.py
    others |= set((CONFIGS / "evaluation").glob("*.yaml"))
    others |= set((CONFIGS / "pipeline").glob("*.yaml"))  # tests/lit_safe/stages/test_pipeline.py
    others |= set((CONFIGS / "suite").glob("*.yaml"))  # below, all in one command
    assert set(CONFIGS.rglob("*.yaml")) == {*SHIPPED, *others}


def test_every_suite_is_a_source_of_prompts() -> None:
    suites = sorted((CONFIGS / "suite").glob("*.yaml"))
    added = [word for path in suites for word in ("--data.prompt_sources+", str(path))]
    cli = main(["-c", str(CONFIGS / "base.yaml"), *DATA, *added, *HERE], run=False)
    assert len(cli.datamodule.prompt_sources) == len(suites)
    assert all(source.licence != "unknown" for source in cli.datamodule.prompt_sources)
    assert not list(Path.cwd().iterdir()), "a constructor did I/O"


def test_one_flag_swaps_the_objective_of_an_experiment() -> None:
    base = ["-c", str(CONFIGS / "base.yaml"), "-c", str(CONFIGS / "experiment" / "safe_dpo_7b.yaml"), *HERE]
    swapped = main([*base, "--model.objective", str(CONFIGS / "objective" / "c_dpo.yaml")], run=False)
    assert repr(swapped.model.objective) == "ConstrainedDPO(beta=0.1, labels='soft', rectify=False)"
    changed = main([*base, "--model.objective.offset", "3"], run=False)
    assert repr(changed.model.objective) == "SafeDPO(beta=0.1, offset=3.0, labels='ordered')"


def test_a_misspelt_setting_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["-c", str(CONFIGS / "base.yaml"), *DATA, "--model.objective.bata", "1"], run=False)
    assert "bata" in capsys.readouterr().err
