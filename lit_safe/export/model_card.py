"""Writes the README (model card) of an export."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import torch
import yaml

from lit_safe.constraint.certificate.contents import CERTIFICATE
from lit_safe.constraint.certificate.page import card_section
from lit_safe.rollouts.texts import policy_digest
from lit_safe.runs.move_aside import CONFIG
from lit_safe.training.stepping import StepModule


def model_card(module: StepModule, data: Any, checkpoint: dict[str, Any], run: Path) -> str:
    """The README of an export: base model, objective, cost limit, data and licences.

    Args:
        module: The module with the exported policy.
        data: The data module, after ``setup``.
        checkpoint: The exported checkpoint.
        run: Folder of the checkpoint's run. Its configuration gives the limit, and its certificate the verdict.
            The folder may be missing.
    """
    facts = module.pair.facts()
    objective = repr(getattr(module, "objective", "supervised fine-tuning"))
    multiplier = checkpoint["state_dict"].get("multiplier")
    licences = "\n".join(f"- {name}: {licence}" for name, licence in data.licences.items())
    counts = data.report["splits"]
    return f"""---
library_name: transformers
base_model: {facts.source}
license: other
tags: [lit_safe, preference-optimization, safety]
---
# A policy aligned with {type(module).__name__}

- base model: {facts.source} ({facts.licence})
- objective: `{objective}`{"" if multiplier is None else f", multiplier {multiplier.tolist()}"}
- cost limit: {"none" if multiplier is None else _limit(run)}
- reference: {facts.reference}
- optimizer steps: {checkpoint["global_step"]}, on {counts["train"]:,} rows; {counts["val"]:,} are held out
- made with lit_safe {_version()}, torch {torch.__version__}

Data and their licences (they may bind this model too):

{licences}

## Certificate

{_certificate(run, policy_digest(facts.source, checkpoint["state_dict"]))}

Evaluate it against your own limit before you rely on it: training against a cost estimate certifies nothing, and a
certificate is about its scorer and its prompts.
"""


def _certificate(run: Path, digest: str) -> str:
    """What the certificate of the run says, if it is one of this policy."""
    try:
        found = json.loads((run / CERTIFICATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "None: `python train.py certify` was not run on this checkpoint."
    return card_section(found, digest)


def _limit(run: Path) -> str:
    """The limit of the run, in cost units, and the rule that moved the multiplier, or why there is none."""
    try:
        config = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
        dual = config["dual"]
        limit, lr, controller = dual["limit"], dual["lr"], dual.get("controller")
        rule = "" if controller is None else controller["class_path"].rpartition(".")[2]
        margin = dual.get("margin", 0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return f"not known: the checkpoint's run has no {CONFIG} beside it"
    if rule == "Fixed" or not (lr or rule):
        return f"none: the multiplier did not move ({'controller Fixed' if rule else '`dual.lr` 0'})"
    if limit is None:
        return "none: `dual.limit` is null"
    steered = f"; the multiplier steered below it (margin {margin})" if margin else ""
    return f"{limit} (in units of the cost){f', by {rule}' if rule else ''}{steered}"


def _version() -> str:
    try:
        return importlib.metadata.version("lit-safe")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
