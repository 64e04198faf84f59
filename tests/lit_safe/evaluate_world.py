"""Suites of a few prompts, judges of their responses, and a call of ``evaluate`` on a tiny model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.questions import Questions
from data.schema import Message, PromptRow
from lit_safe.commands.evaluate import evaluate
from lit_safe.evaluation.judged import Judged
from lit_safe.evaluation.suites import Question, Suite
from lit_safe.rollouts.texts import Drawn
from lit_safe.types import Prompt
from tests.lit_safe.pair_world import aligned


class Asked:
    """``count`` prompts with categories in turn."""

    licence = "CC0-1.0"

    def __init__(self, name: str, count: int, categories: Sequence[str | None] = (None,), harmful: Any = None) -> None:
        self.name, self.count, self.categories, self.harmful = name, count, categories, harmful

    def describe(self) -> dict[str, str]:
        return {"name": self.name}

    def __iter__(self) -> Any:
        for i in range(self.count):
            row = PromptRow(
                f"{self.name}:{i}", (Message("user", f"{self.name} {i}?"),), self.categories[i % len(self.categories)]
            )
            yield row if self.harmful is None else Labelled(row, self.harmful)


class Labelled:
    """A row that says whether its prompt is harmful."""

    def __init__(self, row: PromptRow, harmful: bool) -> None:
        self.id, self.prompt, self.category, self.harmful = row.id, row.prompt, row.category, harmful


class Even:
    """A response of an even number of characters is a refusal."""

    units = "refusals"
    range = (0.0, 1.0)

    def __init__(self) -> None:
        self.read: list[str] = []

    def digest(self) -> str:
        return type(self).__name__

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        self.read += responses
        return torch.tensor([float(len(text) % 2 == 0) for text in responses])


class Unsure(Even):
    """No number for the prompt that ends with 1."""

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        unknown = torch.tensor([prompt.endswith("1?") for prompt in prompts])
        return torch.where(unknown, torch.inf, super().__call__(prompts, responses))


class Dies(Even):
    """Ends after one call, unless it is told to live."""

    lives = False

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        if self.read and not type(self).lives:
            raise ConnectionError("the judge is gone")
        return super().__call__(prompts, responses)


SUITES = {
    "bad": Suite(Asked("bad", 8, ("drugs", "theft")), harmful=True),
    "good": Suite(Asked("good", 6), harmful=False),
}


def run(folder: Path, *, spread: float | None = 0.1, data: Any = None, **options: Any) -> dict[str, Any]:
    """Evaluate a checkpoint with changed weights (None: those of the start) and read the report."""
    path = folder / "run" / "checkpoints" / "last.ckpt"
    if not path.exists():
        module = aligned()
        module.configure_model()
        torch.manual_seed(0)
        if spread is not None:
            torch.nn.init.normal_(next(module.pair.parameters()), std=spread)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": module.state_dict(), "global_step": 7}, path)
    module, data = aligned(), data or Questions(64)
    data.connect(module)
    merged: dict[str, Any] = {"suites": SUITES, "refusal_judge": Even(), "max_new_tokens": 5, "batch_size": 4}
    merged |= {"ckpt_path": str(path), **options}
    assert evaluate(module, data, **merged) == 0
    to = Path(merged["out"]) if merged.get("out") else folder / "run" / "evaluation"
    return json.loads((to / "report.json").read_text(encoding="utf-8"))


def finding(report: dict[str, Any], measure: str, suite: str | None = "bad", **group: Any) -> dict[str, Any]:
    """The one finding of a group."""
    wanted = {"measure": measure, "suite": suite, "category": None, "unseen": False, **group}
    (one,) = [row for row in report["findings"] if all(row[name] == value for name, value in wanted.items())]
    return one


def question(
    i: int, harmful: bool = True, suite: str = "s", category: str | None = None, seen: bool = False
) -> Question:
    return Question(suite, f"{suite}:{i}", harmful, category, Prompt(i, (i,), f"prompt {i}"), seen)


def judged(refusal: Sequence[float], **scores: Sequence[float]) -> Judged:
    """Responses whose scores are given."""
    import numpy as np

    columns = {"refusal": refusal, **{name.replace("__", "/"): values for name, values in scores.items()}}
    drawn = [Drawn(f"text {i}", True, 3) for i in range(len(refusal))]
    return Judged(drawn, {name: np.array(values, np.float64) for name, values in columns.items()})


def evaluate_as_rank(folder: Path, rank: int) -> None:
    """One rank of two."""
    run(folder, out=str(folder / "together"), samples_per_prompt=2)
