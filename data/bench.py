"""Times tokenising: rows together (``data/batch.py``) against rows one by one, side by side, at equal output.

    python -m data.bench --tokenizer HuggingFaceTB/SmolLM2-135M-Instruct --pairs pairs.jsonl

Both sides take turns on the same rows, and each time is the median of the rounds. As in ``timeit``, the cycle collector
waits meanwhile: a pass over the objects of all libraries takes as long as some hundred rows. The command fails if an
array or a report differs in one bit.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from transformers import AutoTokenizer

from data.annotators.flags import Flags
from data.batch import BatchRenderer, OneByOne
from data.preparation import prepare
from data.render import Renderer
from data.schema import Message, PreferenceRow
from data.sources.scored import ScoredPairs
from data.split import assign
from data.tokeniser import Tokeniser
from data.tokens import to_arrays
from lit_safe.hashing import hash64

KINDS: dict[str, Callable[[Renderer], BatchRenderer | OneByOne]] = {"one by one": OneByOne, "together": BatchRenderer}


class Run(NamedTuple):
    """Seconds of a run, seconds of CPU time over all threads, and everything that it made."""

    wall: float
    cpu: float
    made: Any


def main() -> None:
    """Print a table: pairs a second of both sides, and the ratios of their times."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokenizer", required=True, help="folder or hub id of a tokenizer")
    parser.add_argument("--pairs", help="JSONL with prompt, response_0 and response_1; without it, made-up pairs")
    parser.add_argument("--rows", type=int, default=4000, help="number of made-up pairs")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    renderer = Renderer(AutoTokenizer.from_pretrained(given.tokenizer))
    rows = made_up(given.rows, renderer.tokenizer.chat_template is None) if given.pairs is None else read(given.pairs)
    compare(renderer, rows, given.max_length, given.rounds)


def compare(renderer: Renderer, rows: Sequence[PreferenceRow], max_length: int, rounds: int) -> None:
    """Print the table. Exits with an error if the two sides differ."""
    runs: dict[str, list[Run]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            runs[kind].append(_run(renderer, rows, max_length, kind))
    if runs["one by one"][0].made != runs["together"][0].made:
        sys.exit("error: rows tokenised together differ from rows tokenised one by one")
    wall, cpu = (
        {kind: statistics.median(getattr(run, clock) for run in found) for kind, found in runs.items()}
        for clock in ("wall", "cpu")
    )
    print(f"{len(rows):,} pairs, {os.cpu_count()} cores, medians of {rounds} rounds in turns, output bit-equal")
    print(f"{'':12} {'pairs/s':>10} {'seconds':>10} {'CPU s':>10}")
    for kind in KINDS:
        print(f"{kind:12} {len(rows) / wall[kind]:10,.0f} {wall[kind]:10.2f} {cpu[kind]:10.2f}")
    ratios = [clock["one by one"] / clock["together"] for clock in (wall, cpu)]
    print(f"{'ratio':12} {'':10} {ratios[0]:10.2f} {ratios[1]:10.2f}")


def read(path: str) -> list[PreferenceRow]:
    """The distinct pairs of a file; which response is chosen does not matter here."""
    rows = [row for row in ScoredPairs(path) if not isinstance(row, Exception)]
    better = [row.__class__(row.id, row.prompt, row.responses, better=0) for row in rows]
    return prepare([_Listed(better)], Flags())[0]


def made_up(count: int, plain: bool) -> list[PreferenceRow]:
    """Pairs of invented words, about as long as PKU-SafeRLHF's: prompts of 10 words, responses of 55."""

    def words(number: int, *name: object) -> str:
        drawn = [hash64(*name, i) % 4096 for i in range(number)]
        return " ".join("".join("aeiourstlnmdcpgb"[(word >> 4 * k) & 15] for k in range(3)) for word in drawn)

    rows = []
    for i in range(count):
        asked = words(10, "prompt", i // 4)
        prompt = asked if plain else (Message("user", asked),)
        answers = words(55, "chosen", i), words(55, "rejected", i)
        rows.append(PreferenceRow(f"made up:{i}", prompt, *answers, 0.5, -0.5, (-1.0,), (1.0,), "unknown"))
    return rows


class _Listed:
    licence = "unknown"

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = rows

    def describe(self) -> dict[str, str]:
        return {"name": "pairs"}

    def __iter__(self) -> Any:
        return iter(self.rows)


def _run(renderer: Renderer, rows: Sequence[PreferenceRow], max_length: int, kind: str) -> Run:
    gc.collect()
    gc.disable()
    try:
        wall, cpu = time.perf_counter(), time.process_time()
        tokeniser = Tokeniser(renderer, max_length, "skip", KINDS[kind])
        tokenised = tokeniser.pairs(rows, assign(rows))
        times = time.perf_counter() - wall, time.process_time() - cpu
    finally:
        gc.enable()
    arrays, texts = to_arrays(tokenised)
    stored = {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()}
    return Run(*times, (stored, texts, tokeniser.report))


if __name__ == "__main__":
    main()
