"""The inputs of a study's commands: their arguments, YAML files, and the files that they read.

A stored result is that of the same command if these inputs are equal; ``provenance`` compares them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.oracle.study import provenance
from data.oracle.study.job import CONFIGS, EXPORT, MEASURE, WORLD, Job, read_yaml
from data.oracle.truth.reference_table import read_reference

SFT = ("-c", "configs/base.yaml", "-c", str(CONFIGS / "sft.yaml"))
PREFERENCE = ("-c", "configs/base.yaml", "-c", str(CONFIGS / "preference.yaml"))
SAMPLES = ("--samples_per_prompt", "512", "--max_new_tokens", "24", "--batch_size", "1024")
REFERENCE_TABLE = "reference.npz"


def samples(study: Path, seed: int) -> Path:
    """The file of the reference's responses from which a seed's pairs are made."""
    return study / f"samples_{seed}.jsonl"


def run_folder(study: Path, job: Job) -> Path:
    """The output folder of a job."""
    return study / job.name / f"seed_{job.seed}"


def exported(study: Path, job: Job) -> Path:
    """The folder with a job's policy, for a second stage that starts from it."""
    return run_folder(study, job) / EXPORT


def of_reference(prompts: int) -> dict[str, Any]:
    """Everything that decides the reference and its samples, except code and machine."""
    configs = {name: read_yaml(Path(name)) for name in SFT if name.endswith(".yaml")}
    return {"prompts": prompts, "words": [*SFT, *SAMPLES], "configs": configs}


def sft_overlay(study: Path, prompts: int) -> dict[str, Any]:
    """The settings of fine-tuning that depend on the study: its folders, its prompts, and the table it writes."""
    config = read_yaml(CONFIGS / "sft.yaml")
    pair, sources = config["model"]["init_args"]["pair"], config["data"]["init_args"]["sources"]
    pair["init_args"]["source"]["init_args"]["tokenizer"] = str(study / "tokenizer")
    options = sources[0]["init_args"]
    options |= {"prompts": prompts}
    world = {key: options[key] for key in ("prompts", *WORLD) if key in options}
    table = {
        "class_path": "data.oracle.truth.reference_table.ReferenceTable",
        "init_args": {"path": str(study / REFERENCE_TABLE), **world},
    }
    return {
        "trainer": {"default_root_dir": str(study / "sft"), "callbacks+": [table]},
        "model": {"init_args": {"pair": pair}},
        "data": {"init_args": {"sources": sources}},
    }


def of_run(study: Path, prompts: int, job: Job) -> dict[str, Any]:
    """Everything that decides a run's result, except code and machine.

    Args:
        study: The folder of the study, with the reference and the samples.
        prompts: Number of the world's prompts.
        job: The run.

    Returns:
        ``words``, the arguments of ``lit-safe``; ``objective`` and ``overlay``, the contents of the two YAML files of
        the run's folder that ``words`` name; ``configs``, the contents of the other files; and ``sha256`` of the
        reference and the samples.
    """
    folder, preference, objective = run_folder(study, job), read_yaml(CONFIGS / "preference.yaml"), job.config
    for callback in objective["trainer"]["callbacks+"]:
        if callback["class_path"] == MEASURE:
            callback["init_args"] |= {"prompts": prompts}
            if "reference" in callback["init_args"]:
                callback["init_args"]["reference"] = str(study / REFERENCE_TABLE)
    source = {**preference, **objective}["data"]["init_args"]["sources"][0]
    drawn = {"responses": str(samples(study, job.seed)), "draw": job.seed, "prompts": prompts}
    overlay: dict[str, Any] = {
        "seed_everything": job.seed,
        "trainer": {"default_root_dir": str(folder)},
        "model": {"init_args": {"reference_cache_dir": str(study / "cache")}},
        "data": {
            "init_args": {
                "sources": [{**source, "init_args": {**source["init_args"], **drawn}}],
                "cache_dir": str(study / "cache"),
                "seed": job.seed,
            }
        },
    }
    if "dual" in objective:
        overlay["dual"] = {"seed": job.seed}  # otherwise all seeds would have the same rollout errors
    pair = preference["model"]["init_args"]["pair"]
    start = study / "reference" if job.first is None else exported(study, job.first)
    pair["init_args"]["source"]["init_args"]["name_or_path"] = str(start)
    overlay["model"]["init_args"]["pair"] = pair
    if job.at_optimal_multiplier:
        reference_PK = read_reference(study / REFERENCE_TABLE)
        overlay["model"]["init_args"]["multiplier"] = job.optimal_multiplier(reference_PK, prompts)
    words = ["fit", *PREFERENCE, "-c", str(folder / "objective.yaml"), "-c", str(folder / "overlay.yaml")]
    read = [Path(word) for word in PREFERENCE if word.endswith(".yaml")]
    if job.anchor_path is not None:
        read.append(job.anchor_path)
        weight = job.anchor.partition("=")[2]
        words += ["--model.anchor", str(job.anchor_path)]
        words += ["--model.anchor.init_args.weight", weight] if weight else []
    files = [*sorted((study / "reference").iterdir()), samples(study, job.seed)]
    if job.first is not None and start.exists():
        files += sorted(start.iterdir())
    return {
        "words": [*words, *job.options],
        "objective": objective,
        "overlay": overlay,
        "configs": {str(path): read_yaml(path) for path in read},
        "sha256": {str(path): provenance.digest(path) for path in files if path.exists()},
    }
