"""A study in the oracle world: a reference, its samples, and trainings that are compared with their optima."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import yaml

from data.oracle.language import save
from data.oracle.optimum import Floats, solve_multiplier
from data.oracle.reference_table import read_reference
from data.oracle.workers import run, start
from data.oracle.world import oracle_world

log = logging.getLogger(__name__)

CONFIGS = Path("configs/oracle")
SFT = ("-c", "configs/base.yaml", "-c", str(CONFIGS / "sft.yaml"))
PREFERENCE = ("-c", "configs/base.yaml", "-c", str(CONFIGS / "preference.yaml"))
SAMPLES = ("--samples_per_prompt", "512", "--max_new_tokens", "24", "--batch_size", "1024")
LONGEST_WAIT = 1.0  # seconds between two looks at the workers
REFERENCE_TABLE = "reference.npz"
WORLD = ("hopeless", "seed")  # options of the world, beside ``prompts``, that say which prompts there are


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

    def optimal_multiplier(self, reference_PK: Floats, prompts: int) -> float | list[float]:
        """Nats per cost unit, from the reference's log-probabilities in the world's first ``prompts``."""
        world = oracle_world(prompts, **{key: self.aim[key] for key in ("costs", *WORLD) if key in self.aim})
        multiplier_C = solve_multiplier(
            reference_PK, world.reward_PK, world.cost_PKC, limit=self.aim["limit"], beta=self.aim["beta"]
        )
        values: list[float] = multiplier_C.tolist()
        return values if len(values) > 1 else values[0]


class Study:
    """A folder with a reference, samples of it, and the runs, all in the first ``prompts`` of the world."""

    def __init__(self, folder: Path, prompts: int = 64) -> None:
        self.folder = folder
        self.prompts = prompts

    def prepare(self, seeds: Sequence[int], workers: int) -> None:
        """The tokenizer, the fine-tuned reference, its table and its samples, each only where it is not there yet."""
        reference, checkpoint = self.folder / "reference", self.folder / "sft" / "checkpoints" / "last.ckpt"
        if not (reference.exists() and (self.folder / REFERENCE_TABLE).exists()):
            save(self.folder / "tokenizer")
            overlay = self._overlay("sft", self._sft())
            run("fit", *SFT, "-c", overlay, log_to=self.folder / "sft.log")
            partial = reference.with_name(f"{reference.name}.partial")
            for folder in (partial, reference):
                shutil.rmtree(folder, ignore_errors=True)
            run(
                *("export", *SFT, "-c", overlay, "--ckpt_path", str(checkpoint), "--out", str(partial)),
                log_to=self.folder / "export.log",
            )
            partial.rename(reference)  # it has its name once it is whole
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
        """Run the jobs, ``workers`` at a time. Returns what failed."""
        waiting = list(jobs)
        running: dict[Job, tuple[BaseProcess, float]] = {}
        failed: list[Job] = []
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    job = waiting.pop(0)
                    running[job] = (self._start(job), time.monotonic())
                time.sleep(LONGEST_WAIT)
                failed += self._reap(running)
        finally:
            for process, _ in running.values():  # an interrupted study leaves none behind
                process.terminate()
                process.join()
        return failed

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

    def _start(self, job: Job) -> BaseProcess:
        folder = self.run_folder(job)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        preference, objective = _yaml(CONFIGS / "preference.yaml"), job.config
        for callback in objective["trainer"]["callbacks+"]:
            callback["init_args"] |= {"prompts": self.prompts}
        (folder / "objective.yaml").write_text(yaml.safe_dump(objective, sort_keys=False))
        source = {**preference, **objective}["data"]["init_args"]["sources"][0]
        drawn = {"responses": str(self.samples(job.seed)), "draw": job.seed, "prompts": self.prompts}
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
            reference_PK = read_reference(self.folder / REFERENCE_TABLE)
            overlay["model"]["init_args"]["multiplier"] = job.optimal_multiplier(reference_PK, self.prompts)
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
        options = sources[0]["init_args"]
        options |= {"prompts": self.prompts}
        world = {key: options[key] for key in ("prompts", *WORLD) if key in options}
        table = {
            "class_path": "data.oracle.reference_table.ReferenceTable",
            "init_args": {"path": str(self.folder / REFERENCE_TABLE), **world},
        }
        return {
            "trainer": {"default_root_dir": str(self.folder / "sft"), "callbacks+": [table]},
            "model": {"init_args": {"pair": pair}},
            "data": {"init_args": {"sources": sources}},
        }

    def _overlay(self, name: str, content: dict[str, Any]) -> str:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return str(path)


def _yaml(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content
