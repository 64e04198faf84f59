"""A study in the oracle world: a reference, its samples, and trainings compared with their optima."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from data.oracle.study import inputs, provenance
from data.oracle.study.job import Job
from data.oracle.study.results import read_runs
from data.oracle.study.workers import run, start
from data.oracle.truth.result import RESULT
from data.oracle.world.language import save

log = logging.getLogger(__name__)

STUDY = "study.json"  # inputs of reference and samples
FINISHED = "finished.json"  # inputs of a run, written after it has ended without error
SHARED = ("tokenizer", "sft", "sft.yaml", "sft.log", "export.log", "reference", "reference.partial", "reference.npz",
          "samples_*.jsonl", "samples_*.jsonl.partial", "sample_*.log", "cache")  # fmt: skip
REPORT = ("report.md", "report.json", "report.png", "report_*.png")
LONGEST_WAIT = 1.0  # maximum seconds between two checks of the workers


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
            if other := provenance.differences(self.folder / STUDY, self.reference_inputs()):
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

    def prepare(self, seeds: Sequence[int], workers: int) -> None:
        """Make the tokenizer, the fine-tuned reference, its table and its samples, each only if it does not exist.

        Raises:
            ValueError: As ``check``.
            RuntimeError: If a command failed.
        """
        self.check()
        self.folder.mkdir(parents=True, exist_ok=True)
        provenance.write(self.folder / STUDY, self.reference_inputs())
        reference, checkpoint = self.folder / "reference", self.folder / "sft" / "checkpoints" / "last.ckpt"
        if not (reference.exists() and (self.folder / inputs.REFERENCE_TABLE).exists()):
            shutil.rmtree(self.folder / "sft", ignore_errors=True)  # left by an interrupted study
            save(self.folder / "tokenizer")
            overlay = self._overlay("sft", inputs.sft_overlay(self.folder, self.prompts))
            run("fit", *inputs.SFT, "-c", overlay, log_to=self.folder / "sft.log")
            partial = reference.with_name(f"{reference.name}.partial")
            for folder in (partial, reference):
                shutil.rmtree(folder, ignore_errors=True)
            run(
                *("export", *inputs.SFT, "-c", overlay, "--ckpt_path", str(checkpoint), "--out", str(partial)),
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
        fitted = ("--ckpt_path", str(checkpoint), *inputs.SAMPLES)
        return start(
            *("sample", *inputs.SFT, "-c", str(self.folder / "sft.yaml"), *fitted),
            *("--out", str(self.samples(seed)), "--seed", str(seed)),
            log_to=self.folder / f"sample_{seed}.log",
        )

    def train(self, jobs: Sequence[Job], workers: int) -> list[Job]:
        """Run the unfinished jobs, ``workers`` at a time. Returns the failed ones.

        A run is finished if it ended without error and its inputs are unchanged: configuration, options, reference and
        samples. Code is not compared. A second stage waits for its first stage, which is trained too if it is not among
        the jobs.

        Raises:
            ValueError: If a run's folder contains files that no study wrote.
        """
        firsts = [job.first for job in jobs if job.first is not None]
        waiting = [job for job in dict.fromkeys([*firsts, *jobs]) if not self._keep(job)]
        running: dict[Job, _Running] = {}
        failed: list[Job] = []
        try:
            while waiting or running:
                while len(running) < workers:
                    job = next((job for job in waiting if job.first not in [*waiting, *running]), None)
                    if job is None:
                        break
                    waiting.remove(job)
                    if not self._export_first(job):
                        failed.append(job)
                        continue
                    made_of = self.run_inputs(job)
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
        if job.first is not None and (older := self.stale(job.first)):
            return [f"{job.first.name}: {reason}" for reason in older]
        return provenance.differences(folder / FINISHED, self.run_inputs(job))

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

    def _export_first(self, job: Job) -> bool:
        """Write the model of a job's first stage, if it has one. False, and the reason logged, if there is none."""
        if job.first is None:
            return True
        if reasons := self.stale(job.first):
            log.error("%s seed %d has no first stage: %s", job.name, job.seed, "; ".join(reasons))
            return False
        if inputs.exported(self.folder, job.first).exists():
            return True
        folder = self.run_folder(job.first)
        words = ("-c", str(folder / "config.yaml"), "--ckpt_path", str(folder / "checkpoints" / "last.ckpt"))
        try:
            run("export", *words, "--out", str(inputs.exported(self.folder, job.first)), log_to=folder / "export.log")
        except RuntimeError as error:
            log.error("%s seed %d has no first stage: %s", job.name, job.seed, error)
            return False
        return True

    def samples(self, seed: int) -> Path:
        """The file of the reference's responses from which a seed's pairs are made."""
        return inputs.samples(self.folder, seed)

    def run_folder(self, job: Job) -> Path:
        """The output folder of a job."""
        return inputs.run_folder(self.folder, job)

    def reference_inputs(self) -> dict[str, Any]:
        """The inputs of the reference and its samples."""
        return inputs.of_reference(self.prompts)

    def run_inputs(self, job: Job) -> dict[str, Any]:
        """The inputs of a run."""
        return inputs.of_run(self.folder, self.prompts, job)

    def _start(self, job: Job, made_of: dict[str, Any]) -> BaseProcess:
        folder = self.run_folder(job)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in ("objective", "overlay"):
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(made_of[name], sort_keys=False), encoding="utf-8")
        return start(*made_of["words"], log_to=folder / "log.txt")

    def _overlay(self, name: str, content: dict[str, Any]) -> str:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return str(path)


def _ours(folder: Path) -> bool:
    """Whether a study wrote this run."""
    return all((folder / name).exists() for name in ("objective.yaml", "overlay.yaml"))
