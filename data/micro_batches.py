"""Divides the rows of an optimizer step into micro-batches, by a number of rows or by a number of tokens.

The division has no effect on which rows a step has, so losses and weights differ only in rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data.tokens import Int64s


class Rank(NamedTuple):
    """One of ``world`` processes that share every step's rows."""

    rank: int = 0
    world: int = 1


ALONE = Rank()

PASS_TOKENS = {"cpu": 64, "cuda": 512}
"""Tokens that take about as long as what a forward and backward pass does once, whatever its number of tokens.

It reads the P weights twice and reads and writes their gradients: about 16 P bytes. Training takes 6 P floating-point
operations a token (Kaplan et al. 2020, arXiv:2001.08361, table 1). A core or a GPU that does 10 to 200 operations per
byte that it reads therefore spends the time of 25 to 500 tokens on it.
"""


MICRO_BATCH_TOKENS = 1024
"""Tokens of a micro-batch where neither the user nor the module that trains has chosen another number."""


class MicroBatchSize(NamedTuple):
    """Tokens of a micro-batch, including padding, and the number of scored tokens among them."""

    tokens: int
    scored: int


class RowTokens(NamedTuple):
    """Tokens that each row takes in a micro-batch in which it is the longest.

    Attributes:
        padded: If each response has a row of the model's input with its prompt.
        shared: If all responses of a prompt have one row, with the prompt once.
    """

    padded: Int64s
    shared: Int64s


class MicroBatch(NamedTuple):
    """Rows of one forward and backward pass on one rank: indices, followed by ``fillers`` filler rows."""

    rows: Int64s
    fillers: int


Divide = Callable[[Int64s, Rank], list[MicroBatch]]
"""This rank's share of a step's rows, in micro-batches.

Every rank runs the same number of micro-batches of the same size. A rank with one row less than rank 0 gets a filler.
"""


def by_rows(most: int, tokens_of: Int64s | None = None) -> Divide:
    """Micro-batches of at most ``most`` rows.

    Args:
        most: The number of rows, >= 1.
        tokens_of: Tokens of each row. Rows of similar length are then computed together. None keeps the rows' order.

    Raises:
        ValueError: If ``most`` is below 1.
    """
    if most < 1:
        raise ValueError(f"a micro-batch needs at least 1 row, got {most}")

    def divide(step: Int64s, rank: Rank) -> list[MicroBatch]:
        ordered = step if tokens_of is None else longest_first(step, tokens_of)
        columns = -(-len(step) // rank.world)
        return _share(ordered, [*range(0, columns, most), columns], rank)

    return divide


def by_tokens(most: int, tokens_of: Int64s, device: str = "cpu", rows: int | None = None) -> Divide:
    """Micro-batches of at most ``most`` tokens with padding, or of a single row that has more.

    Rows of similar length are computed together. Among all divisions of the rows in order of length, it takes the one
    with the fewest tokens, where every micro-batch counts as ``PASS_TOKENS`` more.

    Args:
        most: Tokens of a micro-batch on one rank.
        tokens_of: Tokens that each row takes in a micro-batch in which it is the longest.
        device: The type of the device.
        rows: Maximum number of rows besides, or None.
    """
    each = PASS_TOKENS.get(device, PASS_TOKENS["cuda"])

    def divide(step: Int64s, rank: Rank) -> list[MicroBatch]:
        ordered = longest_first(step, tokens_of)
        longest = tokens_of[ordered[:: rank.world]]
        return _share(ordered, fewest_tokens(longest, most, each, rows), rank)

    return divide


def longest_first(rows: Int64s, tokens_of: Int64s) -> Int64s:
    """``rows`` by falling length. Rows of one length keep their order."""
    return rows[np.argsort(-tokens_of[rows], kind="stable")]


def fewest_tokens(tokens_of: Int64s, most: int, each: int, rows: int | None = None) -> list[int]:
    """Bounds [m + 1] of the m groups of consecutive rows that need the fewest tokens together.

    A group of k rows needs k times the tokens of its first row, and ``each`` more.

    Args:
        tokens_of: [n] tokens of the rows, falling.
        most: A group of more than one row has at most this many tokens.
        each: Tokens that a group counts besides.
        rows: Maximum number of rows of a group, or None.
    """
    count = len(tokens_of)
    cost, first = np.zeros(count + 1), np.zeros(count + 1, np.int64)
    cost[1:] = np.inf
    for start in range(count):  # the cheapest division of the rows before ``start`` is known
        sizes = np.arange(1, count - start + 1) * int(tokens_of[start])
        sizes = sizes[: max(1, int(np.searchsorted(sizes, most, side="right")))][:rows]
        ends = slice(start + 1, start + 1 + len(sizes))
        offered = cost[start] + sizes + each
        better = offered < cost[ends]
        cost[ends][better], first[ends][better] = offered[better], start
    bounds = [count]
    while bounds[-1]:
        bounds.append(int(first[bounds[-1]]))
    return bounds[::-1]


class MicroBatchLimit:
    """The largest micro-batch on one rank: a number of rows, a number of tokens with padding, or both.

    Args:
        rows: Number of rows, or None.
        tokens: Number of tokens, or None. None for both leaves the choice to the module that trains (``take``).
    """

    def __init__(self, rows: int | None = None, tokens: int | None = None) -> None:
        self.rows, self.typed = rows, tokens
        self.taken: int | None = None
        self.device = "cpu"  # the type of the device that computes; the module that trains sets it
        self.shared = False  # whether the model computes each prompt once; the module that trains sets it

    @property
    def free(self) -> bool:
        """Whether the user has set neither number."""
        return self.rows is None and self.typed is None

    @property
    def tokens(self) -> int:
        """The largest number of tokens, unless only ``rows`` is set."""
        return self.typed or self.taken or MICRO_BATCH_TOKENS

    def take(self, tokens: int) -> None:
        """Choose the number of tokens. It has no effect unless the limit is free."""
        self.taken = tokens

    def divide(self, tokens: Int64s | RowTokens) -> Divide:
        """Divides steps of rows that take ``tokens`` each. The limit is read when a step is divided."""

        def divide(step: Int64s, rank: Rank) -> list[MicroBatch]:
            tokens_of = self.tokens_of(tokens)
            if self.rows is not None and self.typed is None:
                return by_rows(self.rows, tokens_of)(step, rank)
            return by_tokens(self.tokens, tokens_of, self.device, self.rows)(step, rank)

        return divide

    def tokens_of(self, tokens: Int64s | RowTokens) -> Int64s:
        """Tokens of each row as the model computes it."""
        if isinstance(tokens, RowTokens):
            return tokens.shared if self.shared else tokens.padded
        return tokens

    def largest(self, rows: Int64s | RowTokens, scored_of: Int64s, per_step: int) -> MicroBatchSize:
        """An upper bound on a micro-batch of rows with these tokens, of which ``scored_of`` are scored."""
        tokens_of = self.tokens_of(rows)
        longest, scored = int(np.max(tokens_of)), int(np.max(scored_of))
        most = per_step if self.rows is None else self.rows
        if self.rows is not None and self.typed is None:
            return MicroBatchSize(most * longest, most * scored)
        tokens = max(longest, min(self.tokens, most * longest))
        count = max(1, min(most, tokens // int(np.min(tokens_of))))
        return MicroBatchSize(tokens, min(tokens, count * scored))

    def state_dict(self) -> dict[str, int]:
        """The number that was chosen, so that a resumed run divides its steps alike and rounds alike."""
        return {"micro_batch_tokens": self.tokens} if self.free else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the number of the run that is resumed."""
        if "micro_batch_tokens" in state:
            self.take(int(state["micro_batch_tokens"]))


def _share(ordered: Int64s, bounds: Sequence[int], rank: Rank) -> list[MicroBatch]:
    """This rank's rows, one of every ``world`` consecutive ones, cut at ``bounds``."""
    share = ordered[rank.rank :: rank.world]
    cut = [(share[start:end], end - start) for start, end in itertools.pairwise(bounds)]
    return [MicroBatch(rows, size - len(rows)) for rows, size in cut]
