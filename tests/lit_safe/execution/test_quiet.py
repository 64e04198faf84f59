"""Whatever runs beside a training step runs in its precision, in evaluation mode, without gradient and unnoticed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_safe.anchors.reference_mass import ReferenceMass
from lit_safe.commands.annotate import annotate
from lit_safe.commands.certify import certify
from lit_safe.commands.loading import make_ready
from lit_safe.commands.refusals import refusals
from lit_safe.commands.sample import sample
from lit_safe.constraint.costs.importance import ImportanceCost
from lit_safe.constraint.costs.rollout import RolloutCost
from lit_safe.constraint.reachability.draw import draw_samples
from lit_safe.evaluation.evaluate import evaluate
from lit_safe.evaluation.judged import Judges, judge
from lit_safe.evaluation.kept_answers import Draws, kept_answers
from lit_safe.evaluation.suites import Suite, questions
from lit_safe.execution.quiet import device_of, quiet
from lit_safe.training.reference_cache import ReferenceCache
from models.pair import PolicyReference
from models.sources import TinyLlama
from tests.lit_safe.evaluate_world import Asked
from tests.lit_safe.pair_world import Fruit, aligned, pairs, trainer


class Noting(PolicyReference):
    """Notes how each pass of a model is run: (autocast, gradient, parts in training mode)."""

    def load(self) -> None:
        super().load()
        self.seen: list[tuple[bool, bool, int]] = []
        with self._open_reference() as reference:
            for backbone in (self.policy, reference):
                backbone.causal_lm.model.register_forward_pre_hook(self._note)

    def _note(self, *_: Any) -> None:
        torch.rand(3)  # a model that draws from the global generator
        training = sum(part.training for part in self.modules())
        self.seen.append((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled(), training))


class Length(nn.Module):
    """A cost function with a part that would draw in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, bool, int]] = []

    def forward(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        torch.rand(3)
        self.seen.append((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled(), int(self.training)))
        return torch.tensor([len(text) / 10 - 1 for text in responses])


SHORT = {"max_new_tokens": 2}


def anchor_prepare(module: Any, data: Any, cost: Any, folder: Path) -> None:
    ReferenceMass(samples_per_prompt=2, samples_per_step=2, max_prompts=2, **SHORT).prepare(module, data)


def importance(module: Any, data: Any, cost: Any, folder: Path) -> None:
    data.__class__ = type("FromReference", (type(data),), {"responses_from": {"reference"}})
    ImportanceCost(minimum_effective=2)(module, data, seed=0, epoch=0)


def over_refusals(module: Any, data: Any, cost: Any, folder: Path) -> None:
    (folder / "asked.csv").write_text("prompt,label\nMay I?,safe\n", encoding="utf-8")
    torch.save({"state_dict": module.state_dict(), "global_step": 0}, folder / "same.ckpt")
    files = {"prompts": str(folder / "asked.csv"), "ckpt_path": str(folder / "same.ckpt"), "out": str(folder / "out")}
    refusals(module, data, judge=cost, trainer=module.trainer, **files, **SHORT)


def certificate(module: Any, data: Any, cost: Any, folder: Path) -> None:
    asked = pairs(Fruit(60))  # the certify split of fewer pairs has no prompt
    asked.connect(module)
    certify(module, asked, scorer=cost, unsafe_limit=0.5, out=str(folder), trainer=module.trainer, **SHORT)


def safety(module: Any, data: Any, cost: Any, folder: Path) -> None:
    asked = questions({"good": Suite(Asked("good", 2), False)}, data)
    draws = Draws(0, 2, 1.0, (), "")
    jobs = [(question.prompt, 0) for question in asked]
    drawn = kept_answers(module, data, jobs, draws, digest="", path=folder / "kept.jsonl", batch_size=2)
    judge(Judges(cost, {}), asked, drawn, batch=2, cache_dir=folder, device=torch.device("cpu"))


PASSES: dict[str, Callable[[Any, Any, Any, Path], Any]] = {
    "reference cache": lambda module, data, cost, folder: ReferenceCache().fill(module, data.batches_of("train")),
    "anchor": anchor_prepare,
    "rollouts": lambda module, data, cost, folder: RolloutCost(cost, prompts=2, **SHORT)(module, data, seed=0, epoch=0),
    "importance": importance,
    "evaluation": lambda module, data, cost, folder: evaluate(module, data, cost=cost, prompts=2, **SHORT),
    "sample": lambda module, data, cost, folder: sample(
        module, data, out=str(folder / "out"), split="val", samples_per_prompt=1, trainer=module.trainer, **SHORT
    ),
    "refusals": over_refusals,
    "certify": certificate,
    "safety": safety,
    "reachability": lambda module, data, cost, folder: draw_samples(
        module, data, cost, cost, prompts=2, samples_per_prompt=2, batch_size=2, seed=0, **SHORT
    ),
}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", PASSES)
def test_a_pass_runs_in_the_runs_precision_and_leaves_no_trace(name: str, precision: str, tmp_path: Path) -> None:
    module, data, cost = aligned(pair=Noting(TinyLlama())), pairs(), Length()
    data.connect(module)
    make_ready(module, data, "auto", trainer(precision=precision), stage="fit")
    module.train()
    frozen = module.pair.policy.causal_lm.model.norm.eval()  # a part that somebody froze on purpose
    flags = {name: part.training for name, part in module.named_modules()}
    module.pair.seen.clear()
    state = torch.get_rng_state()
    PASSES[name](module, data, cost, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(module.pair.seen) == {(precision == "bf16-mixed", False, 0)}
    assert set(cost.seen) <= {(False, False, 0)}
    assert {name: part.training for name, part in module.named_modules()} == flags
    assert not frozen.training
    assert cost.training
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_annotations_leave_no_trace_either(tmp_path: Path) -> None:
    data, cost = pairs(), Length()
    data.setup()
    data.pairs("val")
    state = torch.get_rng_state()
    annotate(data, scorer=cost, out=str(tmp_path / "out.jsonl"))
    assert torch.equal(torch.get_rng_state(), state)
    assert set(cost.seen) == {(False, False, 0)}
    assert cost.training


@pytest.mark.parametrize("precision", ["bf16-true", "16-mixed"])
def test_commands_refuse_the_precisions_that_training_refuses(precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer()
    monkeypatch.setattr(run.precision_plugin, "precision", precision)
    data = pairs()
    monkeypatch.setattr(data, "setup", lambda stage: pytest.fail("data were read"))
    with pytest.raises(ValueError, match=f"'{precision}' is not supported"):
        make_ready(aligned(), data, "auto", run)


def test_autocast_is_that_of_the_device_where_the_policy_lies() -> None:
    """A trainer for a GPU that is not used would give autocast for CUDA, which does nothing on a CPU."""
    module = aligned()
    module.configure_model()
    module.trainer = trainer(precision="bf16-mixed")
    module.trainer.precision_plugin.device = "cuda"
    with quiet(module, seed=0) as device:
        assert torch.is_autocast_enabled("cpu")
    assert device == device_of(module) == torch.device("cpu")


def test_numbers_drawn_inside_are_those_of_the_seed() -> None:
    drawn = []
    for seed in (1, 1, 2):
        with quiet(None, seed):
            drawn.append(torch.rand(2).tolist())
        torch.rand(1)
    assert drawn[0] == drawn[1] != drawn[2]
