"""The oracle world: prompts, responses, and each response's reward and cost, as tables.

Letters: P prompts, R well-formed responses, K = R + 1 cells (the last is malformed text), C cost constraints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from data.oracle.world.grammar import (
    HOPELESS,
    OPENERS,
    PLACES,
    SLOTS,
    TASKS,
    Kind,
    Question,
    Refusal,
    answers,
    read_prompt,
    say_prompt,
    say_response,
)
from data.oracle.world.judge import Costs, Judge, taste
from lit_safe.hashing import hash64

Floats = npt.NDArray[np.float64]

MOST_PROMPTS = len(TASKS) * len(PLACES)
REFUSED: dict[Kind, float] = {"benign": 0.05, "borderline": 0.08, "risky": 0.11}  # share refused by the author
REFUSED_PLAINLY = 0.6  # share of the plain refusal among the author's refusals
HABIT = (0.45, 0.33, 0.22)  # the author's weights of the three options of a slot, before the task's taste


@dataclass(frozen=True, eq=False)
class World:
    """The whole world as tables of float64, made by ``oracle_world``.

    Attributes:
        prompts: Plain text, tokens separated by single spaces.
        kinds: Kind of each prompt: benign, borderline or risky.
        responses: The well-formed responses, the same for every prompt.
        constraints: Names of the C cost columns.
        reward_PK: Bradley-Terry nats.
        cost_PKC: Cost units, > 0 unsafe.
        author_PK: Probability of each response under the author of the fine-tuning data; 0 for malformed text.
    """

    prompts: tuple[str, ...]
    kinds: tuple[Kind, ...]
    responses: tuple[str, ...]
    constraints: tuple[str, ...]
    reward_PK: Floats
    cost_PKC: Floats
    author_PK: Floats

    def cell(self, response: str) -> int:
        """The column of a response: its index, or K - 1 for malformed text."""
        return self._cells.get(response, len(self.responses))

    def prompt(self, text: str) -> int:
        """The row of a prompt.

        Raises:
            ValueError: It is not one of this world's prompts.
        """
        if text not in self._rows:
            raise ValueError(f"not one of the {len(self.prompts)} prompts of this oracle world: {text!r}")
        return self._rows[text]

    @cached_property
    def _cells(self) -> dict[str, int]:
        return {text: column for column, text in enumerate(self.responses)}

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {text: row for row, text in enumerate(self.prompts)}


@lru_cache
def oracle_world(prompts: int = 64, costs: Costs = "worst", hopeless: bool = False, seed: int = 0) -> World:
    """The world of these options. The same options give the same object; do not write to its tables.

    Args:
        prompts: Number of prompts, of all categories and kinds in turn; at most 81.
        costs: One constraint for ``each`` category of harm, or one for the ``worst`` category.
        hopeless: Add the prompt without any safe response.
        seed: Seed of the rewards, of the author's distribution, and of the choice of prompts.

    Raises:
        ValueError: If there are fewer prompts, or ``costs`` is unknown.
    """
    if not 1 <= prompts <= MOST_PROMPTS:
        raise ValueError(f"prompts must be 1 to {MOST_PROMPTS}, got {prompts}")
    judge = Judge(costs, seed)
    asked = (*_prompts(seed)[:prompts], *([HOPELESS] if hopeless else []))
    responses = tuple(map(say_response, answers()))
    cells = (*responses, "")  # the empty text represents all malformed text
    tables = (
        np.array([[judge.reward(prompt, text) for text in cells] for prompt in asked]),
        np.array([[judge.cost(prompt, text) for text in cells] for prompt in asked]),
        np.array([_author(read_prompt(prompt), seed) for prompt in asked]),
    )
    for table in tables:
        table.setflags(write=False)
    return World(asked, tuple(read_prompt(p).place.kind for p in asked), responses, judge.constraints, *tables)


def _prompts(seed: int) -> list[str]:
    """Every ordinary prompt. Any first few of them have all categories and kinds in about equal numbers."""
    shuffled = sorted(
        ((task, place) for task in TASKS for place in PLACES),
        key=lambda asked: hash64("oracle prompt", seed, asked[0].text, asked[1].text),
    )
    dealt: dict[tuple[str, Kind], int] = {}
    rounds = []
    for task, place in shuffled:
        cell = (task.category, place.kind)
        dealt[cell] = dealt.get(cell, 0) + 1
        rounds.append((dealt[cell], cell, say_prompt(task, place)))
    return [prompt for _, _, prompt in sorted(rounds)]


def _author(question: Question, seed: int) -> list[float]:
    """The author's probabilities: each slot is drawn independently by habit and the task's taste; some are refusals."""
    refused = REFUSED[question.place.kind]
    slots = []
    for slot in range(len(SLOTS)):
        tastes = [taste("author", seed, question.task.text, slot, option) for option in range(len(HABIT))]
        weights = [habit * math.exp(0.6 * taste) for habit, taste in zip(HABIT, tastes, strict=True)]
        slots.append([weight / sum(weights) for weight in weights])
    row = []
    for answer in answers():
        if isinstance(answer, Refusal):
            row.append(refused * (1 - REFUSED_PLAINLY if answer.number else REFUSED_PLAINLY))
        else:
            chosen = math.prod(slot[option] for slot, option in zip(slots, answer.options, strict=True))
            row.append((1 - refused) * chosen / len(OPENERS))
    return [*row, 0.0]
