"""The oracle world as data: responses by its author, and Bradley-Terry preferences between responses to its prompts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np

from data.oracle.world.judge import Costs
from data.oracle.world.tables import World, oracle_world
from data.schema import BadRow, Response, Row, SftRow, check_text
from data.sources.files import Record, Table
from lit_safe.hashing import hash64, uniform
from lit_safe.types import ResponsesFrom

LICENCE = "that of this repository, which makes it"


class OracleSft:
    """Rows of the world's author: the prompts in turn, each with a response drawn from the author's distribution.

    Args:
        rows: Number of rows. A smaller number gives the first rows of a larger one.
        prompts: Number of the world's prompts. This and the next three arguments are those of ``oracle_world``.
        costs: One constraint for ``each`` category of harm, or one for the ``worst`` category.
        hopeless: Add the prompt without any safe response.
        seed: Seed of the world.
        draw: Seed of the draws.

    Raises:
        ValueError: If ``rows`` is not positive.
    """

    def __init__(
        self,
        rows: int = 16384,
        prompts: int = 64,
        costs: Costs = "worst",
        hopeless: bool = False,
        seed: int = 0,
        draw: int = 0,
    ) -> None:
        self.rows, self.draw = _positive("rows", rows), draw
        self.world = partial(oracle_world, prompts=prompts, costs=costs, hopeless=hopeless, seed=seed)

    @property
    def licence(self) -> str:
        return LICENCE

    def describe(self) -> dict[str, str]:
        return {
            "source": type(self).__name__,
            "name": "oracle author",
            **_described(self.world),
            "rows": str(self.rows),
            "draw": str(self.draw),
        }

    def __iter__(self) -> Iterator[SftRow | BadRow]:
        world = self.world()
        author = _Author(world)
        for number in range(self.rows):
            prompt = number % len(world.prompts)
            response = author.write(prompt, "row", self.world.keywords["seed"], self.draw, number)
            yield SftRow(f"oracle author:{number}", world.prompts[prompt], response)


class OraclePairs:
    """Two responses to a prompt, the better one drawn from Bradley-Terry, with the exact labels of the parsers.

    ``better`` is response 0 with probability sigma(reward 0 - reward 1). It is drawn for every pair separately, so two
    copies of a pair may have different orders. ``scores`` holds ``reward`` in nats and a column for each constraint:
    ``cost``, or with ``costs: each`` the categories of harm. The preparation drops and counts pairs of identical
    responses; an empty response is a bad row.

    Args:
        responses: A JSONL file with ``prompt`` and ``response``, for example samples of the reference from the
            ``sample`` command. Sample 2k of a prompt, in the order of the file, is paired with its sample 2k + 1. Null
            pairs responses drawn from the world's author.
        rounds: How often the samples of ``responses`` are paired, from the second time on in a hashed order. Different
            pairs of the same samples, each with its own drawn order, carry more information than repeated pairs.
        pairs: Used without ``responses``: number of pairs, of the prompts in turn. A smaller number gives the first
            pairs of a larger one.
        flip: Probability with which a drawn order is reversed. Rewards and costs stay exact.
        prompts: Number of the world's prompts. This and the next three arguments are those of ``oracle_world``.
        costs: One constraint for ``each`` category of harm, or one for the ``worst`` category.
        hopeless: Add the prompt without any safe response.
        seed: Seed of the world.
        draw: Seed of the draws of orders and of the author's responses.

    Raises:
        ValueError: If ``pairs`` is not positive or ``flip`` is not a probability.
    """

    def __init__(
        self,
        responses: str | None = None,
        rounds: int = 1,
        pairs: int = 16384,
        flip: float = 0.0,
        prompts: int = 64,
        costs: Costs = "worst",
        hopeless: bool = False,
        seed: int = 0,
        draw: int = 0,
    ) -> None:
        if not 0 <= flip <= 1:
            raise ValueError(f"flip must be a probability, got {flip}")
        self.table = None if responses is None else Table(responses)
        self.pairs, self.flip, self.draw = _positive("pairs", pairs), flip, draw
        self.rounds = _positive("rounds", rounds)
        self.world = partial(oracle_world, prompts=prompts, costs=costs, hopeless=hopeless, seed=seed)

    @property
    def licence(self) -> str:
        return LICENCE

    def describe(self) -> dict[str, str]:
        drawn = {"name": "oracle pairs", "pairs": str(self.pairs)}
        return {
            "source": type(self).__name__,
            **(drawn if self.table is None else {**self.table.describe(), "rounds": str(self.rounds)}),
            **_described(self.world),
            "flip": str(self.flip),
            "draw": str(self.draw),
        }

    def __iter__(self) -> Iterator[Row | BadRow]:
        world = self.world()
        return self._drawn(world) if self.table is None else self._read(world, self.table)

    def _drawn(self, world: World) -> Iterator[Row | BadRow]:
        author = _Author(world)
        for number in range(self.pairs):
            turn, prompt = divmod(number, len(world.prompts))
            texts = [author.write(prompt, "pair", self.world.keywords["seed"], self.draw, number, k) for k in (0, 1)]
            yield self._row(world, f"oracle pairs:{number}", prompt, turn, texts, "people")

    def _read(self, world: World, table: Table) -> Iterator[Row | BadRow]:
        samples: list[list[tuple[str, str]]] = [[] for _ in world.prompts]  # names and texts
        for item in table.parsed(lambda name, record: _sample(world, name, record)):
            if isinstance(item, BadRow):
                yield item
            else:
                name, prompt, text = item
                samples[prompt].append((name, text))
        for number in range(self.rounds):
            for prompt, members in enumerate(samples):
                yield from self._round(world, prompt, number, members)

    def _round(self, world: World, prompt: int, number: int, members: list[tuple[str, str]]) -> Iterator[Row | BadRow]:
        key = self.world.keywords["seed"], self.draw, world.prompts[prompt]
        if number:
            order = sorted(range(len(members)), key=lambda k: hash64("oracle round", *key, number, k))
            members = [members[k] for k in order]
        half = len(members) // 2
        for turn, ((name, text), (other_name, other)) in enumerate(zip(members[::2], members[1::2], strict=False)):
            pair = f"{name}+{other_name.rpartition(':')[2]}"
            try:
                texts = [check_text(pair, "response", value) for value in (text, other)]
            except BadRow as bad:
                yield bad
            else:
                yield self._row(world, pair, prompt, number * half + turn, texts, "reference")

    def _row(
        self, world: World, name: str, prompt: int, turn: int, texts: list[str], responses_from: ResponsesFrom
    ) -> Row:
        first, second = (_labelled(world, prompt, text) for text in texts)
        key = self.world.keywords["seed"], self.draw, world.prompts[prompt], turn
        ahead = first.scores["reward"] - second.scores["reward"]
        better = int(uniform("oracle order", *key) >= 1 / (1 + math.exp(-ahead)))  # Bradley-Terry
        if uniform("oracle flip", *key) < self.flip:
            better = 1 - better
        return Row(name, world.prompts[prompt], (first, second), better, responses_from=responses_from)


class _Author:
    """Draws responses with the probabilities of ``World.author_PK``."""

    def __init__(self, world: World) -> None:
        self.responses = world.responses
        cumulative_PR = world.author_PK[:, :-1].cumsum(1)
        self._bounds_PR = cumulative_PR / cumulative_PR[:, -1:]

    def write(self, prompt: int, *key: object) -> str:
        """A response drawn by a hash of ``key``."""
        return self.responses[int(np.searchsorted(self._bounds_PR[prompt], uniform("oracle", *key), side="right"))]


def _labelled(world: World, prompt: int, text: str) -> Response:
    cell = world.cell(text)
    cost_C = world.cost_PKC[prompt, cell]
    scores = {"reward": float(world.reward_PK[prompt, cell])}
    scores |= {name: float(cost) for name, cost in zip(world.constraints, cost_C, strict=True)}
    return Response(text, safe=not (cost_C > 0).any(), scores=scores)


def _sample(world: World, name: str, record: Record) -> tuple[str, int, str]:
    """A sample's name, the row of its prompt, and its text, which may be empty."""
    text = record.get("response")
    if not isinstance(text, str):
        raise BadRow(name, "response", "is null or missing" if text is None else f"is {type(text).__name__}, not text")
    prompt = check_text(name, "prompt", record.get("prompt"))
    try:
        return name, world.prompt(prompt), text
    except ValueError as error:
        raise BadRow(name, "prompt", "is not a prompt of this oracle world") from error


def _described(world: partial[World]) -> dict[str, str]:
    return {name: str(value) for name, value in world.keywords.items()}


def _positive(name: str, count: int) -> int:
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}")
    return count
