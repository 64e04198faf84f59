"""The effect of the anchor ``PreferredNLL`` on the optimum: exact population minimisers with and without it.

    python -m data.oracle.study.imitation "runs/oracle/dpo_soft+reference_support/seed_0" --weights 0.03 0.1

prints a table in Markdown. No model is trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import numpy as np

from data.oracle.study.job import Job
from data.oracle.truth.exact import LIMITED
from data.oracle.truth.optimum import Floats, constrained, masked, measure, regret, tilt
from data.oracle.truth.population import minimise
from data.oracle.truth.result import TABLES
from data.oracle.world import oracle_world
from lit_safe.types import Objective


def table(reference_PK: Floats, names: Sequence[str], weights: Sequence[float]) -> list[str]:
    """Lines of a table with the figures of each objective's minimiser at each weight of imitation.

    Args:
        reference_PK: Log-probs over the partition of the world's first P prompts.
        names: Objectives, files of configs/oracle. An objective with a limit uses the multiplier that meets it.
        weights: Weights of ``PreferredNLL``.
    """
    world = oracle_world(len(reference_PK))
    tables = (reference_PK, world.reward_PK, world.cost_PKC)
    lengths = [len(text.split(" ")) + 1 for text in world.responses]  # words and the stop token
    tokens_K = np.array([*lengths, np.mean(lengths)])
    lines = [
        "| objective | weight | reward | cost | unsafe % | malformed % | regret % |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        job = Job(name, "none", 0)
        objective, aim = _objective(job), job.aim
        multiplier, aim_PK = np.zeros(1), tilt(*tables, 0, objective.beta)
        if aim["optimum"] == "masked":
            aim_PK = masked(*tables, beta=objective.beta)
        elif aim["optimum"] in LIMITED:
            rectify = aim["optimum"] == "rectified_at_limit"
            multiplier, aim_PK = constrained(*tables, limit=aim["limit"], beta=objective.beta, rectify=rectify)
        lines.append(_line(name, "aim", aim_PK, aim_PK, tables, objective.beta))
        for weight in weights:
            imitation_PK = np.broadcast_to(weight / tokens_K, reference_PK.shape)
            found = minimise(objective, *tables, multiplier=multiplier[0], imitation_PK=imitation_PK)
            lines.append(_line(name, f"{weight:g}", found.logp_PK, aim_PK, tables, objective.beta))
    return lines


def _objective(job: Job) -> Objective:
    named = job.config["model"]["init_args"]["objective"]
    module, _, name = named["class_path"].rpartition(".")
    made: Objective = getattr(import_module(module), name)(**named.get("init_args", {}))
    return made


def _line(
    name: str, weight: str, policy_PK: Floats, aim_PK: Floats, tables: tuple[Floats, Floats, Floats], beta: float
) -> str:
    found, lost = measure(policy_PK, *tables), regret(policy_PK, aim_PK, tables[0], beta)
    cells = (
        name,
        weight,
        f"{found.reward:.3f}",
        f"{found.cost[0]:z.3f}",
        f"{100 * found.unsafe:.2f}",
        f"{100 * found.malformed:.2f}",
        f"{100 * lost.share:z.2f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a finished run, whose tables hold the reference")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.01, 0.03, 0.1])
    parser.add_argument("--objectives", nargs="+", default=["dpo_soft", "c_dpo", "safe_dpo_soft"])
    parser.add_argument("--prompts", type=int, default=16, help="number of prompts; each takes seconds per weight")
    options = parser.parse_args()
    with np.load(options.run / TABLES) as found:
        reference_PK = found["reference_PK"][: options.prompts]
    print("\n".join(table(reference_PK, options.objectives, options.weights)))


if __name__ == "__main__":
    main()
