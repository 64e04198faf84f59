"""What a reproduction runs, step by step, and for how long, before it starts.

Every step is one of our commands, and each of them continues after a kill: the oracle study keeps finished runs, and
``stages`` keeps finished stages and continues a broken fit.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from lit_safe.errors.message import SettingError
from lit_safe.installation import find_config
from lit_safe.stages.pipeline import Merge, Stage
from lit_safe.words import duration

ScaleName = Literal["oracle", "135m", "7b"]
ORACLE = "oracle"
"""Folder of the oracle study in the reproduction's folder."""


class Step(NamedTuple):
    """One command.

    Args:
        words: Its words, as after ``lit-safe``.
        what: What it does.
        minutes: How long it takes, estimated.
    """

    words: tuple[str, ...]
    what: str
    minutes: float


class Scale(NamedTuple):
    """A scale at which the papers are run.

    Args:
        what: Model, data and scorers.
        hardware: What it needs, and what the estimates of time rest on.
        minutes: Command → minutes of one stage; of the oracle, of one run.
        pipeline: The pipeline of one seed; None for the oracle.
        limit: The limit on the cost that the plane shows.
        offset: SafeDPO's, of the run ``safe_dpo``.
    """

    what: str
    hardware: str
    minutes: Mapping[str, float]
    pipeline: str | None
    limit: float
    offset: float = 10.0


ORACLE_METHODS = {
    "dpo_helpful": "dpo",
    "dpo_harmless": "dpo_harmless",
    "dpo_safebetter": "dpo_safebetter",
    "dpo_helpful_offset": "dpo_helpful_offset",
    "safe_dpo": "safe_dpo",
    "safe_dpo_0": "safe_dpo_offset_0",
    "c_dpo_1": "c_dpo_1",
    "c_dpo_0_4": "c_dpo_0_4",
}
"""Method → file of ``configs/oracle``."""
ORACLE_STEPS = 24  # in place of 100 a part: orderings show long before the last percent of regret
ORACLE_ANCHOR = "reference_support"  # without one the policies write malformed text, and no ordering shows

SCALES: dict[ScaleName, Scale] = {
    "oracle": Scale(
        "the oracle world: 64 prompts whose rewards and costs are known, a Llama of 100,000 weights; figures are exact",
        "two CPU cores and 4 GiB. The time is `make oracle`'s (17 minutes for 8 longer runs), by the number of steps",
        {"run": 1.0, "start": 2.0},
        None,
        -0.15,
        2.0,
    ),
    "135m": Scale(
        "SmolLM2-135M on harmful and harmless requests, answered and refused; asked 240 others, and judged by the "
        "phrases of a refusal",
        "two CPU cores and 8 GiB. The times are those of docs/results.md",
        {"fit": 3.0, "sample": 1.0, "evaluate": 1.5, "merge": 0.2},
        "configs/pipeline/reproduce_135m.yaml",
        0.3,
    ),
    "7b": Scale(
        "7 billion weights, PKU-SafeRLHF-30K and BeaverTails, Beaver's reward and cost models (docs/papers.md)",
        "8 GPUs of 141 GB (full training in fp32 beside a frozen copy: about 120 GB each; MoCAN and PeCAN divide their "
        "weights over the GPUs, because score models lie beside them), 2 TB of disk (18 runs: an export of 28 GB, "
        "a checkpoint of 84 GB), and one GPU to annotate and to evaluate. Times: 8 operations for a weight and token "
        "at 40 % of an H200's bf16 peak, and 1,500 tokens a second for responses. Nobody has run this here",
        {"fit": 60.0, "annotate": 45.0, "evaluate": 25.0, "merge": 5.0},
        "configs/pipeline/reproduce_7b.yaml",
        0.0,
    ),
}


def planned(scale: ScaleName, folder: Path, seeds: Sequence[int], options: Sequence[str] = ()) -> list[Step]:
    """The commands of a reproduction, in order. Nothing is written.

    Args:
        scale: The scale.
        folder: Folder of the reproduction.
        seeds: Seeds of the runs.
        options: Further options of each step of the oracle, for tests and short runs.

    Raises:
        SettingError: If the seeds are none, negative or repeated.
    """
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise SettingError(f"seeds must be distinct numbers >= 0, at least one, got {list(seeds)}")
    one = SCALES[scale]
    if one.pipeline is None:
        return [_oracle(folder, seeds, options)]
    steps = []
    for seed in seeds:
        stages = pipeline(one.pipeline, seed)
        minutes = sum(one.minutes["merge" if stage.merge else stage.command] for stage in stages)
        names = ", ".join(stage.name for stage in stages)
        words = ("stages", "-c", str(pipeline_file(folder, seed)), "--folder", str(folder / f"seed_{seed}"))
        steps.append(Step(words, f"seed {seed}, {len(stages)} stages: {names}", minutes))
    return steps


def pipeline(path: str, seed: int) -> list[Stage]:
    """The stages of a shipped pipeline, every fit with this seed."""
    content = yaml.safe_load(Path(find_config(path)).read_text(encoding="utf-8"))
    return [_stage(entry, seed) for entry in content["stages"]]


def _stage(entry: Mapping[str, Any], seed: int) -> Stage:
    merge = Merge(**entry["merge"]) if "merge" in entry else None
    stage = Stage(**{**entry, "merge": merge})
    if merge is None and stage.command == "fit":
        stage.options["seed_everything"] = seed
    return stage


def pipeline_file(folder: Path, seed: int) -> Path:
    """Where the pipeline of a seed is written before it runs."""
    return folder / f"seed_{seed}.yaml"


def write_pipelines(scale: ScaleName, folder: Path, seeds: Sequence[int]) -> None:
    """Write the pipeline of every seed, so that ``stages`` and its user can read it."""
    path = SCALES[scale].pipeline
    if path is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        content = yaml.safe_load(Path(find_config(path)).read_text(encoding="utf-8"))
        for entry in content["stages"]:
            if "merge" not in entry and entry.get("command", "fit") == "fit":
                entry.setdefault("options", {})["seed_everything"] = seed
        content["folder"] = str(folder / f"seed_{seed}")
        pipeline_file(folder, seed).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _oracle(folder: Path, seeds: Sequence[int], options: Sequence[str]) -> Step:
    words = ["oracle", "--folder", str(folder / ORACLE), "--anchors", ORACLE_ANCHOR]
    words += ["--objectives", *ORACLE_METHODS.values(), "--seeds", *map(str, seeds)]
    words += ["--options", f"--trainer.limit_train_batches={ORACLE_STEPS}"] if not options else list(options)
    runs = len(ORACLE_METHODS) * len(seeds)
    minutes = SCALES["oracle"].minutes
    what = f"{len(ORACLE_METHODS)} methods, seeds {', '.join(map(str, seeds))}: {runs} runs, two at a time"
    return Step(tuple(words), what, minutes["start"] + minutes["run"] * runs / 2)


def plan_lines(scale: ScaleName, steps: Sequence[Step]) -> list[str]:
    """The plan as lines of text."""
    one = SCALES[scale]
    total = sum(step.minutes for step in steps)
    lines = [f"scale {scale}: {one.what}", f"needs {one.hardware}", f"about {duration(60 * total)} in all:"]
    for number, step in enumerate(steps, 1):
        lines += [
            f"  {number}. {step.what} (about {duration(60 * step.minutes)})",
            f"     lit-safe {' '.join(step.words)}",
        ]
    return lines
