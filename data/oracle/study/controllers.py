"""Controllers of the multiplier against the exact cost of the optimum, without a model.

    python -m data.oracle.study.controllers docs

simulates every controller in the oracle world and writes ``controllers.png`` and the tables of ``controllers.md`` into
that folder. At its optimum for a multiplier the policy is a tilt of the reference (``truth.optimum.tilt``), whose cost
is known in closed form. Here the reference is the author of the world's texts. An epoch moves the policy's log-probs
the share ``follows`` of the way to the optimum of the current multiplier.

Letters: P prompts, K cells, C constraints, E epochs, D draws.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import brentq  # type: ignore[import-untyped]

from data.oracle.study.controllers_plot import plot_controllers
from data.oracle.truth.optimum import Floats, solve_multiplier, tilt
from data.oracle.world import Costs, oracle_world
from lit_safe.hashing import hash64
from lit_safe.types import CostEstimate

BETA = 1.0
LIMIT = -0.3  # cost units: the reference costs -0.16, plain DPO's optimum 0.08
EPOCHS = 40
FOLLOWS = (1.0, 0.3)  # shares of the way that the policy goes in an epoch
PROMPTS, SAMPLES = 64, 4  # of an estimate with noise
DRAWS = 20
ONE_SHOT = 128  # responses of the reference to each prompt, for the one-shot dual: MoCAN's number
LATE = 10  # last epochs, over which the spread is taken
SETTLED = 0.05  # share of plain DPO's distance to the target, within which the cost has settled
KEPT = 0.005  # a violation up to this counts as none, in cost units
SCALES = (1.0, 10.0, 100.0)  # of the three costs, for the comparison of units
RULES = "lit_safe.constraint.controllers"


@dataclass(frozen=True, eq=False)
class Cost:
    """The tables of a world, and the policy's cost as a function of its place between reference and optima.

    Args:
        costs: One constraint for the ``worst`` category of harm, or one for ``each``.
        scales: Factor(s) on the costs.
    """

    costs: Costs = "worst"
    scales: tuple[float, ...] = (1.0,)
    reference_PK: Floats = field(init=False)
    reward_PK: Floats = field(init=False)
    cost_PKC: Floats = field(init=False)

    def __post_init__(self) -> None:
        world = oracle_world(costs=self.costs)
        with np.errstate(divide="ignore"):
            object.__setattr__(self, "reference_PK", np.log(world.author_PK))
        object.__setattr__(self, "reward_PK", world.reward_PK)
        object.__setattr__(self, "cost_PKC", world.cost_PKC * np.array(self.scales))

    def moments(self, reward_share: float, multiplier_C: Floats) -> tuple[Floats, Floats, Floats]:
        """E[cost], its variance within and between prompts, [C] each, of the tilt by reward_share r - multiplier . c.

        A policy that goes a share of the way between two tilts, in log-probs, is the tilt by the mixed exponents.
        """
        policy_PK = np.exp(tilt(self.reference_PK, reward_share * self.reward_PK, self.cost_PKC, multiplier_C, BETA))
        mean_PC = np.einsum("pk,pkc->pc", policy_PK, self.cost_PKC)
        square_PC = np.einsum("pk,pkc->pc", policy_PK, self.cost_PKC**2)
        return mean_PC.mean(0), (square_PC - mean_PC**2).mean(0), mean_PC.var(0)

    def at_optimum(self, multiplier: Any) -> Floats:
        """[C] E[cost] of the optimum for a multiplier."""
        return self.moments(1.0, np.broadcast_to(np.asarray(multiplier, np.float64), self.cost_PKC.shape[-1]))[0]

    def solve(self, limit: Any) -> Floats:
        """[C] multipliers that meet the limit(s)."""
        return solve_multiplier(self.reference_PK, self.reward_PK, self.cost_PKC, limit, BETA)

    def slope(self, multiplier_C: Floats) -> Floats:
        """[C] how far E[cost] falls when its own multiplier rises by one: Var(cost) / beta."""
        return self.moments(1.0, multiplier_C)[1] / BETA


class Rule(NamedTuple):
    """A controller by class path, its settings, where it starts, and the cost that it steers to.

    ``drawn`` gives the settings of a noisy run by its seed, for a rule whose settings are estimated once.
    """

    path: str
    settings: Mapping[str, Any]
    target: Floats
    start: float = 0.0
    drawn: Callable[[int], Mapping[str, Any]] | None = None


class Run(NamedTuple):
    """The multiplier under which each epoch trained and the exact cost at its end, [E, C]."""

    multiplier: Floats
    cost: Floats


class Row(NamedTuple):
    """What the table shows of a controller at one share ``follows``. Costs are in the units of the first constraint."""

    name: str
    follows: float
    target: float
    distance: float  # |cost - target| after the last epoch, without noise
    settles: int | None  # first epoch (from 1) from which on the cost stays within SETTLED, without noise
    relapse: float  # largest violation after the limit was first kept, without noise; NaN if it never is
    over: int  # epochs over the limit, without noise
    spread: float  # standard deviation of the cost over the last epochs and all draws, with noise
    worst: float  # 95 % quantile of the violation in the last epochs, with noise


def simulate(
    world: Cost, rule: Rule, limit_C: Floats, follows: float, noisy: bool = False, seed: int = 0, epochs: int = EPOCHS
) -> Run:
    """One run of a controller.

    Args:
        world: Costs of policies.
        rule: What moves the multiplier.
        limit_C: The limits.
        follows: Share of the way to the optimum that the policy goes in an epoch, in (0, 1].
        noisy: Whether the estimate has the error of ``PROMPTS`` prompts with ``SAMPLES`` responses each.
        seed: Seed of the noise.
        epochs: Number of epochs.
    """
    random = np.random.default_rng(hash64("controller", seed))
    controller = _controller(rule.path, rule.settings if rule.drawn is None or not noisy else rule.drawn(seed))

    def shaped(value_C: Floats) -> torch.Tensor:
        return torch.tensor(value_C if len(limit_C) > 1 else value_C[0], dtype=torch.float64)

    limit = shaped(limit_C)
    multiplier = controller.start(shaped(np.full(len(limit_C), rule.start)), BETA)
    reward, tilted_C = 0.0, np.zeros(len(limit_C))
    multipliers, costs = [], []
    for epoch in range(epochs):
        value_C = np.asarray(multiplier.numpy(), np.float64).reshape(-1)
        reward += follows * (1 - reward)
        tilted_C = tilted_C + follows * (value_C - tilted_C)
        mean_C, within_C, between_C = world.moments(reward, tilted_C)
        multipliers.append(value_C)
        costs.append(mean_C)
        error_C = np.sqrt((between_C + within_C / SAMPLES) / PROMPTS)
        seen_C, seen_within_C = mean_C, within_C
        if noisy:
            degrees = PROMPTS * (SAMPLES - 1)
            seen_C = mean_C + error_C * random.standard_normal(len(mean_C))
            seen_within_C = within_C * random.chisquare(degrees, len(mean_C)) / degrees
        error = shaped(error_C if noisy else np.zeros_like(error_C))
        estimate = CostEstimate(
            shaped(seen_C), error, PROMPTS * SAMPLES, torch.tensor(0.5), float(PROMPTS * SAMPLES), clusters=PROMPTS,
            spread=shaped(np.sqrt(within_C + between_C)), within=shaped(seen_within_C),
        )  # fmt: skip
        multiplier = controller.step(multiplier, estimate, limit, epoch, epochs)
    return Run(np.array(multipliers), np.array(costs))


def rules(world: Cost, limit: float) -> dict[str, Rule]:
    """Every controller, set so that its first correction near the solution is half of Newton's step."""
    star = float(world.solve(limit)[0])
    gain = 0.5 / float(world.slope(np.array([star]))[0])
    eta = 0.1 * star
    at_limit = np.array([limit])
    smooth = dict.fromkeys(("pid_delta_p_ema_alpha", "pid_delta_d_ema_alpha"), 0.5)
    barrier = brentq(lambda x: x * (limit - world.at_optimum(x)[0]) - eta, star + 1e-9, 100.0)
    return {
        "fixed": Rule("fixed.Fixed", {"value": star}, at_limit),
        "one-shot dual": Rule(
            "fixed.Fixed", {"value": star}, at_limit, drawn=lambda seed: {"value": one_shot(world, limit, seed)}
        ),
        "schedule": Rule("scheduled.Scheduled", {"last": star, "share": 0.5}, at_limit),
        "subgradient": Rule("subgradient.ProjectedSubgradient", {"lr": gain}, at_limit),
        "log space": Rule("log_space.LogSpace", {"init": 1.0, "lr": gain / star**2}, at_limit),
        "PID": Rule(
            "pid.PIDLagrangian", {"pid_ki": gain, **dict.fromkeys(("pid_kp", "pid_kd"), gain / 2), **smooth}, at_limit
        ),
        "log barrier": Rule("log_barrier.LogBarrier", {"eta": eta}, world.at_optimum(barrier)),
        "Newton": Rule("newton.DiagonalNewton", {"rate": 0.5}, at_limit),
    }


def one_shot(world: Cost, limit: float, seed: int, prompts: int = PROMPTS, samples: int = ONE_SHOT) -> float:
    """The multiplier that minimises the dual function of drawn prompts and responses of the reference (MoCAN).

    Huang et al. 2024, arXiv:2405.19544, section 4. The minimiser is that of a world of these responses alone.
    """
    random = np.random.default_rng(hash64("one shot", seed))
    row_P1 = random.integers(0, len(world.reward_PK), (prompts, 1))
    share_PK = np.exp(world.reference_PK[row_P1[:, 0]])
    share_PK /= share_PK.sum(-1, keepdims=True)
    cell_PS = np.stack([random.choice(len(share_K), samples, p=share_K) for share_K in share_PK])
    drawn = (world.reward_PK[row_P1, cell_PS], world.cost_PKC[row_P1, cell_PS])
    return float(solve_multiplier(np.full(cell_PS.shape, -np.log(samples)), *drawn, limit, BETA)[0])


def rules_of_units(world: Cost, limit_C: Floats) -> dict[str, Rule]:
    """Rules for several constraints of different units."""
    gain_C = 0.5 / world.slope(world.solve(limit_C))
    one, own = ({"lr": lr, "maximum": 100.0} for lr in (float(gain_C.min()), gain_C.tolist()))
    return {
        "subgradient, one lr": Rule("subgradient.ProjectedSubgradient", one, limit_C),
        "subgradient, an lr each": Rule("subgradient.ProjectedSubgradient", own, limit_C),
        "Newton": Rule("newton.DiagonalNewton", {"rate": 0.5, "maximum": 100.0}, limit_C),
    }


def runs_of(world: Cost, rule: Rule, limit_C: Floats, follows: float, draws: int = DRAWS) -> list[Run]:
    """A run without noise, then ``draws`` runs with noise."""
    noisy = [simulate(world, rule, limit_C, follows, True, seed) for seed in range(draws)]
    return [simulate(world, rule, limit_C, follows), *noisy]


def row(world: Cost, name: str, rule: Rule, limit_C: Floats, follows: float, runs: Sequence[Run]) -> Row:
    """The row of a controller from ``runs_of``; with several constraints the worst of them, in units of the first."""
    scale_C = np.array(world.scales)
    exact, *noisy = runs
    late_DEC = np.array([run.cost[-LATE:] for run in noisy]) / scale_C
    distance_E = np.abs((exact.cost - rule.target) / scale_C).max(-1)
    plain = float(np.abs((world.at_optimum(0.0) - rule.target) / scale_C).max())
    violation_E = ((exact.cost - limit_C) / scale_C).max(-1)
    kept = np.flatnonzero(violation_E <= KEPT)
    return Row(
        name,
        follows,
        float(rule.target[0]),
        float(distance_E[-1]),
        settles(distance_E, SETTLED * plain),
        float(violation_E[kept[0] :].max(initial=0.0)) if len(kept) else float("nan"),
        int((violation_E > KEPT).sum()),
        float(np.sqrt(late_DEC.var((0, 1)).max())),
        float(np.quantile((late_DEC - limit_C / scale_C).max(-1), 0.95)),
    )


def settles(distance_E: Floats, near: float) -> int | None:
    """The first epoch (from 1) from which on the distance stays within ``near``; None if it does not."""
    far = np.flatnonzero(distance_E > near)
    last = int(far[-1]) + 1 if len(far) else 0
    return last + 1 if last < len(distance_E) else None


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    heads = [
        "controller", "policy follows", "target cost", "distance at the end", "epochs to settle", "later violation",
        "epochs over the limit", "spread under noise", "violation under noise",
    ]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for r in rows:
        cells = [
            r.name, f"{100 * r.follows:.0f} %", f"{r.target:.3f}", f"{r.distance:.4f}",
            "-" if r.settles is None else str(r.settles), "-" if r.relapse != r.relapse else f"{r.relapse:.3f}",
            str(r.over), f"{r.spread:.3f}", f"{r.worst:+.3f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def with_tables(page: str, tables: Mapping[str, str]) -> str:
    """The page with each table between ``<!-- name -->`` and ``<!-- end -->``.

    Raises:
        ValueError: If the page has no place for a table.
    """
    for name, text in tables.items():
        before, start, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not start or not end:
            raise ValueError(f"the page has no '<!-- {name} -->' with '<!-- end -->' after it")
        page = f"{before}{start}\n{text}\n{end}{after}"
    return page


def three_units(draws: int = DRAWS) -> list[Row]:
    """Rules for three costs in units of 1, 1/10 and 1/100, with limits that bind alike."""
    world = Cost("each", SCALES)
    limit_C = world.at_optimum(1.0 / np.array(SCALES))
    return [
        row(world, name, rule, limit_C, follows, runs_of(world, rule, limit_C, follows, draws))
        for name, rule in rules_of_units(world, limit_C).items()
        for follows in FOLLOWS
    ]


def _controller(path: str, settings: Mapping[str, Any]) -> Any:
    module, _, name = f"{RULES}.{path}".rpartition(".")
    build: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return build(**settings)


def main(arguments: Sequence[str]) -> None:
    """Write the figure and the tables into the folder that is named."""
    folder = Path(arguments[0])
    page = folder / "controllers.md"
    world, limit_C = Cost(), np.array([LIMIT])
    every = rules(world, LIMIT)
    runs = {
        name: {follows: runs_of(world, rule, limit_C, follows) for follows in FOLLOWS} for name, rule in every.items()
    }
    rows = [
        row(world, name, every[name], limit_C, follows, own)
        for name, shares in runs.items()
        for follows, own in shares.items()
    ]
    tables = {"one constraint": table(rows), "three units": table(three_units())}
    page.write_text(with_tables(page.read_text(encoding="utf-8"), tables), encoding="utf-8")
    plot_controllers(runs, LIMIT, float(world.solve(LIMIT)[0]), folder / "controllers.png")


if __name__ == "__main__":
    main(sys.argv[1:])
