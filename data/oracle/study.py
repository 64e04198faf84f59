"""A study in the oracle world: a reference, its samples, and trainings compared with their optima."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from data.oracle import provenance
from data.oracle.language import save
from data.oracle.measure import RESULT
from data.oracle.optimum import Floats, solve_multiplier
from data.oracle.reference_table import read_reference
from data.oracle.report import read_runs
from data.oracle.workers import run, start
from data.oracle.world import oracle_world
from lit_safe.installation import find_config

log = logging.getLogger(__name__)

CONFIGS = Path("configs/oracle")
SFT = ("-c", "configs/base.yaml", "-c", str(CONFIGS / "sft.yaml"))
PREFERENCE = ("-c", "configs/base.yaml", "-c", str(CONFIGS / "preference.yaml"))
SAMPLES = ("--samples_per_prompt", "512", "--max_new_tokens", "24", "--batch_size", "1024")
STUDY = "study.json"  # inputs of reference and samples
FINISHED = "finished.json"  # inputs of a run, written after it has ended without error
SHARED = ("tokenizer", "sft", "sft.yaml", "sft.log", "export.log", "reference", "reference.partial", "reference.npz",
          "samples_*.jsonl", "samples_*.jsonl.partial", "sample_*.log", "cache")  # fmt: skip
REPORT = ("report.md", "report.json", "report.png", "report_*.png")
LONGEST_WAIT = 1.0  # maximum seconds between two checks of the workers
REFERENCE_TABLE = "reference.npz"
WORLD = ("hopeless", "seed")  # options of the world that, with ``prompts``, decide its prompts


@dataclass(frozen=True)
class Job:
    """One training; ``options`` are further arguments of its ``fit``."""

    objective: str
    anchor: str
    seed: int
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of its row in the report."""
        return self.objective if self.anchor == "none" else f"{self.objective}+{self.anchor}"

    @property
    def path(self) -> Path:
        """The objective's file."""
        return CONFIGS / f"{self.objective}.yaml"

    @property
    def anchor_path(self) -> Path | None:
        """The anchor's file."""
        return None if self.anchor == "none" else CONFIGS / "anchor" / f"{self.anchor.partition('=')[0]}.yaml"

    @property
    def missing(self) -> list[Path]:
        """Its files that do not exist."""
        return [path for path in (self.path, self.anchor_path) if path is not None and not _shipped(path).exists()]

    @property
    def config(self) -> dict[str, Any]:
        """The content of the objective's file."""
        return _yaml(self.path)

    @property
    def at_optimal_multiplier(self) -> bool:
        """Whether it trains with the exact multiplier that meets the limit, without dual steps."""
        return self.aim.get("optimum") == "tilt_at_limit" and not self.config.get("dual", {}).get("lr")

    @property
    def aim(self) -> dict[str, Any]:
        """The options of its ``OracleMeasure``."""
        for callback in self.config["trainer"]["callbacks+"]:
            if callback["class_path"] == "data.oracle.measure.OracleMeasure":
                options: dict[str, Any] = callback["init_args"]
                return options
        raise ValueError(f"{self.path} has no data.oracle.measure.OracleMeasure")

    def optimal_multiplier(self, reference_PK: Floats, prompts: int) -> float | list[float]:
        """Nats per cost unit, from the reference's log-probabilities for the world's first ``prompts`` prompts."""
        world = oracle_world(prompts, **{key: self.aim[key] for key in ("costs", *WORLD) if key in self.aim})
        multiplier_C = solve_multiplier(
            reference_PK, world.reward_PK, world.cost_PKC, limit=self.aim["limit"], beta=self.aim["beta"]
        )
        values: list[float] = multiplier_C.tolist()
        return values if len(values) > 1 else values[0]


class _Running(NamedTuple):
    process: BaseProcess
    made_of: dict[str, Any]
    started: float


class Study:
    """A folder with a reference, its samples, and the runs, all on the first ``prompts`` prompts of the world."""

    def __init__(self, folder: Path, prompts: int = 64) -> None:
        self.folder = folder
        self.prompts = prompts

    def check(self) -> None:
        """Refuse a folder of another study, or one whose files have unknown inputs.

        Raises:
            ValueError: Names the differences, or the files.
        """
        if (self.folder / STUDY).exists():
            if other := provenance.differences(self.folder / STUDY, self._made_of()):
                raise ValueError(
                    f"{self.folder} is another study ({'; '.join(other)}): name another folder, or start again with "
                    "--fresh"
                )
        elif there := self._shared():
            raise ValueError(
                f"{self.folder} contains {', '.join(path.name for path in there)}, but no {STUDY} with their inputs: "
                "name another folder"
            )

    def remove(self) -> None:
        """Remove the files that a study has written here, and no others. Does nothing without a study."""
        if not (self.folder / STUDY).exists():
            return
        report = [path for pattern in REPORT for path in self.folder.glob(pattern)]
        runs = [path for path in self.folder.glob("*/seed_*") if _ours(path)]
        for path in (*self._shared(), *report, *runs, self.folder / STUDY):
            log.info("removed: %s", path)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for folder in {path.parent for path in runs}:
            if not any(folder.iterdir()):
                folder.rmdir()

    def _shared(self) -> list[Path]:
        return [path for pattern in SHARED for path in sorted(self.folder.glob(pattern))]

    def _made_of(self) -> dict[str, Any]:
        configs = {name: _yaml(Path(name)) for name in SFT if name.endswith(".yaml")}
        return {"prompts": self.prompts, "words": [*SFT, *SAMPLES], "configs": configs}

    def prepare(self, seeds: Sequence[int], workers: int) -> None:
        """Make the tokenizer, the fine-tuned reference, its table and its samples, each only if it does not exist.

        Raises:
            ValueError: As ``check``.
            RuntimeError: If a command failed.
        """
        self.check()
        self.folder.mkdir(parents=True, exist_ok=True)
        provenance.write(self.folder / STUDY, self._made_of())
        reference, checkpoint = self.folder / "reference", self.folder / "sft" / "checkpoints" / "last.ckpt"
        if not (reference.exists() and (self.folder / REFERENCE_TABLE).exists()):
            shutil.rmtree(self.folder / "sft", ignore_errors=True)  # left by an interrupted study
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
            partial.rename(reference)  # the final name marks a complete folder
        waiting = [seed for seed in seeds if not self.samples(seed).exists()]
        while waiting:
            together, waiting = waiting[:workers], waiting[workers:]
            drawing = [self._draw(seed, checkpoint) for seed in together]
            for process in drawing:
                process.join()
            if any(process.exitcode for process in drawing):
                raise RuntimeError(f"lit-safe sample failed: see {self.folder / 'sample_*.log'}")

    def _draw(self, seed: int, checkpoint: Path) -> BaseProcess:
        """Start drawing a seed's samples of the reference. The file gets its final name when it is complete."""
        return start(
            *("sample", *SFT, "-c", str(self.folder / "sft.yaml"), "--ckpt_path", str(checkpoint), *SAMPLES),
            *("--out", str(self.samples(seed)), "--seed", str(seed)),
            log_to=self.folder / f"sample_{seed}.log",
        )

    def train(self, jobs: Sequence[Job], workers: int) -> list[Job]:
        """Run the unfinished jobs, ``workers`` at a time. Returns the failed ones.

        A run is finished if it ended without error and its inputs are unchanged: configuration, options, reference and
        samples. Code is not compared.

        Raises:
            ValueError: If a run's folder contains files that no study wrote.
        """
        waiting = [job for job in jobs if not self._keep(job)]
        running: dict[Job, _Running] = {}
        failed: list[Job] = []
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    job = waiting.pop(0)
                    made_of = self._made_of_run(job)
                    running[job] = _Running(self._start(job, made_of), made_of, time.monotonic())
                time.sleep(LONGEST_WAIT)
                failed += self._reap(running)
        finally:
            for process, *_ in running.values():  # an interrupted study ends its processes
                process.terminate()
                process.join()
        return failed

    def _keep(self, job: Job) -> bool:
        folder = self.run_folder(job)
        if not folder.exists():
            return False
        if not _ours(folder):
            raise ValueError(f"{folder} is not a run of a study: move it away, or name another folder")
        stale = self.stale(job)
        log.info("%s seed %d is %s", job.name, job.seed, f"trained again ({'; '.join(stale)})" if stale else "kept")
        return not stale

    def stale(self, job: Job) -> list[str]:
        """The reasons why a stored result is not that of ``job``; empty if it is."""
        folder = self.run_folder(job)
        if not ((folder / FINISHED).exists() and (folder / RESULT).exists()):
            return ["not finished"]
        if job.missing:
            return [f"no {path}" for path in job.missing]
        return provenance.differences(folder / FINISHED, self._made_of_run(job))

    def results(self, options: tuple[str, ...]) -> list[dict[str, Any]]:
        """Results of all runs of the folder, except those that would be trained again under ``options``."""
        shown: list[dict[str, Any]] = []
        if not any(self.folder.glob(f"*/seed_*/{RESULT}")):
            return shown
        for run_ in read_runs(self.folder):
            objective, _, anchor = run_["name"].partition("+")
            if stale := self.stale(Job(objective, anchor or "none", run_["seed"], options)):
                log.warning("not in the report: %s seed %s (%s)", run_["name"], run_["seed"], "; ".join(stale))
            else:
                shown.append(run_)
        return shown

    def _reap(self, running: dict[Job, _Running]) -> list[Job]:
        """Remove the jobs that have ended from ``running``; returns the failed ones."""
        failed = []
        for job, (process, made_of, started) in list(running.items()):
            if process.is_alive():
                continue
            del running[job]
            folder = self.run_folder(job)
            if process.exitcode or not (folder / RESULT).exists():
                failed.append(job)
                log.error("%s seed %d failed or was stopped: see %s", job.name, job.seed, folder / "log.txt")
            else:
                provenance.write(folder / FINISHED, made_of)
                log.info("done: %s seed %d, %.1f minutes", job.name, job.seed, (time.monotonic() - started) / 60)
        return failed

    def samples(self, seed: int) -> Path:
        """The file of the reference's responses from which a seed's pairs are made."""
        return self.folder / f"samples_{seed}.jsonl"

    def run_folder(self, job: Job) -> Path:
        """The output folder of a job."""
        return self.folder / job.name / f"seed_{job.seed}"

    def _made_of_run(self, job: Job) -> dict[str, Any]:
        """Everything that decides a run's result, except code and machine."""
        folder, preference, objective = self.run_folder(job), _yaml(CONFIGS / "preference.yaml"), job.config
        for callback in objective["trainer"]["callbacks+"]:
            callback["init_args"] |= {"prompts": self.prompts}
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
        if "dual" in objective:
            overlay["dual"] = {"seed": job.seed}  # otherwise all seeds would have the same rollout errors
        pair = preference["model"]["init_args"]["pair"]
        pair["init_args"]["source"]["init_args"]["name_or_path"] = str(self.folder / "reference")
        overlay["model"]["init_args"]["pair"] = pair
        if job.at_optimal_multiplier:
            reference_PK = read_reference(self.folder / REFERENCE_TABLE)
            overlay["model"]["init_args"]["multiplier"] = job.optimal_multiplier(reference_PK, self.prompts)
        words = ["fit", *PREFERENCE, "-c", str(folder / "objective.yaml"), "-c", str(folder / "overlay.yaml")]
        read = [Path(word) for word in PREFERENCE if word.endswith(".yaml")]
        if job.anchor_path is not None:
            read.append(job.anchor_path)
            weight = job.anchor.partition("=")[2]
            words += ["--model.anchor", str(job.anchor_path)]
            words += ["--model.anchor.init_args.weight", weight] if weight else []
        files = [*sorted((self.folder / "reference").iterdir()), self.samples(job.seed)]
        return {
            "words": [*words, *job.options],
            "objective": objective,
            "overlay": overlay,
            "configs": {str(path): _yaml(path) for path in read},
            "sha256": {str(path): provenance.digest(path) for path in files if path.exists()},
        }

    def _start(self, job: Job, made_of: dict[str, Any]) -> BaseProcess:
        folder = self.run_folder(job)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in ("objective", "overlay"):
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(made_of[name], sort_keys=False), encoding="utf-8")
        return start(*made_of["words"], log_to=folder / "log.txt")

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
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return str(path)


def _yaml(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(_shipped(path).read_text(encoding="utf-8"))
    return content


def _shipped(path: Path) -> Path:
    """The file that the command line reads for this path: outside a checkout, the one in the package."""
    return Path(find_config(path.as_posix()))


def _ours(folder: Path) -> bool:
    """Whether a study wrote this run."""
    return all((folder / name).exists() for name in ("objective.yaml", "overlay.yaml"))
