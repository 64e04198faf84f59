"""What the choice of pairs needs to know about each of them: hashes and labels in arrays, and no text.

Letters: N pairs, C cost constraints.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data.report import STRATA, PreparationReport
from data.schema import PreferenceRow, Row
from data.split import Keys, Split, keys_of, split_of
from data.tokens import AUTHORS, SPLITS, Int64s
from lit_safe.hashing import hash64

SAFETY = ("safe", "unsafe", "unknown")
SAFE, UNSAFE, UNKNOWN = range(3)


class Labels(NamedTuple):
    """The hashes of the prompt and of both responses with it, and for each the safety by every cost and by any."""

    prompt: Keys
    text: list[int]
    safety: list[list[int]]  # [2][C + 1] index into SAFETY


class Candidates:
    """The labelled and ordered pairs of all sources, in the order of reading.

    Args:
        constraints: C, the number of cost constraints.
    """

    def __init__(self, constraints: int) -> None:
        self.constraints = constraints
        self.name: list[str] = []
        self.source, self.place = array("q"), array("q")  # which source, and which of its rows, from 0
        self.first, self.by_safety, self.author = array("b"), array("b"), array("b")
        self.prompt, self.pair, self.text = array("q"), array("q"), array("q")  # hashes; two texts a pair
        self.reward, self.cost = array("d"), array("d")  # of both responses, in the row's own order
        self.safety = array("b")  # [N, 2, C + 1] index into SAFETY: of each cost and of any, chosen first
        self.split, self.group = array("q"), array("b")  # split key; index into SPLITS of the row's group, or -1
        self._labelled: tuple[array[int], array[int]] = array("q"), array("q")  # texts labelled safe, and unsafe
        self._split_of: dict[int, Split] = {}  # split of each key where no group decides

    def __len__(self) -> int:
        return len(self.name)

    def label(self, row: Row, costs: Sequence[Sequence[float]]) -> Labels:
        """The hashes and the safety of both responses, which are remembered whether the pair is kept or not."""
        keys = keys_of(row.prompt)
        texts = [hash64(keys.id, response.text) for response in row.responses]
        safety = [_safeties(cost) for cost in costs]
        for text, known in zip(texts, safety, strict=True):
            if known[-1] != UNKNOWN:
                self._labelled[known[-1]].append(text)
        return Labels(keys, texts, safety)

    def append(
        self,
        row: Row,
        source: int,
        place: int,
        first: int,
        by_safety: bool,
        rewards: Sequence[float],
        costs: Sequence[Sequence[float]],
        labels: Labels,
    ) -> None:
        """Store a pair whose chosen response is number ``first``."""
        texts = [response.text for response in row.responses]
        self.name.append(row.id)
        self.source.append(source)
        self.place.append(place)
        self.first.append(first)
        self.by_safety.append(by_safety)
        self.author.append(AUTHORS.index(row.responses_from))
        self.prompt.append(labels.prompt.id)
        self.pair.append(labels.prompt.text_id(*texts))
        self.text.extend(labels.text)
        self.reward.extend(rewards)
        for cost in costs:
            self.cost.extend(cost)
        self.safety.extend((*labels.safety[first], *labels.safety[1 - first]))
        key = labels.prompt.split
        if key not in self._split_of:
            self._split_of[key] = split_of(row.prompt)
        self.split.append(key)
        group = None if row.split_group is None else split_of(row.prompt, row.split_group)
        self.group.append(-1 if group is None else SPLITS.index(group))

    def row(self, number: int, item: Row) -> PreferenceRow:
        """The pair with its texts, which ``item`` has."""
        size = self.constraints

        def labels(side: int) -> tuple[float, tuple[float, ...]]:
            place = 2 * number + side
            return self.reward[place], tuple(self.cost[place * size : (place + 1) * size])

        first, second = self.first[number], 1 - self.first[number]
        (reward, cost), (other_reward, other_cost) = labels(first), labels(second)
        chosen, rejected = item.responses[first], item.responses[second]
        return PreferenceRow(
            item.id,
            item.prompt,
            *(chosen.text, rejected.text, reward, other_reward, cost, other_cost),
            item.responses_from,
            item.split_group,
            (chosen.turns, rejected.turns),
        )

    def splits(self, index: Int64s, placed: Mapping[int, Split]) -> dict[int, Split]:
        """The split of every prompt of the pairs at ``index``, as ``data.split.assign`` gives it."""
        found: dict[int, Split] = {}
        grouped: set[int] = set()
        for number in index.tolist():
            key, group = self.split[number], self.group[number]
            if group >= 0 and key not in grouped:
                grouped.add(key)
                found[key] = SPLITS[group]
            elif key not in found:
                found[key] = self._split_of[key]
        return {key: placed.get(key, split) for key, split in found.items()}

    def opposed(self) -> npt.NDArray[np.bool_]:
        """[N] whether the pair appears in both orders."""
        pair, text = _int64(self.pair), _int64(self.text).reshape(-1, 2)
        chosen = text[np.arange(len(pair)), _int8(self.first)]
        orders = np.unique(np.stack([pair, chosen], axis=1), axis=0)[:, 0]
        pairs, counts = np.unique(orders, return_counts=True)
        return np.isin(pair, pairs[counts > 1])

    def both_labels(self) -> tuple[int, npt.NDArray[np.bool_]]:
        """The number of texts labelled safe and unsafe, and [N] whether the pair has one of them."""
        safe, unsafe = self._labelled
        texts = np.intersect1d(_int64(safe), _int64(unsafe))
        has_N2: npt.NDArray[np.bool_] = np.isin(_int64(self.text).reshape(-1, 2), texts)
        return len(texts), has_N2[:, 0] | has_N2[:, 1]

    def account(self, report: PreparationReport, index: Int64s, names: Sequence[str]) -> None:
        """Count the pairs at ``index`` by source, stratum and prompt; ``names`` are those of the constraints."""
        source, author = _int64(self.source)[index], _int8(self.author)[index]
        safety_n2c = _int8(self.safety).reshape(len(self), 2, self.constraints + 1)[index]
        for number, entry in enumerate(report.sources):
            entry.kept = int((source == number).sum())
            entry.responses_from = tuple(sorted(AUTHORS[code] for code in np.unique(author[source == number])))
        for (chosen, rejected), count in Counter(map(tuple, safety_n2c[:, :, -1].tolist())).items():
            stratum = f"{SAFETY[chosen]}/{SAFETY[rejected]}"
            report.strata[stratum if stratum in STRATA else "unknown"] += count
        report.ordered_by_safety = int(_int8(self.by_safety)[index].sum())
        report.prompts = len(np.unique(_int64(self.prompt)[index]))
        for c, name in enumerate((*names, "any")):
            unsafe, safe = ((safety_n2c[:, :, c] == known).sum() for known in (UNSAFE, SAFE))
            report.unsafe_share[name] = float(unsafe / (unsafe + safe)) if unsafe + safe else float("nan")


def _safeties(cost: Sequence[float]) -> list[int]:
    """The safety by each cost, and last that of the response: index into SAFETY, as ``data.report.safety`` has it."""
    each = [UNKNOWN if c != c else UNSAFE if c > 0 else SAFE for c in cost]
    return [*each, UNSAFE if UNSAFE in each else UNKNOWN if UNKNOWN in each else SAFE]


def _int64(values: array[int]) -> Int64s:
    return np.array(values, np.int64)


def _int8(values: array[int]) -> npt.NDArray[np.int8]:
    return np.array(values, np.int8)
