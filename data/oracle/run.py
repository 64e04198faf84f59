"""Run the oracle world: a reference, its samples, one training for each objective, anchor and seed, and the report.

    python -m data.oracle.run --seeds 0 1 --objectives c_dpo_dual safe_dpo_soft --anchors none reference_support

Every step is a command of ``train.py`` and stands in the log, so that any of them can be repeated by hand. An objective
is a file ``configs/oracle/<objective>.yaml``, an anchor ``configs/oracle/anchor/<anchor>.yaml``, perhaps with another
weight as in ``reference_support=0.3``, or ``none``. Runs are single-threaded, several at a time.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data.oracle.language import save
from data.oracle.measure import RESULT, TABLES
from data.oracle.optimum import solve_multiplier
from data.oracle.report import read_runs, write_report
from data.oracle.workers import run, start

log = logging.getLogger(__name__)

CONFIGS = Path("configs/oracle")
SFT = ("-c", "configs/base.yaml", "-c", str(CONFIGS / "sft.yaml"))
PREFERENCE = ("-c", "configs/base.yaml", "-c", str(CONFIGS / "preference.yaml"))
SAMPLES = ("--samples_per_prompt", "512", "--max_new_tokens", "24", "--batch_size", "1024")
LONGEST_WAIT = 1.0  # seconds between two looks at the workers


@dataclass(frozen=True)
class Job:
    """One training; ``options`` are more words for its ``fit``."""

    objective: str
    anchor: str
    seed: int
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The row of the report that it belongs to."""
        return self.objective if self.anchor == "none" else f"{self.objective}+{self.anchor}"

    @property
    def config(self) -> dict[str, Any]:
        """The objective's file."""
        return _yaml(CONFIGS / f"{self.objective}.yaml")

    @property
    def at_optimal_multiplier(self) -> bool:
        """Whether it trains under the multiplier that solves the limit: it aims there, and takes no dual step."""
        return self.aim.get("optimum") == "tilt_at_limit" and not self.config.get("dual", {}).get("lr")

    @property
    def aim(self) -> dict[str, Any]:
        """What its ``OracleMeasure`` compares it with."""
        for callback in self.config["trainer"]["callbacks+"]:
            if callback["class_path"] == "data.oracle.measure.OracleMeasure":
                options: dict[str, Any] = callback["init_args"]
                return options
        raise ValueError(f"{CONFIGS / self.objective}.yaml has no data.oracle.measure.OracleMeasure")

    def optimal_multiplier(self, tables: Path) -> float | list[float]:
        """Nats per cost unit, from a finished run's tables of the reference."""
        with np.load(tables) as found:
            multiplier_C = solve_multiplier(
                found["reference_PK"],
                found["reward_PK"],
                found["cost_PKC"],
                limit=self.aim["limit"],
                beta=self.aim["beta"],
            )
        values: list[float] = multiplier_C.tolist()
        return values if len(values) > 1 else values[0]


class Study:
    """A folder with a reference, samples of it, and the runs; the first ``prompts`` of the world, or all 64 of them."""

    def __init__(self, folder: Path, prompts: int | None = None) -> None:
        self.folder = folder
        self._world = {} if prompts is None else {"prompts": prompts}

    def prepare(self, seeds: Sequence[int], workers: int) -> None:
        """The tokenizer, the fine-tuned reference and its samples, each only where it is not there yet."""
        reference, checkpoint = self.folder / "reference", self.folder / "sft" / "checkpoints" / "last.ckpt"
        if not (reference / "config.json").exists():
            save(self.folder / "tokenizer")
            overlay = self._overlay("sft", self._sft())
            run("fit", *SFT, "-c", overlay, log_to=self.folder / "sft.log")
            shutil.rmtree(reference, ignore_errors=True)
            run(
                *("export", *SFT, "-c", overlay, "--ckpt_path", str(checkpoint), "--out", str(reference)),
                log_to=self.folder / "export.log",
            )
        waiting = [seed for seed in seeds if not self.samples(seed).exists()]
        while waiting:
            together, waiting = waiting[:workers], waiting[workers:]
            drawing = [self._draw(seed, checkpoint) for seed in together]
            for process in drawing:
                process.join()
            if any(process.exitcode for process in drawing):
                raise RuntimeError(f"train.py sample failed: see {self.folder / 'sample_*.log'}")

    def _draw(self, seed: int, checkpoint: Path) -> BaseProcess:
        """Start drawing a seed's samples of the reference; the file has its name once it is whole."""
        return start(
            *("sample", *SFT, "-c", str(self.folder / "sft.yaml"), "--ckpt_path", str(checkpoint), *SAMPLES),
            *("--out", str(self.samples(seed)), "--seed", str(seed)),
            log_to=self.folder / f"sample_{seed}.log",
        )

    def train(self, jobs: Sequence[Job], workers: int) -> list[Job]:
        """Run the jobs, ``workers`` at a time; those that need another's tables come after it. Returns what failed."""
        waiting = sorted(jobs, key=lambda job: job.at_optimal_multiplier)
        running: dict[Job, tuple[BaseProcess, float]] = {}
        failed: list[Job] = []
        try:
            while waiting or running:
                self._fill(waiting, running, workers)
                time.sleep(LONGEST_WAIT)
                failed += self._reap(running)
        finally:
            for process, _ in running.values():  # an interrupted study leaves none behind
                process.terminate()
                process.join()
        return failed

    def _fill(self, waiting: list[Job], running: dict[Job, tuple[BaseProcess, float]], workers: int) -> None:
        """Start what may start."""
        tables = next(iter(sorted(self.folder.glob(f"*/seed_*/{TABLES}"))), None)
        ready = [job for job in waiting if tables is not None or not job.at_optimal_multiplier]
        while ready and len(running) < workers:
            job = ready.pop(0)
            waiting.remove(job)
            running[job] = (self._start(job, tables), time.monotonic())
        if not running:
            raise RuntimeError("no run is left that shows the reference: name an objective with no limit")

    def _reap(self, running: dict[Job, tuple[BaseProcess, float]]) -> list[Job]:
        """Take out what has ended; returns what failed of it."""
        failed = []
        for job, (process, started) in list(running.items()):
            if process.is_alive():
                continue
            del running[job]
            if process.exitcode:
                failed.append(job)
                log.error("%s seed %d failed: see %s", job.name, job.seed, self.run_folder(job) / "log.txt")
            else:
                log.info("done: %s seed %d, %.1f minutes", job.name, job.seed, (time.monotonic() - started) / 60)
        return failed

    def samples(self, seed: int) -> Path:
        """The reference's responses that a seed's pairs are made of."""
        return self.folder / f"samples_{seed}.jsonl"

    def run_folder(self, job: Job) -> Path:
        """Where a job writes."""
        return self.folder / job.name / f"seed_{job.seed}"

    def _start(self, job: Job, tables: Path | None) -> BaseProcess:
        folder = self.run_folder(job)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        preference, objective = _yaml(CONFIGS / "preference.yaml"), job.config
        for callback in objective["trainer"]["callbacks+"]:
            callback["init_args"] |= self._world
        (folder / "objective.yaml").write_text(yaml.safe_dump(objective, sort_keys=False))
        source = {**preference, **objective}["data"]["init_args"]["sources"][0]
        drawn = {"responses": str(self.samples(job.seed)), "draw": job.seed, **self._world}
        overlay: dict[str, Any] = {
            "seed_everything": job.seed,
            "trainer": {"default_root_dir": str(folder)},
            "model": {"init_args": {"reference_cache_dir": str(self.folder / "cache")}},
            "data": {
                "init_args": {
                    "sources": [{**source, "init_args": {**source["init_args"], **drawn}}],
                    "cache_dir": str(self.folder / "cache"),
                    "seed": job.seed,
                }
            },
        }
        pair = preference["model"]["init_args"]["pair"]
        pair["init_args"]["source"]["init_args"]["name_or_path"] = str(self.folder / "reference")
        overlay["model"]["init_args"]["pair"] = pair
        if job.at_optimal_multiplier:
            assert tables is not None
            overlay["model"]["init_args"]["multiplier"] = job.optimal_multiplier(tables)
        path = folder / "overlay.yaml"
        path.write_text(yaml.safe_dump(overlay, sort_keys=False))
        words = ["fit", *PREFERENCE, "-c", str(folder / "objective.yaml"), "-c", str(path)]
        if job.anchor != "none":
            anchor, _, weight = job.anchor.partition("=")
            words += ["--model.anchor", str(CONFIGS / "anchor" / f"{anchor}.yaml")]
            words += ["--model.anchor.init_args.weight", weight] if weight else []
        return start(*words, *job.options, log_to=folder / "log.txt")

    def _sft(self) -> dict[str, Any]:
        config = _yaml(CONFIGS / "sft.yaml")
        pair, sources = config["model"]["init_args"]["pair"], config["data"]["init_args"]["sources"]
        pair["init_args"]["source"]["init_args"]["tokenizer"] = str(self.folder / "tokenizer")
        sources[0]["init_args"] |= self._world
        return {
            "trainer": {"default_root_dir": str(self.folder / "sft")},
            "model": {"init_args": {"pair": pair}},
            "data": {"init_args": {"sources": sources}},
        }

    def _overlay(self, name: str, content: dict[str, Any]) -> str:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return str(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/oracle"))
    parser.add_argument("--objectives", nargs="+", default=["dpo_soft", "c_dpo", "c_dpo_dual", "safe_dpo_soft"])
    parser.add_argument(
        "--anchors",
        nargs="+",
        default=["reference_support"],
        help="none, or files of configs/oracle/anchor, with =WEIGHT if not the file's",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--prompts", type=int, help="so many of the world's, in place of all 64")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    parser.add_argument("--fresh", action="store_true", help="train the reference and draw its samples anew")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="more words for every fit; comes last")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    words = tuple(options.options)
    jobs = [Job(o, a, s, words) for s in options.seeds for a in options.anchors for o in options.objectives]
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # unwinds, so that the workers end too
    if options.fresh:
        shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True, exist_ok=True)
    study = Study(options.folder, options.prompts)
    study.prepare(options.seeds, options.workers)
    failed = study.train(jobs, options.workers)
    if any(options.folder.glob(f"*/seed_*/{RESULT}")):
        write_report(options.folder, read_runs(options.folder))
        log.info("%.1f minutes; report: %s", (time.monotonic() - started) / 60, options.folder / "report.md")
    return 1 if failed else 0


def _yaml(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


if __name__ == "__main__":
    sys.exit(main())
