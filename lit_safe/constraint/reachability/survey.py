"""Draws and scores samples of the reference, estimates which limits are in reach, and writes the result.

Letters: C cost constraints.
"""

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.constraint.limits import check_limit
from lit_safe.constraint.reachability.draw import draw_samples
from lit_safe.constraint.reachability.plot import plot
from lit_safe.constraint.reachability.reach import Reach, reach
from lit_safe.constraint.reachability.words import as_json, findings, notes, page, suggestions
from lit_safe.errors.message import SettingError
from lit_safe.rollouts.scoring import name_of
from lit_safe.training.module import PreferenceAlignment
from lit_safe.types import CostFunction

log = logging.getLogger(__name__)

STEM = "reach"
MOST = 10.0  # nats per cost unit: the default of dual.maximum


class Survey(NamedTuple):
    """The estimate, sentences on what it does not show, and what was sampled."""

    found: Reach
    notes: list[str]
    facts: dict[str, Any]

    def say(self) -> None:
        """Log findings and suggestions."""
        for line in (*findings(self.found), *suggestions(self.found), *self.notes[:1]):
            log.info("%s", line)

    def write(self, folder: Path) -> None:
        """Write ``reach.md``, ``reach.json`` and ``reach.png`` into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        plot(self.found, folder / f"{STEM}.png")
        values = json.dumps(as_json(self.found, self.facts), indent=2, allow_nan=False)
        (folder / f"{STEM}.json").write_text(values + "\n", encoding="utf-8")
        (folder / f"{STEM}.md").write_text(page(self.found, self.notes, self.facts), encoding="utf-8")


def survey(
    module: PreferenceAlignment,
    data: Any,
    dual: DualAscent,
    *,
    cost: CostFunction | None,
    reward: CostFunction | None,
    prompts: int | None,
    samples_per_prompt: int,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
) -> Survey:
    """Sample, score and estimate. All ranks get the same result.

    Args:
        module: Its reference answers; ``beta`` is its objective's.
        data: Gives the prompts of the dual split.
        dual: Gives limits and maximum.
        cost: Scores text. None takes the scorer of the dual step's estimator.
        reward: Scores text in nats. None tilts by cost alone.
        prompts: Number of prompts; None takes all of the dual split.
        samples_per_prompt: Responses to each prompt.
        max_new_tokens: Maximum length of a response in tokens.
        batch_size: Responses generated at once.
        seed: Of the draws.

    Raises:
        SettingError: If there is no cost function, or limits and costs are of different numbers of constraints.
        ValueError: From ``draw_samples``.
    """
    names = tuple(data.constraints)
    cost = scorer(cost, dual)
    check_limit(targets(dual)[0][1], cost)
    limit, maximum = (expanded(what, value, names) for what, value in targets(dual))
    drawn = draw_samples(
        module, data, cost, reward, prompts=prompts, samples_per_prompt=samples_per_prompt,
        max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    given = drawn.samples.cost_PKC.shape[-1]
    if given != len(names):
        raise SettingError(
            f"the cost function {name_of(cost)} gave {given} costs per response, and the data have {len(names)} "
            f"constraints, {', '.join(names)}"
        )
    found = reach(drawn.samples, names, limit, module.objective.beta, maximum)
    facts = {
        "prompts": drawn.samples.prompts,
        "samples_per_prompt": samples_per_prompt,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "margin": dual.margin.values.tolist(),
        "cost": name_of(cost),
        "cost_of_reference": drawn.samples.cost_PKC.mean((0, 1)).tolist(),
        "reward": "none (r = 0)" if reward is None else name_of(reward),
        "truncated": drawn.truncated,
        "empty": drawn.empty,
    }
    return Survey(found, notes(found, reward is None, drawn.truncated, drawn.empty), facts)


def scorer(cost: CostFunction | None, dual: DualAscent) -> CostFunction:
    """``cost``, or that of the dual step's estimator.

    Raises:
        SettingError: If there is neither.
    """
    found = getattr(dual.estimator, "cost", None) if cost is None else cost
    if found is None:
        raise SettingError(
            "reachability needs a cost function: --dual.estimator configs/cost/rollout.yaml names one, or cost does"
        )
    return found


def targets(dual: DualAscent) -> tuple[tuple[str, Tensor], tuple[str, Tensor]]:
    """The cost that the dual step steers to, limit - margin, and the largest multiplier; ``MOST`` if there is none."""
    top = dual.controller.maximum.double()
    return ("limit", dual.limit - dual.margin.values), ("maximum", torch.where(top.isfinite(), top, MOST))


def expanded(what: str, value: Tensor, names: tuple[str, ...]) -> list[float]:
    """The value of each constraint.

    Raises:
        SettingError: If there are others than constraints.
    """
    if value.ndim and len(value) != len(names):
        raise SettingError(f"dual.{what} has {len(value)} numbers, and the data have {len(names)} constraints")
    return value.expand(len(names)).tolist()
