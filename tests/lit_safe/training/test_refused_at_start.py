"""What can be known before the first step is refused there, in every command, before a model is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from data.annotators.scores import Score, Scores
from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.objectives import DPO, ConstrainedDPO, SafeDPO
from lit_safe.types import Annotation, Objective, Pair, Scored
from tests.lit_safe.dual_world import ExactCost
from tests.lit_safe.pair_world import Fruit, aligned, pairs, trainer

COMMANDS = ("fit", "validate", "test", "predict")


def run(command: str, module: Any, data: Any, folder: Path, **options: Any) -> None:
    limits = {"max_epochs": 1, "limit_val_batches": 1.0, "limit_test_batches": 1.0, "limit_predict_batches": 1.0}
    getattr(trainer(folder, **{**limits, **options}), command)(module, data)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_label_that_the_objective_reads_is_missing(command: str, tmp_path: Path) -> None:
    for objective, lacking in ((ConstrainedDPO(), "reward"), (SafeDPO(labels="soft"), "reward")):
        module = aligned(objective)
        data = pairs(annotator=Scores((Score("cost"),), preference_strength=None))
        with pytest.raises(ValueError, match=rf"row fruit:\d+, column chosen {lacking}: not known"):
            run(command, module, data, tmp_path)
        assert module.pair.policy is None


@pytest.mark.parametrize("command", COMMANDS)
def test_multipliers_and_constraints_differ_in_number(command: str, tmp_path: Path) -> None:
    two = Scores((Score("cost"), Score("reward")), Score("reward"))
    for annotator, multiplier, ask in ((None, [1.0, 2.0], "one number"), (two, 1.0, "a list of numbers, 2 of them")):
        module = aligned(ConstrainedDPO(), multiplier=multiplier)
        data = pairs(**({} if annotator is None else {"annotator": annotator}))
        with pytest.raises(ValueError, match=rf"model.multiplier has shape .* give {ask}"):
            run(command, module, data, tmp_path)
        assert module.pair.policy is None
    aligned(DPO(), multiplier=[1.0, 2.0])
    run("validate", aligned(DPO(), multiplier=[1.0, 2.0]), pairs(), tmp_path)  # which does not read it


@pytest.mark.parametrize("objective", [DPO(), SafeDPO()], ids=["dpo", "safe_dpo"])
def test_a_multiplier_that_is_to_move_and_that_nobody_reads(objective: Objective, tmp_path: Path) -> None:
    dual = DualAscent(lr=1.0, estimator=ExactCost())
    module = aligned(objective)
    with pytest.raises(ValueError, match=rf"{type(objective).__name__} does not read the multiplier: leave dual.lr"):
        run("fit", module, pairs(), tmp_path, callbacks=[dual])
    assert module.pair.policy is None


@pytest.mark.parametrize("command", COMMANDS)
def test_a_split_without_rows(command: str, tmp_path: Path) -> None:
    seen: list[int] = []
    module = aligned()
    module.optimizer_step_over = lambda shares: seen.append(1)
    data = pairs(Fruit(1))
    with pytest.raises(ValueError, match=r"split has no rows.*held_out: false.*limit_val_batches: 0"):
        run(command, module, data, tmp_path)
    assert not seen


@dataclass(frozen=True)
class Undeclared:
    """An objective of an older kind."""

    beta: float = 0.1
    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, logratio: Pair, label: Annotation, multiplier: torch.Tensor) -> Scored:
        return Scored(logratio.margin, torch.ones_like(logratio.margin))


def test_an_objective_that_does_not_say_what_it_reads() -> None:
    with pytest.raises(TypeError, match="objective: Undeclared has no reads_multiplier"):
        aligned(Undeclared())
