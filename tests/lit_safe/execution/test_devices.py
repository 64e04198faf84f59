"""Every command that runs a model runs it where it is told, on the accelerator by default."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_safe.cli import COMMANDS, _command
from lit_safe.commands.annotate import annotate
from lit_safe.commands.certify import certify
from lit_safe.commands.doctor import doctor
from lit_safe.commands.evaluate import evaluate as evaluate_safety
from lit_safe.commands.export import export
from lit_safe.commands.fit_scorer import fit_scorer
from lit_safe.commands.reach import reach
from lit_safe.commands.refusals import refusals
from lit_safe.commands.sample import sample
from lit_safe.constraint.costs.rollout import RolloutCost
from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.evaluation.evaluate import evaluate
from lit_safe.execution.devices import chosen_device
from models.scorers.hidden_linear import HiddenLinearHarm
from models.sources import TinyLlama
from tests.lit_safe.dual_world import Table, Toy
from tests.lit_safe.held_out_world import HeldOut, module
from tests.lit_safe.pair_world import aligned, trainer


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that says it has two CUDA devices."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("name", "device"), [("auto", "cuda"), ("cpu", "cpu"), ("cuda", "cuda"), ("cuda:0", "cuda:0"), ("cuda:1", "cuda:1")]
)
def test_auto_is_the_accelerator_and_every_device_that_is_there_can_be_named(name: str, device: str) -> None:
    assert chosen_device(name) == torch.device(device)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("name", ["cuda:2", "mps", "xpu:0", "meta"])
def test_a_device_that_is_not_there_is_refused_in_one_line_that_says_what_is(name: str) -> None:
    with pytest.raises(ValueError, match=f"^--device {name} does not exist: this machine has 2 of type cuda") as caught:
        chosen_device(name)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_gpu")
def test_without_an_accelerator_auto_is_the_cpu_and_cuda_is_refused() -> None:
    assert chosen_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="this machine has no accelerator"):
        chosen_device("cuda")


def test_what_is_no_device_is_refused_with_the_names_that_are() -> None:
    with pytest.raises(ValueError, match="--device gpu is not a device: use one of auto, cpu, cuda"):
        chosen_device("gpu")


@pytest.mark.usefixtures("two_gpus")
def test_auto_follows_the_trainers_accelerator() -> None:
    assert chosen_device("auto", trainer()) == torch.device("cpu")
    assert chosen_device("cuda:1", trainer()) == torch.device("cuda:1")


RUN_A_MODEL = ("doctor", "export", "annotate", "fit_scorer", "refusals", "sample", "certify", "reach", "evaluate")


@pytest.mark.parametrize("name", RUN_A_MODEL)
def test_every_command_that_runs_a_model_takes_a_device(name: str) -> None:
    assert name in COMMANDS
    assert inspect.signature(_command(name)).parameters["device"].default == "auto"


class Unread:
    """Data that nobody may read yet."""

    def setup(self, stage: str) -> None:
        raise AssertionError("data were read")

    def pairs(self, split: str) -> None:
        raise AssertionError("data were read")


def unread_module() -> Any:
    return aligned(pair=SimpleNamespace(load=lambda: pytest.fail("the model was read")))


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    "command",
    [
        lambda folder: doctor(unread_module(), Unread(), device="cuda:7"),
        lambda folder: sample(unread_module(), Unread(), out=str(folder / "out"), device="cuda:7"),
        lambda folder: certify(
            unread_module(), Unread(), scorer=Follower(), unsafe_limit=0.1, out=str(folder), device="cuda:7"
        ),
        lambda folder: export(unread_module(), Unread(), ckpt_path="", out=str(folder / "out"), device="cuda:7"),
        lambda folder: annotate(Unread(), scorer=Follower(), out=str(folder / "out.jsonl"), device="cuda:7"),
        lambda folder: fit_scorer(Unread(), scorer=Follower(), device="cuda:7"),
        lambda folder: refusals(
            unread_module(), Unread(), judge=Follower(), prompts=asked(folder), ckpt_path="", out="", device="cuda:7"
        ),
        lambda folder: evaluate_safety(
            unread_module(), Unread(), suites={}, refusal_judge=Follower(), out=str(folder), device="cuda:7"
        ),
        lambda folder: reach(
            unread_module(),
            Unread(),
            cost=Follower(),
            trainer=trainer(folder, callbacks=[DualAscent()]),
            device="cuda:7",
        ),
    ],
    ids=["doctor", "sample", "certify", "export", "annotate", "fit_scorer", "refusals", "evaluate", "reach"],
)
def test_a_missing_device_ends_a_command_before_anything_is_read(
    command: Callable[[Path], int], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="--device cuda:7 does not exist"):
        command(tmp_path)


def asked(folder: Path) -> str:
    (folder / "asked.csv").write_text("prompt,label\nMay I?,safe\n", encoding="utf-8")
    return str(folder / "asked.csv")


class Follower:
    """A cost function that runs a model of its own, and says where."""

    def __init__(self) -> None:
        self.places: list[torch.device] = []

    def use_device(self, device: torch.device) -> None:
        self.places.append(device)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        assert self.places, "scored before it was told where"
        return torch.tensor([float(len(response)) for response in responses])


def test_a_scorer_follows_the_policy_in_rollouts_and_in_evaluations() -> None:
    in_rollouts, in_evaluations = Follower(), Follower()
    RolloutCost(in_rollouts)(SimpleNamespace(pair=Table()), Toy(), seed=0, epoch=0)
    evaluate(module(), HeldOut(), cost=in_evaluations, prompts=2)
    assert in_rollouts.places == in_evaluations.places == [torch.device("cpu")]


def test_hidden_linear_harm_moves_its_model_whether_it_is_loaded_yet_or_not() -> None:
    scorer = HiddenLinearHarm("nowhere", TinyLlama(), layer=1)
    features = scorer.features
    scorer.use_device(torch.device("meta"))
    features._load_model()
    assert {p.device.type for p in features._model.parameters()} == {"meta"}
    other = HiddenLinearHarm("nowhere", TinyLlama(), layer=1)
    other.features._load_model()
    assert {p.device.type for p in other.features._model.parameters()} == {"cpu"}
    other.use_device(torch.device("meta"))
    assert {p.device.type for p in other.features._model.parameters()} == {"meta"}
