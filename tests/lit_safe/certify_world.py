"""A small policy, scorers of its text, and a call of ``certify`` on them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_safe.commands.certify import certify
from tests.lit_safe.pair_world import Fruit, aligned, pairs

SHORT: dict[str, Any] = {"max_new_tokens": 6, "batch_size": 4}
RANGE = {"cost_range": [-1.0, 1.0], "units": "tenths of 40 characters"}


class Length:
    """Cost by the length of a response, from -1 (empty) to 1 (40 characters and more)."""

    units = "tenths of 40 characters"

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        return torch.tensor([min(len(text) / 20 - 1, 1.0) for text in responses], dtype=torch.float64)


class InFolder(Length):
    """A scorer whose card is in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)


class Loud(Length):
    """Another scorer: unsafe if there is an upper-case letter."""

    units = "letters"

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        return torch.tensor([1.0 if any(c.isupper() for c in text) else -1.0 for text in responses])


class Broken(Length):
    """NaN for every response but that of the check."""

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        known = [text == "I cannot say." for text in responses]
        return torch.where(torch.tensor(known), 0.0, float("nan"))


class BrokenOnce(Length):
    """NaN for one response of the run: the longest kind."""

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        costs = super().__call__(prompts, responses)
        return torch.where(torch.tensor([prompt.endswith("7?") for prompt in prompts]), float("nan"), costs)


class Declared(Length):
    """Costs with a declared range."""

    range = (-1.0, 1.0)


class Left(Declared):
    """Leaves the range for one response of the run: that to the prompt which ends with 7."""

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        costs = super().__call__(prompts, responses)
        return torch.where(torch.tensor([prompt.endswith("7?") for prompt in prompts]), 1.5, costs)


class Share(Length):
    """Costs from 0 to 1 in other units."""

    units = "share of 40 characters"
    range = (0.0, 1.0)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        return super().__call__(prompts, responses) / 2 + 0.5


class Both(Length):
    """Two constraints."""

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        return torch.stack([super().__call__(prompts, responses)] * 2, -1)


def world(count: int = 400) -> Any:
    return pairs(Fruit(count))


def run(folder: Path, *, name: str = "run", data: Any = None, seed: int = 0, **options: Any) -> dict[str, Any]:
    """Certify a checkpoint in a run folder and read what was written."""
    module = aligned()
    module.configure_model()
    torch.manual_seed(seed)
    torch.nn.init.normal_(next(module.pair.parameters()), std=0.1)
    path = folder / name / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": module.state_dict(), "global_step": 7}, path)
    merged = {"scorer": Length(), "limit": 0.9, **RANGE, **SHORT, **options}
    module, data = aligned(), data or world()
    data.connect(module)
    assert certify(module, data, ckpt_path=str(path), **merged) == 0
    return json.loads((folder / name / "certificate.json").read_text(encoding="utf-8"))


def lines(folder: Path, name: str = "run") -> list[dict[str, Any]]:
    text = (folder / name / "certificate_responses.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()][1:]


def certify_as_rank(folder: Path, scorer: type[Length], rank: int) -> None:
    """One rank of two. Each writes what it was told, or its verdict, into its own file."""
    folder.mkdir(exist_ok=True)
    module, data = aligned(), world(160)
    data.connect(module)
    try:
        certify(module, data, scorer=scorer(), limit=0.9, unsafe_limit=0.5, out=str(folder), **RANGE, **SHORT)
        said = "done"
    except ValueError as error:
        said = str(error)
    (folder / f"said.{rank}").write_text(said, encoding="utf-8")


def certify_twice_as_rank(folder: Path, rank: int) -> None:
    """One rank of two, with a scorer that works and then with one that fails on one response."""
    certify_as_rank(folder / "together", Length, rank)
    certify_as_rank(folder / "broken", BrokenOnce, rank)
