"""Every method of the library in the oracle world: the same data and steps, compared on the exact frontier.

    python -m data.oracle.study.methods --folder runs/methods

trains each method of ``METHODS`` with each seed, and writes ``methods.md``, ``methods.json`` and ``methods.png`` into
the folder. Finished runs are kept, as in ``data.oracle.run``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.oracle.study.controllers import with_tables
from data.oracle.study.folder import Study
from data.oracle.study.inputs import REFERENCE_TABLE
from data.oracle.study.job import Job
from data.oracle.study.methods_plot import plot_methods
from data.oracle.study.results import Run, Summary, summarise
from data.oracle.study.workers import ending_workers
from data.oracle.truth.optimum import frontier, measure
from data.oracle.truth.reference_table import read_reference
from data.oracle.truth.result import GRID
from data.oracle.world import oracle_world

log = logging.getLogger(__name__)

BETA = 1.0  # of the frontier that is drawn, and of every method whose beta has DPO's scale
ANCHOR = "reference_support"
EPOCHS, STEPS = 8, 32  # of every run; a dual step follows each epoch
FIGURES = ("reward", "cost", "unsafe", "malformed", "malformed_worst", "kl", "wellformed/regret_share")
WITHOUT = {"none": "no optimum known", "diverges": "optimum at infinity"}


class Method(NamedTuple):
    """A method: its name, its file in ``configs/oracle``, its anchor, and why it has no optimum, if it has none."""

    name: str
    objective: str
    anchor: str = ANCHOR
    without: str = ""


METHODS = (
    Method("DPO", "dpo"),
    Method("DPO, soft labels", "dpo_soft"),
    Method("conservative DPO (cDPO)", "conservative_dpo"),
    Method("robust DPO, 20 % of orders wrong", "robust_dpo_flipped"),
    Method("IPO", "ipo"),
    Method("hinge (SLiC)", "hinge", without="none"),
    Method("length-normalised DPO", "length_normalised_dpo"),
    Method("KTO", "kto", without="diverges"),
    Method("SimPO", "simpo"),
    Method("CPO", "cpo", without="none"),
    Method("ORPO", "orpo", without="none"),
    Method("C-DPO at λ*", "c_dpo"),
    Method("C-DPO, dual steps", "c_dpo_dual"),
    Method("C-DPO, rectified", "c_dpo_rectified"),
    Method("MoCAN", "mocan"),
    Method("SACPO, second stage", "sacpo"),
    Method("PD-DPO, second stage", "pd_dpo"),
    Method("MODPO", "modpo"),
    Method("log barrier, offline", "log_barrier", without="none"),
    Method("SafeDPO", "safe_dpo"),
    Method("SafeDPO, soft labels", "safe_dpo_soft"),
    Method("SafeDAA, square", "safe_daa_square"),
    Method("BFPO", "bfpo"),
    Method("KTO, safe is desirable", "kto_safe", without="diverges"),
    Method("SimPO, no anchor", "simpo", "none"),
    Method("CPO, no anchor", "cpo", "none", "none"),
    Method("ORPO, no anchor", "orpo", "none", "none"),
)


def jobs_of(methods: Sequence[Method], seeds: Sequence[int], epochs: int = EPOCHS, steps: int = STEPS) -> list[Job]:
    """A job for every seed and method, with the same number of optimizer steps."""
    options = ("--trainer.max_epochs", str(epochs), "--trainer.limit_train_batches", str(steps))
    return [Job(method.objective, method.anchor, seed, options) for seed in seeds for method in methods]


def compare(study: Study, methods: Sequence[Method], runs: Sequence[Run]) -> dict[str, Any]:
    """What ``methods.json`` contains: figures of the methods that have runs, of the reference, and the frontier.

    Args:
        study: The study of the runs, for its reference and its world.
        methods: In the order of the table.
        runs: Results of ``OracleMeasure``, each with the ``name`` of its job.

    Raises:
        ValueError: If no run is one of the methods'.
    """
    rows = {row.name: row for row in summarise(runs)}
    found = {method: rows[name] for method in methods if (name := jobs_of([method], [0])[0].name) in rows}
    if not found:
        raise ValueError(f"no runs of {', '.join(method.name for method in methods)}")
    world = oracle_world(study.prompts)
    reference_PK = read_reference(study.folder / REFERENCE_TABLE)
    tables = (reference_PK, world.reward_PK, world.cost_PKC)
    drawn = frontier(*tables, beta=BETA, multipliers=GRID)
    start = measure(reference_PK, *tables)
    first = next(iter(found.values())).runs[0]
    return {
        "prompts": study.prompts,
        "steps": sorted({run["steps"] for row in found.values() for run in row.runs}),
        "machine": first["machine"],
        "reference": {
            "reward": start.reward, "cost": float(start.cost[0]), "unsafe": start.unsafe,
            "malformed": start.malformed, "malformed_worst": start.malformed_worst, "kl": 0.0,
        },
        "frontier": {
            "multiplier": list(GRID), "reward": drawn.reward_M.tolist(), "cost": drawn.cost_MC[:, 0].tolist()
        },
        "methods": [
            {
                "name": method.name,
                "objective": row.runs[0]["objective"]["text"],
                "anchor": row.runs[0]["anchor"]["text"],
                "optimum": "diverges" if row.runs[0]["diverges"] else method.without or row.aim,
                "measured": {figure: row.figures[figure]._asdict() for figure in FIGURES},
                "seeds": [
                    {"seed": run["seed"], "seconds": run["seconds"], "multiplier": run["multiplier"],
                     **{figure: run["final"][figure] for figure in FIGURES}}
                    for run in row.runs
                ],
                "at_optimum": {name: row.at_optimum[name].mean for name in ("reward", "cost")},
            }
            for method, row in found.items()
        ],
    }  # fmt: skip


def table(compared: Mapping[str, Any]) -> str:
    """The table of the methods in Markdown, from what ``methods.json`` contains."""
    heads = ["#", "method", "reward", "cost", "unsafe %", "malformed %, mean / worst prompt", "KL",
             "its optimum: reward, cost", "regret %"]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    start = compared["reference"]
    lines.append(
        f"| | reference | {start['reward']:.3f} | {start['cost']:.3f} | {100 * start['unsafe']:.1f} | "
        f"{100 * start['malformed']:.2f} / {100 * start['malformed_worst']:.2f} | 0.00 | | 100 |"
    )
    for number, method in enumerate(compared["methods"], 1):
        of = {name: Summary(**summary) for name, summary in method["measured"].items()}
        best, malformed = method["at_optimum"], _spell(of["malformed"], 100, 2)
        aim = WITHOUT.get(method["optimum"]) or f"{best['reward']:.3f}, {best['cost']:z.3f}"
        cells = [
            str(number), method["name"], _spell(of["reward"], 1, 3), _spell(of["cost"], 1, 3),
            _spell(of["unsafe"], 100, 1), f"{malformed} / {100 * (of['malformed_worst'].most or 0):.2f}",
            _spell(of["kl"], 1, 2), aim, _spell(of["wellformed/regret_share"], 100, 1),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spell(summary: Summary, scale: float, digits: int) -> str:
    if summary.mean is None:
        return "-"
    text = f"{scale * summary.mean:z.{digits}f}"
    return text if summary.stderr is None else f"{text} ± {scale * summary.stderr:.{digits}f}"


def write(folder: Path, compared: Mapping[str, Any]) -> None:
    """Write ``methods.md``, ``methods.json`` and ``methods.png`` into the folder."""
    (folder / "methods.json").write_text(json.dumps(compared, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (folder / "methods.md").write_text(f"{table(compared)}\n![methods](methods.png)\n", encoding="utf-8")
    plot_methods(compared, folder / "methods.png")


def document(docs: Path, compared: Mapping[str, Any]) -> None:
    """Write ``methods.json`` and ``methods.png`` into the folder of documents, and the table into ``objectives.md``."""
    page = docs / "objectives.md"
    text = with_tables(page.read_text(encoding="utf-8"), {"methods": table(compared)})
    write(docs, compared)
    (docs / "methods.md").unlink()  # the page has the table
    page.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/methods"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--prompts", type=int, default=9, help="number of the world's prompts to use")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="parallel runs, one thread each")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"of every run, each of --steps (default {EPOCHS})")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"optimizer steps of an epoch (default {STEPS})")
    names = sorted({method.objective for method in METHODS})
    parser.add_argument("--only", nargs="+", choices=names, metavar="FILE", help=f"of {', '.join(names)}; default all")
    parser.add_argument("--docs", type=Path, help="also write the figures into this folder of documents")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    study = Study(options.folder, options.prompts)
    try:
        study.check()
    except ValueError as error:
        parser.error(str(error))
    started = time.monotonic()
    methods = [method for method in METHODS if options.only is None or method.objective in options.only]
    jobs = jobs_of(methods, options.seeds, options.epochs, options.steps)
    try:
        with ending_workers():
            study.prepare(options.seeds, options.workers)
            failed = study.train(jobs, options.workers)
    except KeyboardInterrupt:
        log.error("stopped by Ctrl-C: run the same command to continue")
        return 128 + signal.SIGINT
    wanted = [run for run in study.results(jobs[0].options) if run["seed"] in options.seeds]
    write(study.folder, compared := compare(study, methods, wanted))
    if options.docs:
        document(options.docs, compared)
    log.info("%.1f minutes; %s", (time.monotonic() - started) / 60, study.folder / "methods.md")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
