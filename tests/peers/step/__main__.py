"""Times optimizer steps of lit_safe and of TRL on the same rows in the same order, side by side.

    make bench-step                                  # rows of the package pyrit
    make bench-step PAIRS=pairs.jsonl LONG=hh.jsonl  # PKU-SafeRLHF's and HH-RLHF's columns
    make bench-step SIZE=--tiny                      # a trial: a tiny model, two steps

Three cases: pairs; pairs after long conversations; a sweep of C-DPO over three multipliers, which TRL computes as
the sum of two of its losses. Both sides out of the box and at their best. Each measurement is a process of its own, and
rounds take turns. Let nothing else run on the machine meanwhile. Writes report.json.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.gpu.timing import ceilings
from models.sources import PackagedGGUF, TinyLlama
from tests.peers.step.cases import Case, cases
from tests.peers.step.job import ABLATIONS, SIDES, Job
from tests.peers.step.ours import in_order, load_data
from tests.peers.step.report import lines, of_case, of_side


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run all cases, print the table and write the report."""
    parser = argparse.ArgumentParser(prog="python -m tests.peers.step", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("work", type=Path, help="an empty folder for models and what the sides write")
    parser.add_argument("--pairs", type=Path, help="JSONL: prompt, response_0, response_1, safer_response_id")
    parser.add_argument("--long", type=Path, help="JSONL: chosen and rejected transcripts of Human and Assistant")
    parser.add_argument("--steps", type=int, default=5, help="steps of a run; the first is not timed")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--pairs-per-step", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--long-length", type=int, default=1024, help="max_length of the long conversations")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--cases", nargs="+", default=["pairs", "long prompts", "sweep"])
    parser.add_argument("--ablations", action="store_true", help="time each measure of lit_safe alone, too")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, 2 steps of 2 pairs, one round, one thread")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_step"))
    given = parser.parse_args(arguments)
    if given.tiny:
        given.steps, given.rounds, given.pairs_per_step, given.threads = 2, 1, 2, 1
    report = _report(given)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print("\n".join(lines(report)))
    return report


def _report(given: argparse.Namespace) -> dict[str, Any]:
    model = given.work / "model"
    source = TinyLlama(layers=2, width=64) if given.tiny else PackagedGGUF()
    source.load_tokenizer().save_pretrained(model)
    source.load_model().save_pretrained(model)
    torch.set_num_threads(given.threads)
    matmul = ceilings("cpu", torch.float32).matmul
    needed = 2 * given.pairs_per_step * given.steps  # a fifth of the prompts is held out
    made = cases(given.pairs, given.long, given.max_length, given.long_length, max(needed, 40))
    return {
        "machine": {"cpu": platform.processor(), "threads": given.threads, "matmul_gflops": matmul / 1e9},
        "versions": {name: importlib.metadata.version(name) for name in ("trl", "transformers", "torch")},
        "model": str(source.describe()),
        "settings": {name: options for name, (_, options) in _sides(given).items()},
        "pairs_per_step": given.pairs_per_step,
        "steps": given.steps,
        "rounds": given.rounds,
        "cases": [_case(case, given, str(model), matmul) for case in made if case.name in given.cases],
    }


def _sides(given: argparse.Namespace) -> dict[str, Any]:
    return {**SIDES, **(ABLATIONS if given.ablations else {})}


def _case(case: Case, given: argparse.Namespace, model: str, matmul: float) -> dict[str, Any]:
    ids = in_order(load_data(case.records, model, case.max_length, given.pairs_per_step))
    used = ids[: given.steps * given.pairs_per_step]
    if len(used) < given.steps * given.pairs_per_step:
        raise SystemExit(f"{case.name}: {len(ids)} pairs train, and {given.steps} steps need more: lower --steps")
    tokens = float(np.sum([2 * len(prompt) + len(a) + len(b) for prompt, a, b in used])) / given.steps
    measured: dict[str, list[Any]] = {name: [] for name in _sides(given)}
    for turn in range(given.rounds):
        for name, (side, options) in _sides(given).items():
            folder = given.work / f"{case.name}_{turn}_{name}".replace(" ", "_").replace(",", "")
            folder.mkdir(parents=True)
            job = Job(
                side, options, model, case.records, used, case.max_length, case.multipliers, given.pairs_per_step,
                given.steps, given.threads, str(folder),
            )  # fmt: skip
            measured[name].append(_measured(job, folder))
            print(f"{case.name}, round {turn + 1}, {name}: done", flush=True)
    whole = bool(case.multipliers)
    return of_case(case, {name: of_side(found, tokens, matmul, whole) for name, found in measured.items()})


def _measured(job: Job, folder: Path) -> Any:
    job.write(folder / "job.json")
    words = [sys.executable, "-m", "tests.peers.step.side", str(folder / "job.json"), str(folder / "result.json")]
    done = subprocess.run(words, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise SystemExit(f"{job.side} failed:\n{done.stderr[-4000:]}")
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
