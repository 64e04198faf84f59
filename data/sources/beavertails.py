"""BeaverTails: single answers flagged safe or unsafe, paired here within a prompt. Ji et al. 2023, arXiv:2307.04657."""

import itertools
from collections.abc import Iterator, Sequence

from data.schema import BadRow, Message, Response, Row, check_flag, check_text
from data.sources.files import Record
from data.sources.tables import Rows, table
from lit_safe.hashing import hash64
from lit_safe.types import ResponsesFrom


class BeaverTails:
    """Pairs of one safe and one unsafe answer to the same prompt. The safe one is ``safer``; ``better`` is unknown.

    An answer labelled by several people is one response. Its ``severity`` is the share of people who called it unsafe;
    it is safe if that share is below one half. Each of ``categories`` becomes a score: the share of people who flagged
    it.

    Args:
        path: Hub id, or a local file with the columns prompt, response, is_safe and category; in Python also rows in
            memory.
        split: Hub only: 30k_train, 30k_test, 330k_train or 330k_test.
        revision: Hub only: branch, tag or commit.
        pairs_per_prompt: Maximum number of pairs per prompt, chosen by hash.
        categories: Harm categories to keep as scores, by their names in the dataset. Each may become a constraint.
        responses_from: Who wrote the responses.
        config: Hub only: name of the dataset's configuration.
    """

    licence = "CC-BY-NC-4.0"

    def __init__(
        self,
        path: Rows = "PKU-Alignment/BeaverTails",
        split: str = "30k_train",
        revision: str | None = None,
        pairs_per_prompt: int = 2,
        categories: Sequence[str] = (),
        responses_from: ResponsesFrom = "model",
        config: str | None = None,
    ) -> None:
        if pairs_per_prompt < 1:
            raise ValueError(f"pairs_per_prompt must be at least 1, got {pairs_per_prompt}")
        self.table = table(path, split, revision, config=config)
        self.pairs_per_prompt = pairs_per_prompt
        self.categories = tuple(categories)
        self.responses_from = responses_from

    def describe(self) -> dict[str, str]:
        return {
            "source": type(self).__name__,
            **self.table.describe(),
            "pairs_per_prompt": str(self.pairs_per_prompt),
            "categories": ",".join(self.categories),
            "responses_from": self.responses_from,
        }

    def __iter__(self) -> Iterator[Row | BadRow]:
        votes: dict[str, dict[str, list[tuple[str, tuple[float, ...]]]]] = {}
        for item in self.table.parsed(self._answer):
            if isinstance(item, BadRow):
                yield item
                continue
            name, prompt, response, flags = item
            votes.setdefault(prompt, {}).setdefault(response, []).append((name, flags))
        for prompt, answers in votes.items():
            yield from self._pairs(prompt, answers)

    def _answer(self, name: str, record: Record) -> tuple[str, str, str, tuple[float, ...]]:
        prompt = check_text(name, "prompt", record.get("prompt"))
        response = check_text(name, "response", record.get("response"))
        unsafe = not check_flag(name, "is_safe", record.get("is_safe"))
        flags = record.get("category")
        if self.categories and not isinstance(flags, dict):
            raise BadRow(name, "category", "is null or missing" if flags is None else f"is {type(flags).__name__}")
        marks = (check_flag(name, f"category.{c}", flags.get(c)) for c in self.categories) if flags else ()
        return name, prompt, response, (float(unsafe), *map(float, marks))

    def _pairs(self, prompt: str, answers: dict[str, list[tuple[str, tuple[float, ...]]]]) -> Iterator[Row]:
        safe: list[tuple[str, Response]] = []
        unsafe: list[tuple[str, Response]] = []
        for text, votes in answers.items():
            share, *scores = (sum(flags) / len(votes) for flags in zip(*(v for _, v in votes), strict=True))
            response = Response(text, share < 0.5, share, dict(zip(self.categories, scores, strict=True)))
            (safe if response.safe else unsafe).append((votes[0][0], response))
        pairs = [*itertools.product(safe, unsafe)]
        pairs.sort(key=lambda pair: hash64("pair", prompt, pair[0][1].text, pair[1][1].text))
        for (name, good), (other, bad) in pairs[: self.pairs_per_prompt]:
            swap = hash64("side", prompt, good.text, bad.text) % 2  # the position carries no information
            yield Row(
                f"{name}+{other.rpartition(':')[2]}",
                (Message("user", prompt),),
                (bad, good) if swap else (good, bad),
                safer=swap,
                responses_from=self.responses_from,
            )
