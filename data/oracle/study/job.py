"""One training of a study: an objective, an anchor and a seed, named by files of ``configs/oracle``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from data.oracle.truth.exact import LIMITED
from data.oracle.truth.optimum import Floats, constrained
from data.oracle.world import oracle_world
from lit_safe.installation import find_config

CONFIGS = Path("configs/oracle")
WORLD = ("hopeless", "seed")  # options of the world that, with ``prompts``, decide its prompts
EXPORT = "export"  # folder of a run with its model, made if a second stage starts from it
FIRST = ("runs", "oracle")  # where a second stage's file finds the first stage's run
MEASURE = "data.oracle.truth.measure.OracleMeasure"


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
        own = [path for path in (self.path, self.anchor_path) if path is not None and not shipped(path).exists()]
        return own if own or self.first is None else self.first.missing

    @property
    def config(self) -> dict[str, Any]:
        """The content of the objective's file."""
        return read_yaml(self.path)

    @property
    def at_optimal_multiplier(self) -> bool:
        """Whether it trains with the exact multiplier that meets the limit, without dual steps."""
        dual, model = self.config.get("dual", {}), self.config["model"]["init_args"]
        moved = dual.get("lr") or dual.get("controller") or model.get("multiplier") == "auto"
        return self.aim.get("optimum") in LIMITED and not moved

    @property
    def first(self) -> Job | None:
        """The job whose policy this one starts from and has for reference; None if that is the study's reference.

        Raises:
            ValueError: If the file names another model than ``runs/oracle/<objective>/seed_0/export``.
        """
        pair = self.config["model"]["init_args"].get("pair")
        if pair is None:
            return None
        path = Path(pair["init_args"]["source"]["init_args"]["name_or_path"])
        if len(path.parts) != 5 or path.parts[:2] != FIRST or path.name != EXPORT:
            raise ValueError(f"{self.path}: a first stage is runs/oracle/<objective>/seed_0/{EXPORT}, not {path}")
        return replace(self, objective=path.parts[2])

    @property
    def aim(self) -> dict[str, Any]:
        """The options of its ``OracleMeasure``."""
        for callback in self.config["trainer"]["callbacks+"]:
            if callback["class_path"] == MEASURE:
                options: dict[str, Any] = callback["init_args"]
                return options
        raise ValueError(f"{self.path} has no {MEASURE}")

    def optimal_multiplier(self, reference_PK: Floats, prompts: int) -> float | list[float]:
        """Nats per cost unit, from the reference's log-probabilities for the world's first ``prompts`` prompts."""
        world = oracle_world(prompts, **{key: self.aim[key] for key in ("costs", *WORLD) if key in self.aim})
        rectify = self.aim["optimum"] == "rectified_at_limit"
        tables = (reference_PK, world.reward_PK, world.cost_PKC)
        multiplier_C, _ = constrained(*tables, limit=self.aim["limit"], beta=self.aim["beta"], rectify=rectify)
        values: list[float] = multiplier_C.tolist()
        return values if len(values) > 1 else values[0]


def read_yaml(path: Path) -> dict[str, Any]:
    """The content of a YAML file that we ship."""
    content: dict[str, Any] = yaml.safe_load(shipped(path).read_text(encoding="utf-8"))
    return content


def shipped(path: Path) -> Path:
    """The file that the command line reads for this path: outside a checkout, the one in the package."""
    return Path(find_config(path.as_posix()))
