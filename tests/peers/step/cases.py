"""The rows of the step benchmark: pairs, pairs after long conversations, and a sweep of the multiplier on the pairs."""

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

Record = dict[str, Any]

SAFE, UNSAFE = -1.0, 1.0  # cost of the chosen and of the rejected response


class Case(NamedTuple):
    """One comparison.

    Attributes:
        name: Its name in the report.
        records: Rows in TRL's conversational format.
        max_length: Maximum number of tokens of prompt and response together.
        multipliers: One run of C-DPO for each; none: one run of DPO.
    """

    name: str
    records: list[Record]
    max_length: int
    multipliers: tuple[float, ...] = ()


def cases(pairs: Path | None, long: Path | None, max_length: int, long_length: int, count: int) -> list[Case]:
    """The three cases.

    Args:
        pairs: JSONL with ``prompt``, ``response_0``, ``response_1`` and ``safer_response_id``. None: the package pyrit.
        long: JSONL with ``chosen`` and ``rejected`` transcripts of Human and Assistant. None: conversations made of
            the pairs.
        max_length: Maximum number of tokens of a sequence in the first and the third case.
        long_length: The same in the second case.
        count: Number of rows of each case. All are used if there are fewer.
    """
    short = list(itertools.islice(_distinct(_packaged() if pairs is None else _read_pairs(pairs)), count))
    turns = _chained(short) if long is None else _read_transcripts(long)
    turns = list(itertools.islice(_distinct(turns), count))
    return [
        Case("pairs", short, max_length),
        Case("long prompts", turns, long_length),
        Case("sweep", short, max_length, (0.25, 0.5, 1.0)),
    ]


ROBUST = 0.25  # label smoothing of TRL's loss "robust"


def weights(multiplier: float) -> tuple[float, float]:
    """The weights of TRL's losses ``sigmoid`` and ``robust`` whose sum is C-DPO's loss, on pairs of equal reward.

    C-DPO's loss is (1 − s) a + s b with a = −log σ(βm), b = −log σ(−βm) and s = 1 − σ(λ (cost of rejected − cost of
    chosen)). TRL 1.16 has a as ``sigmoid``, and ((1 − ε) a − ε b) / (1 − 2ε) as ``robust``, where ε is ROBUST. Its
    ``sigmoid`` does not read ``label_smoothing``.
    """
    flipped = 1 / (1 + math.exp(multiplier * (UNSAFE - SAFE)))
    return 1 - flipped + flipped * (1 - ROBUST) / ROBUST, -flipped * (1 - 2 * ROBUST) / ROBUST


def _record(prompt: list[Record], chosen: str, rejected: str) -> Record:
    sides = {"chosen": chosen, "rejected": rejected}
    return {"prompt": prompt, **{name: [{"role": "assistant", "content": text}] for name, text in sides.items()}}


def _read_pairs(path: Path) -> Iterator[Record]:
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        safer = row["safer_response_id"]
        responses = row[f"response_{safer}"], row[f"response_{1 - safer}"]
        if all(text.strip() for text in (row["prompt"], *responses)):
            yield _record([{"role": "user", "content": row["prompt"]}], *responses)


def _packaged() -> Iterator[Record]:
    from data.schema import BadRow
    from data.sources.pyrit import PyRIT

    for row in PyRIT():
        if not isinstance(row, BadRow) and row.safer is not None:
            first, second = row.responses[row.safer].text, row.responses[1 - row.safer].text
            yield _record([{"role": turn.role, "content": turn.content} for turn in row.prompt], first, second)


def _read_transcripts(path: Path) -> Iterator[Record]:
    """HH-RLHF's transcripts with at least two earlier answers."""
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        chosen, rejected = _turns(row["chosen"]), _turns(row["rejected"])
        *prompt, answer = chosen
        fine = rejected[:-1] == prompt and answer["role"] == rejected[-1]["role"] == "assistant" and len(prompt) >= 5
        if fine and all(turn["content"] for turn in (*chosen, *rejected)):
            yield _record(prompt, answer["content"], rejected[-1]["content"])


def _turns(transcript: str) -> list[Record]:
    parts = transcript.split("\n\nHuman: ")
    turns: list[Record] = []
    for part in parts[1:]:
        asked, *answers = part.split("\n\nAssistant: ")
        turns.append({"role": "user", "content": asked.strip()})
        turns += [{"role": "assistant", "content": answer.strip()} for answer in answers]
    return turns


def _chained(records: list[Record]) -> Iterator[Record]:
    """Each pair after the questions and the chosen answers of three pairs before it."""
    for i, record in enumerate(records):
        before = [turn for earlier in records[max(0, i - 3) : i] for turn in (*earlier["prompt"], *earlier["chosen"])]
        yield {**record, "prompt": [*before, *record["prompt"]]}


def _distinct(records: Iterator[Record]) -> Iterator[Record]:
    """Records whose chosen and rejected responses differ, each text of a chosen response once."""
    seen: set[str] = set()
    for record in records:
        chosen, rejected = record["chosen"][0]["content"], record["rejected"][0]["content"]
        if chosen != rejected and chosen not in seen:
            seen.add(chosen)
            yield record
