"""Reads sources into ordered, labelled and distinct pairs, and reports why every other row was dropped.

The first reading stores hashes and labels of every pair, and decides which pairs to keep. Few texts (``IN_MEMORY``)
stay in memory. Otherwise a second reading gives the kept pairs one by one, so no list of texts is needed.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from data.candidates import Candidates
from data.report import PreparationReport, SourceReport, safety
from data.schema import Annotator, BadRow, PreferenceRow, Row, Source
from data.split import NOWHERE, Split
from data.tokens import Int64s
from lit_safe.hashing import hash64

Order = Literal["helpful", "safer", "safe_better", "helpful_or_safer"]
"""Which response is ``chosen``: the more helpful one; the less harmful one (DPO-HARMLESS); the more helpful one, and
pairs in which it is unsafe are dropped (DPO-SAFEBETTER); or the more helpful one, and the less harmful one if no label
says which is more helpful. The last is for SafeDPO, which orders safe/unsafe pairs by safety in any case."""

LARGEST = 1e30  # largest reward or cost: differences, and products with a multiplier, stay finite in fp32
IN_MEMORY = 1 << 25  # characters of texts that are kept in memory; sources with more are read twice
SMALLEST = 1e-37  # fp32 stores smaller numbers with less precision or as 0, which could lose the sign of a cost

_WORD: dict[Order, str] = {
    "safer": "safer",
    "helpful": "better",
    "safe_better": "better",
    "helpful_or_safer": "better or safer",
}


class Prepared:
    """The kept pairs in the order of their first appearance.

    Each iteration reads the sources again, unless their texts are few.

    Attributes:
        report: Counts of the first reading.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        candidates: Candidates,
        index: Int64s,
        report: PreparationReport,
        rows: Sequence[Row] | None = None,
    ) -> None:
        self.report = report
        self._sources, self._candidates, self._index = sources, candidates, index
        self._rows = None if rows is None else [rows[i] for i in index.tolist()]

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[PreferenceRow]:
        """Every pair. Raises ValueError if a source does not give the rows that it gave before."""
        found, k = self._candidates, 0
        index = self._index.tolist()
        if self._rows is not None:
            yield from map(found.row, index, self._rows)
            return
        for number, source in enumerate(self._sources):
            for place, item in enumerate(source):
                if k == len(index) or found.source[index[k]] != number:
                    break  # no more pairs of this source
                if found.place[index[k]] != place:
                    continue
                if not isinstance(item, Row) or item.id != found.name[index[k]]:
                    break
                yield found.row(index[k], item)
                k += 1
            if k < len(index) and found.source[index[k]] == number:
                raise ValueError(f"row {found.name[index[k]]} is gone: its source changed while it was read")

    def splits(self, placed: Mapping[int, Split] = NOWHERE) -> dict[int, Split]:
        """The split of every prompt, by its split key, as ``data.split.assign`` gives it."""
        return self._candidates.splits(self._index, placed)


def prepare(
    sources: Sequence[Source],
    annotator: Annotator,
    order: Order = "helpful",
    on_bad_row: Literal["error", "skip"] = "error",
    contradictions: Literal["keep", "drop"] = "keep",
    max_pairs_per_prompt: int | None = None,
    evaluation: bool = False,
    duplicates: Literal["drop", "keep"] = "drop",
) -> tuple[list[PreferenceRow], PreparationReport]:
    """Read every source and keep each pair once, in the order of its first appearance.

    If no column says which response is more helpful, it is the one with the larger reward. If no column says which is
    less harmful, it is the one whose costs are nowhere larger and somewhere smaller. A pair without the requested order
    is dropped, and so is a pair of identical responses. A repeated pair (in either position or order) is a duplicate.

    ``prepared`` has the arguments, and what is raised.
    """
    rows = prepared(sources, annotator, order, on_bad_row, contradictions, max_pairs_per_prompt, evaluation, duplicates)
    return list(rows), rows.report


def prepared(
    sources: Sequence[Source],
    annotator: Annotator,
    order: Order = "helpful",
    on_bad_row: Literal["error", "skip"] = "error",
    contradictions: Literal["keep", "drop"] = "keep",
    max_pairs_per_prompt: int | None = None,
    evaluation: bool = False,
    duplicates: Literal["drop", "keep"] = "drop",
) -> Prepared:
    """Like ``prepare``, but the pairs of large sources stay there until they are iterated.

    Args:
        sources: Read one after the other; the first of several duplicates is kept.
        annotator: Gives rewards and costs.
        order: Which response is ``chosen``.
        on_bad_row: Stop at the first unusable row, or drop and count it.
        contradictions: Whether to keep (the first of) or drop pairs that appear in both orders, or contain a text
            labelled both safe and unsafe after the same prompt. They are counted in both cases.
        max_pairs_per_prompt: Maximum number of pairs per prompt, chosen by hash; None keeps all.
        evaluation: Whether sources for evaluation only may be read.
        duplicates: ``keep`` keeps every copy of a pair, in either order. Use it if pairs are samples of a distribution,
            whose frequencies matter.

    Raises:
        BadRow: At the first unusable row, with ``on_bad_row="error"``.
        ValueError: On an unknown option or an evaluation-only source without ``evaluation``.
    """
    _check_options(order, on_bad_row, contradictions, duplicates, max_pairs_per_prompt)
    report = PreparationReport(order)
    candidates = Candidates(len(annotator.constraints))
    few = _Few()
    for number, source in enumerate(sources):
        description = source.describe()
        name = description.get("name", type(source).__name__)
        if getattr(source, "evaluation_only", False) and not evaluation:
            raise ValueError(f"{name} is for evaluation only and must not be trained on")
        report.sources.append(SourceReport(name, source.licence))
        for place, item in enumerate(source):
            report.sources[number].read += 1
            try:
                _read(item, number, place, annotator, order, candidates, report)
            except BadRow as bad:
                if on_bad_row == "error":
                    raise
                report.drop(f"column {bad.column!r} {bad.reason}", bad.row)
            else:
                few.note(item, len(candidates))

    opposed_N = candidates.opposed()
    report.contradictory_responses, both_N = candidates.both_labels()
    pair_N = np.array(candidates.pair, np.int64)
    report.contradictory_orders = len(np.unique(pair_N[opposed_N]))

    index = np.arange(len(candidates))
    if duplicates == "drop":
        index = np.sort(np.unique(pair_N, return_index=True)[1])
        for number in np.setdiff1d(np.arange(len(candidates)), index).tolist():
            report.drop("the pair appears in an earlier row", candidates.name[number])
    if contradictions == "drop":
        for number in index[opposed_N[index] | both_N[index]].tolist():
            why = (
                "the pair appears in both orders"
                if opposed_N[number]
                else "a response is labelled both safe and unsafe"
            )
            report.drop(why, candidates.name[number])
        index = index[~(opposed_N[index] | both_N[index])]
    if max_pairs_per_prompt is not None:
        index = _capped(candidates, index, max_pairs_per_prompt, report)
    candidates.account(report, index, annotator.constraints)
    report.contradictory_rows = int((opposed_N[index] | both_N[index]).sum())
    return Prepared(sources, candidates, index, report, few.rows)


class _Few:
    """The rows of all candidates, as long as they have few texts; afterwards None."""

    def __init__(self) -> None:
        self.rows: list[Row] | None = []
        self._room = IN_MEMORY

    def note(self, item: Row | BadRow, count: int) -> None:
        """Keep ``item`` if it is the last of ``count`` candidates."""
        if self.rows is None or count == len(self.rows) or isinstance(item, BadRow):
            return
        prompt = item.prompt
        self._room -= len(prompt) if isinstance(prompt, str) else sum([len(turn.content) for turn in prompt])
        self._room -= sum([len(response.text) for response in item.responses])
        self.rows.append(item)
        if self._room < 0:
            self.rows = None


def _check_options(order: str, on_bad_row: str, contradictions: str, duplicates: str, cap: int | None) -> None:
    for value, allowed in (
        (order, get_args(Order)),
        (on_bad_row, ("error", "skip")),
        (contradictions, ("keep", "drop")),
        (duplicates, ("drop", "keep")),
    ):
        if value not in allowed:
            raise ValueError(f"{value!r} is not one of {', '.join(allowed)}")
    if cap is not None and cap < 1:
        raise ValueError(f"max_pairs_per_prompt must be at least 1, got {cap}")


def _read(
    item: Row | BadRow,
    source: int,
    place: int,
    annotator: Annotator,
    order: Order,
    candidates: Candidates,
    report: PreparationReport,
) -> None:
    """Store the pair of one row, or count why it has none. ``candidates`` remembers its labels in both cases."""
    if isinstance(item, BadRow):
        raise item
    texts = [response.text for response in item.responses]
    if texts[0] == texts[1]:
        report.drop("both responses are identical", item.id)
        return
    rewards, costs = annotator.rewards(item), annotator.costs(item)
    _check_range(item.id, annotator.constraints, rewards, costs)
    labels = candidates.label(item, costs)
    first = _safer(item, costs) if order == "safer" else _better(item, rewards)
    by_safety = first is None and order == "helpful_or_safer"
    if by_safety:
        first = _safer(item, costs)
    if first is None:
        report.drop(f"no label says which response is {_WORD[order]}", item.id)
    elif order == "safe_better" and safety(costs[first]) != "safe":
        report.drop(f"the safety of the better response is {safety(costs[first])}", item.id)
    else:
        candidates.append(item, source, place, first, by_safety, rewards, costs, labels)


def _check_range(
    row: str, constraints: Sequence[str], rewards: Sequence[float], costs: Sequence[Sequence[float]]
) -> None:
    """Refuse labels that would become infinite or lose their sign in fp32, the type of batches."""
    for value in rewards:
        if abs(value) > LARGEST:
            raise _too_large(row, "reward")
    for side in costs:
        for name, value in zip(constraints, side, strict=True):
            if abs(value) > LARGEST:
                raise _too_large(row, f"cost {name}")
            if 0 < abs(value) < SMALLEST:
                reason = f"is not 0 and within {SMALLEST:g} of it, so fp32 would lose its sign"
                raise BadRow(row, f"cost {name}", reason)


def _too_large(row: str, column: str) -> BadRow:
    return BadRow(row, column, f"is beyond {LARGEST:g} units, so its margins may be infinite in fp32")


def _better(row: Row, rewards: tuple[float, float]) -> int | None:
    if row.better is not None or rewards[0] == rewards[1] or any(map(math.isnan, rewards)):
        return row.better
    return int(rewards[1] > rewards[0])


def _safer(row: Row, costs: tuple[tuple[float, ...], tuple[float, ...]]) -> int | None:
    if row.safer is not None or costs[0] == costs[1]:
        return row.safer
    for k in (0, 1):
        if all(c <= other for c, other in zip(costs[k], costs[1 - k], strict=True)):
            return k
    return None


def _capped(candidates: Candidates, index: Int64s, cap: int, report: PreparationReport) -> Int64s:
    seen: Counter[int] = Counter()
    draws = []
    for number in index.tolist():
        pair = candidates.pair[number]
        again = seen[pair]  # each copy of a pair has its own random number
        seen[pair] += 1
        draws.append((hash64("cap", pair, *([again] if again else [])), number))
    taken: Counter[int] = Counter()
    chosen = set()
    for _, number in sorted(draws):
        prompt = candidates.prompt[number]
        taken[prompt] += 1
        if taken[prompt] <= cap:
            chosen.add(number)
    for number in index.tolist():
        if number not in chosen:
            report.drop("its prompt has max_pairs_per_prompt pairs", candidates.name[number])
    return np.array(sorted(chosen), np.int64)
