"""Doctor on score models: a healthy one passes, and each planted fault fails the check that is there for it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from data.annotators.scores import Score, Scores
from lit_safe.commands.doctor import doctor
from lit_safe.doctor.score_checks import CHECKS
from lit_safe.errors.message import SettingError
from lit_safe.training.sft import SupervisedFineTuning
from lit_safe.types import PackedSequences
from models.adaptation import Full, LoRA
from models.pair import PolicyReference
from models.score_network import ScoreNetwork
from models.sources import TinyLlama
from tests.lit_safe.pair_world import adamw, pairs, talk
from tests.lit_safe.training.test_score_model import scoring

Examine = Callable[..., tuple[int, set[str]]]


@pytest.fixture
def failed(capsys: pytest.CaptureFixture[str]) -> Examine:
    """Runs the command: its exit status, and the names of the checks that it shows as failed."""

    def run(module: Any, data: Any = None) -> tuple[int, set[str]]:
        status = doctor(module, data or pairs())
        cells = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
        names = [[cell.strip() for cell in row[1:3]] for row in cells]
        assert sum(verdict in ("ok", "FAILED") for _, verdict in names) == len(CHECKS)
        return status, {name for name, verdict in names if verdict == "FAILED"}

    return run


@pytest.mark.parametrize("adaptation", [None, Full(), LoRA(r=2)], ids=["frozen", "full", "lora"])
def test_a_healthy_score_model_passes_and_is_left_as_it_was(adaptation: Any, failed: Examine) -> None:
    module = scoring(network=ScoreNetwork(TinyLlama(), adaptation))
    assert failed(module) == (0, set())
    assert not module.pair.head.weight.detach().any()
    assert module.pair.trunk.layout == "padded"
    assert all(p.grad is None for p in module.parameters())


class Tampered(ScoreNetwork):
    """Hidden states go through ``tamper``."""

    def __init__(self, tamper: Callable[[Tensor, PackedSequences], Tensor]) -> None:
        super().__init__(TinyLlama())
        self.tamper = tamper

    def features(self, sequences: PackedSequences) -> Tensor:
        return self.tamper(super().features(sequences), sequences)


class Trained(ScoreNetwork):
    """Heads that do not start at 0."""

    def load(self) -> None:
        super().load()
        torch.nn.init.normal_(self.head.weight, generator=torch.Generator().manual_seed(0))


class Thawed(ScoreNetwork):
    """Says that its trunk is frozen, and trains it."""

    def load(self) -> None:
        super().load()
        self.trunk.requires_grad_(True)


def by_neighbour(hidden_ND: Tensor, sequences: PackedSequences) -> Tensor:
    return hidden_ND + 0.1 * hidden_ND.mean(0)


def by_length(hidden_ND: Tensor, sequences: PackedSequences) -> Tensor:
    return hidden_ND * (1 + 0.01 * sequences.cu_seqlens.diff().max())


def broken(hidden_ND: Tensor, sequences: PackedSequences) -> Tensor:
    return torch.where(torch.arange(len(hidden_ND))[:, None] == 1, torch.nan, hidden_ND)


@pytest.mark.parametrize(
    ("network", "check"),
    [
        (lambda: Trained(TinyLlama()), "loss at step 0"),
        (lambda: Thawed(TinyLlama()), "what trains"),
        (lambda: Tampered(by_neighbour), "batch invariance"),
        (lambda: Tampered(by_length), "padding"),
        (lambda: Tampered(broken), "scores"),
    ],
)
def test_a_planted_fault_fails_the_check_that_is_there_for_it(network: Any, check: str, failed: Examine) -> None:
    status, found = failed(scoring(network=network()))
    assert status == 1
    assert check in found


def test_labels_without_a_border_are_named(failed: Examine) -> None:
    class Safe(Scores):
        def costs(self, row: Any) -> Any:
            return (-1.0,), (-1.0,)

    data = pairs(annotator=Safe((Score("cost"),), Score("reward")))
    assert failed(scoring(), data) == (1, {"labels"})


def test_a_module_that_doctor_does_not_know_is_named() -> None:
    module = SupervisedFineTuning(PolicyReference(TinyLlama()), adamw(1e-3))
    with pytest.raises(SettingError, match="doctor checks preference training and score models, not Supervised"):
        doctor(module, talk())
