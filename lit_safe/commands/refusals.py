"""Measures over-refusal: how often a policy refuses harmless prompts, before and after training."""

import csv
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Trainer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lit_safe.commands.loading import load_checkpoint, make_ready
from lit_safe.commands.sizes import check_sizes
from lit_safe.evaluation.held_out import Columns
from lit_safe.evaluation.responses import roll_out
from lit_safe.execution.quiet import quiet
from lit_safe.hashing import hash64
from lit_safe.report.tables import estimate_to_json
from lit_safe.rollouts.scoring import name_of
from lit_safe.statistics.clustered import Estimate, clustered_mean, paired_difference
from lit_safe.training.stepping import StepModule
from lit_safe.types import CostFunction

log = logging.getLogger(__name__)


def refusals(
    module: StepModule,
    data: Any,
    *,
    judge: CostFunction,
    prompts: str,
    ckpt_path: str,
    out: str,
    keep: dict[str, str] | None = None,
    samples_per_prompt: int = 1,
    max_new_tokens: int = 48,
    batch_size: int = 16,
    seed: int = 0,
    device: str = "auto",
    trainer: Trainer | None = None,
) -> int:
    """Compare how often the untrained and the trained policy refuse the prompts of a file (XSTest's over-refusal).

    Both policies answer every prompt of the file that has the values of ``keep``; XSTest's rates cover all 250 safe
    prompts. If some of these prompts are in the train split of ``--data``, the shares over the other prompts are also
    reported. Both policies use the same random numbers. The difference is paired by response and clustered by prompt.

    Args:
        module: From ``--model``, as the checkpoint was trained.
        data: From ``--data``, as the checkpoint was trained.
        judge: Scores a response, e.g. ``configs/scorer/refusal.yaml``. A score > 0 is a refusal.
        prompts: CSV file with a column ``prompt``, e.g. XSTest's.
        ckpt_path: Checkpoint of the trained policy.
        out: JSON file to write.
        keep: Column → value. Only prompts with these values are used. The default is ``{label: safe}``.
        samples_per_prompt: Number of responses to each prompt.
        max_new_tokens: Maximum length of a response in tokens.
        batch_size: Number of responses generated at once.
        seed: Seed of the random draws.
        device: Where to run: auto (an accelerator if there is one), cpu, cuda, cuda:1 or mps.
        trainer: From ``--trainer``. Its precision is used.

    Returns:
        The exit status, 0.

    Raises:
        ValueError: If a size is below 1, the file lacks a column or a cell, none of its prompts has the values of
            ``keep``, or the device does not exist.
    """
    check_sizes(samples_per_prompt=samples_per_prompt, batch_size=batch_size, max_new_tokens=max_new_tokens)
    texts = _asked(Path(prompts), keep or {"label": "safe"})
    make_ready(module, data, device, trainer)
    chosen = [data.ask(text) for text in texts]
    known = [prompt.prompt_id for prompt, seen in zip(chosen, data.trained_on(texts), strict=True) if seen]
    log.info("%d prompts of %s, %d of them trained on", len(chosen), prompts, len(known))
    jobs = [(prompt, sample) for prompt in chosen for sample in range(samples_per_prompt)]

    def answer() -> Columns:
        with quiet(module, hash64("refusals", seed), judge):
            return roll_out(module, data, judge, jobs, max_new_tokens, batch_size, seed)[0]

    before = answer()
    checkpoint = load_checkpoint(module, ckpt_path)
    after = answer()
    found = compare_refusals(before, after)
    unseen = ~np.isin(before["prompt_id"], known)
    if known and unseen.any():
        parts = ({name: column[unseen] for name, column in table.items()} for table in (before, after))
        found |= {f"{name}, not trained on": estimate for name, estimate in compare_refusals(*parts).items()}
    table = Table("share of refusals", "mean [95 % interval]", "", "prompts", title=f"{prompts} ({ckpt_path})")
    for name, estimate in found.items():
        verdict = estimate.verdict if name.startswith("difference") else ""
        table.add_row(name, Text(str(estimate)), verdict, str(estimate.clusters))
    Console(width=120).print(table)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "judge": name_of(judge),
        "prompts": prompts,
        "keep": keep or {"label": "safe"},
        "checkpoint": ckpt_path,
        "samples_per_prompt": samples_per_prompt,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    measured = {name: estimate_to_json(estimate) for name, estimate in found.items()}
    Path(out).write_text(
        json.dumps({**facts, "step": checkpoint["global_step"], **measured}, indent=2, allow_nan=False) + "\n",
        encoding="utf-8",
    )
    log.info("results in %s", out)
    return 0


def compare_refusals(before: Columns, after: Columns) -> dict[str, Estimate]:
    """Shares of refusals before and after training, and their difference, paired by response, clustered by prompt."""
    was, now = ((table["cost"] > 0).astype(np.float64) for table in (before, after))
    prompt = before["prompt_id"]
    return {
        "before": clustered_mean(was, prompt, share=True),
        "after": clustered_mean(now, prompt, share=True),
        "difference": paired_difference(now, was, prompt, share=True),
    }


def _asked(path: Path, keep: Mapping[str, str]) -> list[str]:
    """The file's distinct prompts with the values of ``keep``, in order."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    missing = {"prompt", *keep} - set(rows[0] if rows else ())
    if missing:
        raise ValueError(f"{path} has no column {sorted(missing)}")
    short = next((k for k, row in enumerate(rows, 1) if any(row[column] is None for column in ("prompt", *keep))), None)
    if short is not None:
        raise ValueError(f"{path.name}:{short}: has fewer cells than the header has names")
    kept = [row["prompt"].strip() for row in rows if all(row[column] == value for column, value in keep.items())]
    if not kept:
        raise ValueError(f"none of the {len(rows)} prompts of {path} has {dict(keep)}")
    return list(dict.fromkeys(kept))
