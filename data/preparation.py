"""Reads sources into ordered, labelled and distinct pairs, and reports why every other row was dropped."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args

from data.report import PreparationReport, SourceReport, safety, stratum, unsafe_shares
from data.schema import Annotator, BadRow, PreferenceRow, Row, Source
from data.split import prompt_id, text_id
from lit_safe.hashing import hash64

Order = Literal["helpful", "safer", "safe_better", "helpful_or_safer"]
"""Which response is ``chosen``: the more helpful one; the less harmful one (DPO-HARMLESS); the more helpful one, and
pairs in which it is unsafe are dropped (DPO-SAFEBETTER); or the more helpful one, and the less harmful one if no label
says which is more helpful. The last is for SafeDPO, which orders safe/unsafe pairs by safety in any case."""

LARGEST = 1e30  # largest reward or cost: differences, and products with a multiplier, stay finite in fp32
SMALLEST = 1e-37  # fp32 stores smaller numbers with less precision or as 0, which could lose the sign of a cost

_WORD: dict[Order, str] = {
    "safer": "safer",
    "helpful": "better",
    "safe_better": "better",
    "helpful_or_safer": "better or safer",
}


class _Candidate(NamedTuple):
    row: PreferenceRow
    by_safety: bool  # ordered by safety because no other order is known
    source: int
    prompt: int  # hash of the prompt
    texts: frozenset[int]  # hashes of each response with its prompt
    pair: int  # hash of the exact prompt and both responses, the same in either order


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
    candidates: list[_Candidate] = []
    flags: dict[int, set[str]] = defaultdict(set)  # labels of every text: "safe", "unsafe"
    for number, source in enumerate(sources):
        description = source.describe()
        name = description.get("name", type(source).__name__)
        if getattr(source, "evaluation_only", False) and not evaluation:
            raise ValueError(f"{name} is for evaluation only and must not be trained on")
        report.sources.append(SourceReport(name, source.licence))
        for item in source:
            report.sources[number].read += 1
            try:
                candidate = _candidate(item, number, annotator, order, flags, report)
            except BadRow as bad:
                if on_bad_row == "error":
                    raise
                report.drop(f"column {bad.column!r} {bad.reason}", bad.row)
            else:
                candidates += [] if candidate is None else [candidate]

    both = {text for text, seen in flags.items() if len(seen) > 1}
    orders: dict[int, set[str]] = defaultdict(set)
    for candidate in candidates:
        orders[candidate.pair].add(candidate.row.chosen)
    opposed = {pair for pair, chosen in orders.items() if len(chosen) > 1}
    report.contradictory_responses, report.contradictory_orders = len(both), len(opposed)

    kept = candidates if duplicates == "keep" else _distinct(candidates, report)
    if contradictions == "drop":
        kept = _without(kept, opposed, both, report)
    if max_pairs_per_prompt is not None:
        kept = _capped(kept, max_pairs_per_prompt, report)
    _account(report, kept, annotator)
    report.contradictory_rows = sum(c.pair in opposed or not both.isdisjoint(c.texts) for c in kept)
    return [candidate.row for candidate in kept], report


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


def _candidate(
    item: Row | BadRow,
    source: int,
    annotator: Annotator,
    order: Order,
    flags: dict[int, set[str]],
    report: PreparationReport,
) -> _Candidate | None:
    """The pair of one row, or None (and counted) if it has none. ``flags`` records its labels in both cases."""
    if isinstance(item, BadRow):
        raise item
    texts = [response.text for response in item.responses]
    if texts[0] == texts[1]:
        report.drop("both responses are identical", item.id)
        return None
    rewards, costs = annotator.rewards(item), annotator.costs(item)
    _check_range(item.id, annotator.constraints, rewards, costs)
    prompt = prompt_id(item.prompt)
    keys = [hash64(prompt, text) for text in texts]
    for key, cost in zip(keys, costs, strict=True):
        flags[key] |= {safety(cost)} - {"unknown"}
    first = _safer(item, costs) if order == "safer" else _better(item, rewards)
    by_safety = first is None and order == "helpful_or_safer"
    if by_safety:
        first = _safer(item, costs)
    if first is None:
        report.drop(f"no label says which response is {_WORD[order]}", item.id)
        return None
    if order == "safe_better" and safety(costs[first]) != "safe":
        report.drop(f"the safety of the better response is {safety(costs[first])}", item.id)
        return None
    second = 1 - first
    row = PreferenceRow(
        item.id,
        item.prompt,
        *(texts[first], texts[second], rewards[first], rewards[second], costs[first], costs[second]),
        item.responses_from,
        item.split_group,
        (item.responses[first].turns, item.responses[second].turns),
    )
    return _Candidate(row, by_safety, source, prompt, frozenset(keys), text_id(item.prompt, *texts))


def _check_range(
    row: str, constraints: Sequence[str], rewards: Sequence[float], costs: Sequence[Sequence[float]]
) -> None:
    """Refuse labels that would become infinite or lose their sign in fp32, the type of batches."""
    named = [("reward", value) for value in rewards]
    named += [(f"cost {name}", value) for side in costs for name, value in zip(constraints, side, strict=True)]
    for column, value in named:
        if abs(value) > LARGEST:
            raise BadRow(row, column, f"is beyond {LARGEST:g} units, so its margins may be infinite in fp32")
        if column != "reward" and 0 < abs(value) < SMALLEST:
            raise BadRow(row, column, f"is not 0 and within {SMALLEST:g} of it, so fp32 would lose its sign")


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


def _distinct(candidates: Iterable[_Candidate], report: PreparationReport) -> list[_Candidate]:
    kept: dict[int, _Candidate] = {}
    for candidate in candidates:
        if kept.setdefault(candidate.pair, candidate) is not candidate:
            report.drop("the pair appears in an earlier row", candidate.row.id)
    return list(kept.values())


def _without(
    candidates: Iterable[_Candidate], opposed: set[int], both: set[int], report: PreparationReport
) -> list[_Candidate]:
    kept = []
    for candidate in candidates:
        if candidate.pair in opposed:
            report.drop("the pair appears in both orders", candidate.row.id)
        elif not both.isdisjoint(candidate.texts):
            report.drop("a response is labelled both safe and unsafe", candidate.row.id)
        else:
            kept.append(candidate)
    return kept


def _capped(candidates: Sequence[_Candidate], cap: int, report: PreparationReport) -> list[_Candidate]:
    seen: Counter[int] = Counter()
    draws = []
    for position, candidate in enumerate(candidates):
        again = seen[candidate.pair]  # each copy of a pair has its own random number
        seen[candidate.pair] += 1
        draws.append((hash64("cap", candidate.pair, *([again] if again else [])), position))
    taken: Counter[int] = Counter()
    chosen = set()
    for _, position in sorted(draws):
        prompt = candidates[position].prompt
        taken[prompt] += 1
        if taken[prompt] <= cap:
            chosen.add(position)
    for position, candidate in enumerate(candidates):
        if position not in chosen:
            report.drop("its prompt has max_pairs_per_prompt pairs", candidate.row.id)
    return [candidate for position, candidate in enumerate(candidates) if position in chosen]


def _account(report: PreparationReport, kept: Sequence[_Candidate], annotator: Annotator) -> None:
    authors: dict[int, set[str]] = defaultdict(set)
    for candidate in kept:
        report.sources[candidate.source].kept += 1
        report.strata[stratum(candidate.row)] += 1
        authors[candidate.source].add(candidate.row.responses_from)
    for number, source in enumerate(report.sources):
        source.responses_from = tuple(sorted(authors[number]))
    report.ordered_by_safety = sum(candidate.by_safety for candidate in kept)
    report.prompts = len({candidate.prompt for candidate in kept})
    report.unsafe_share = unsafe_shares([candidate.row for candidate in kept], annotator.constraints)
