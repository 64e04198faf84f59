"""What the runs of a reproduction measured: for each method, seed and prompt, from the files that the runs left.

Letters: n responses, S seeds, P prompts, K cells of the oracle world, the last of which is all malformed text.
"""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lit_safe.report.tables import ROLLOUTS
from lit_safe.reproduction.methods import METHODS
from lit_safe.statistics.pooled import Pooled, over_seeds

Floats = npt.NDArray[np.float64]
Cells = dict[tuple[int, int], float]
"""(seed, prompt) → the mean over the responses to this prompt."""

MEASURES = ("reward", "cost", "unsafe", "refused")
ORACLE_RESULT, ORACLE_TABLES = "oracle.json", "oracle.npz"
EVALUATION = "evaluation/responses.parquet"  # of the command ``evaluate``


class Seen(NamedTuple):
    """All that was measured.

    Args:
        cells: Method → measure → cells. Measures: reward, cost, unsafe (share), refused (share of harmless prompts).
        spread: Method → measure → standard deviation over responses, over all seeds.
        seconds: Method → seconds of training of each seed.
        exact: Whether the cells are expectations and not means of samples.
        prompts: Method → digest of the prompts that it was asked, for messages.
    """

    cells: dict[str, dict[str, Cells]]
    spread: dict[str, dict[str, float]]
    seconds: dict[str, list[float]]
    exact: bool = False

    @property
    def methods(self) -> list[str]:
        """The methods that were measured, in the order of ``METHODS``; runs of other names come last."""
        order = list(METHODS)
        return sorted(self.cells, key=lambda name: order.index(name) if name in METHODS else len(order))

    def mean(self, method: str, measure: str) -> Pooled | None:
        """The mean over seeds and prompts. None if it was not measured."""
        cells = self.cells.get(method, {}).get(measure)
        return None if not cells else over_seeds(_table(cells))

    def difference(self, one: str, other: str, measure: str) -> Pooled | None:
        """``one - other``, paired by seed and prompt. None if they share no prompt that both answered in every seed.

        The reference has one set of responses for all seeds in some scales; it is then paired with each seed.
        """
        mine, theirs = (self.cells.get(name, {}).get(measure, {}) for name in (one, other))
        shared = {key: mine[key] - theirs[key] for key in mine if key in theirs}
        return None if not shared else over_seeds(_table(shared))


def _table(cells: Cells) -> Floats:
    """[S, P] of the prompts that every seed has."""
    seeds = sorted({seed for seed, _ in cells})
    prompts = sorted({prompt for _, prompt in cells if all((seed, prompt) in cells for seed in seeds)})
    if not prompts:
        raise ValueError(f"seeds {', '.join(map(str, seeds))} were not evaluated on the same prompts")
    return np.array([[cells[seed, prompt] for prompt in prompts] for seed in seeds])


def read_oracle(folder: Path) -> Seen:
    """The runs of an oracle study, ``<folder>/<objective>+<anchor>/seed_<k>``: exact expectations at every prompt."""
    seen = Seen({}, {}, {}, exact=True)
    for path in sorted(folder.glob(f"*/seed_*/{ORACLE_RESULT}")):
        tables = path.with_name(ORACLE_TABLES)
        if not tables.exists():
            continue
        name, seed = path.parents[1].name.partition("+")[0], int(path.parent.name.rpartition("_")[2])
        with np.load(tables, allow_pickle=False) as stored:
            arrays = {key: np.asarray(stored[key], np.float64) for key in stored.files}
        for method, key in (("sft", "reference_PK"), (name, "policy_PK")):
            for measure, value_P in exact(np.exp(arrays[key]), arrays["reward_PK"], arrays["cost_PKC"]).items():
                cells = seen.cells.setdefault(method, {}).setdefault(measure, {})
                cells |= {(seed, prompt): float(value) for prompt, value in enumerate(value_P)}
        result = json.loads(path.read_text(encoding="utf-8"))
        seen.seconds.setdefault(name, []).append(float(result["seconds"]["training"]))
    return seen


def exact(policy_PK: Floats, reward_PK: Floats, cost_PKC: Floats) -> dict[str, Floats]:
    """[P] expected reward, cost of the worst constraint and unsafe mass under a policy. Probabilities, no logs.

    Reward and cost of malformed text are those of the world's tables.
    """
    unsafe_PK = (cost_PKC > 0).any(-1)
    return {
        "reward": (policy_PK * reward_PK).sum(-1),
        "cost": (policy_PK[..., None] * cost_PKC).sum(1).max(-1),
        "unsafe": (policy_PK * unsafe_PK).sum(-1),
    }


def read_runs(folder: Path) -> Seen:
    """The runs ``<folder>/seed_<k>/<method>``, with what ``BeforeAfter`` and ``evaluate`` left in them.

    Where both measured the same, it is the measurement of ``evaluate``. SFT is the run ``sft`` if it was measured, else
    the policy before the training of ``dpo_helpful``, or of the first run.

    Raises:
        ValueError: If a file is damaged. The message names it.
    """
    seen = Seen({}, {}, {})
    values: dict[str, dict[str, list[float]]] = {}
    places = [place for place in folder.glob("seed_*") if place.is_dir() and place.name.removeprefix("seed_").isdigit()]
    for place in sorted(places, key=_seed):
        for method, seconds in _seconds(place / "stages.json").items():
            seen.seconds.setdefault(method, []).append(seconds)
        runs = [run for run in sorted(place.iterdir()) if (run / ROLLOUTS).exists() or (run / EVALUATION).exists()]
        named = [run for name in ("sft", "dpo_helpful") for run in runs if run.name == name]
        start = next(iter([*named, *runs]), None)
        for run in runs:
            judged = _evaluated(run / EVALUATION) if (run / EVALUATION).exists() else {}
            for method, when, model in ((run.name, "after", "policy"), ("sft", "before", "reference")):
                if method == "sft" and (run != start or (run.name == "sft") != (when == "after")):
                    continue
                own = _rollouts(run / ROLLOUTS, when) if (run / ROLLOUTS).exists() else {}
                _add(seen, values, method, _seed(place), {**own, **judged.get(model, {})})
    for method, measures in values.items():
        seen.spread[method] = {name: float(np.std(found, ddof=1)) for name, found in measures.items() if len(found) > 1}
    return seen


Responses = Mapping[str, list[tuple[int, float]]]
"""Measure → (prompt, value) of each response."""


def _seed(folder: Path) -> int:
    """The seed of a folder ``seed_<k>``."""
    return int(folder.name.removeprefix("seed_"))


def _add(seen: Seen, values: dict[str, dict[str, list[float]]], method: str, seed: int, rows: Responses) -> None:
    for measure, found in rows.items():
        by_prompt: dict[int, list[float]] = {}
        for prompt, value in found:
            by_prompt.setdefault(prompt, []).append(value)
        cells = seen.cells.setdefault(method, {}).setdefault(measure, {})
        cells |= {(seed, prompt): float(np.mean(each)) for prompt, each in by_prompt.items()}
        values.setdefault(method, {}).setdefault(measure, []).extend(value for _, value in found)


def _rollouts(path: Path, when: str) -> Responses:
    """Cost and unsafe share of the responses before or after training, and their reward where one was measured."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [
                {key: row[key] for key in ("prompt_id", f"{when}_cost", f"{when}_reward") if key in row}
                for row in csv.DictReader(file)
            ]
        cost = [(int(row["prompt_id"]), float(row[f"{when}_cost"])) for row in rows]
        reward = [(int(row["prompt_id"]), float(row[f"{when}_reward"])) for row in rows if row.get(f"{when}_reward")]
    except (KeyError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read ({error}): `python train.py report` writes it again") from None
    found = {"cost": cost, "unsafe": [(prompt, float(value > 0)) for prompt, value in cost]}
    return {**found, "reward": reward} if reward else found


def _evaluated(path: Path) -> dict[str, Responses]:
    """The responses that ``evaluate`` judged, by model (policy or reference).

    Unsafe is the verdict of the first harm judge on harmful prompts, refused that on harmless ones.
    """
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path).to_pydict()
    harm = next((name for name in table if name.startswith("unsafe/")), None)
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for i, model in enumerate(table["model"]):
        prompt, harmful = int(table["prompt_id"][i]), bool(table["harmful"][i])
        columns = {"reward": "reward", "cost": harm if harmful else None, "refused": None if harmful else "refusal"}
        for measure, column in columns.items():
            value = table[column][i] if column in table else None
            if value is None:
                continue
            kept = found.setdefault(model, {})
            kept.setdefault(measure, []).append((prompt, float(value > 0) if measure == "refused" else float(value)))
            if measure == "cost":
                kept.setdefault("unsafe", []).append((prompt, float(value > 0)))
    return dict(found)


def _seconds(path: Path) -> dict[str, float]:
    """Seconds of each stage that is done."""
    if not path.exists():
        return {}
    try:
        stages = json.loads(path.read_text(encoding="utf-8"))["stages"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete its folder") from None
    return {name: float(entry.get("seconds", 0.0)) for name, entry in stages.items() if entry.get("model")}
