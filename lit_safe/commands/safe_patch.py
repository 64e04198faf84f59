"""Patches a model against harm and against over-refusal, by the weights of two fine-tuned copies (SafePatching)."""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from lit_safe.commands.loading import load_checkpoint, make_ready
from lit_safe.commands.sizes import check_sizes
from lit_safe.errors.message import SettingError
from lit_safe.execution.progress import progress
from lit_safe.execution.quiet import quiet
from lit_safe.export.folder_check import compare_folder
from lit_safe.hashing import hash64
from lit_safe.merging.safe_patching import Patch, patched, retained, snip, top
from lit_safe.merging.weights import ModelWeights
from lit_safe.training.stepping import StepModule
from lit_safe.types import SequenceBatch

log = logging.getLogger(__name__)

MODEL = "policy.model."  # prefix of a model's names in those of a pair


def safe_patch(
    module: StepModule,
    data: Any,
    *,
    ascent: str,
    descent: str,
    out: str,
    keep: float = 0.3,
    safety_share: float = 0.03,
    over_safety_share: float = 0.03,
    alpha: float = 1.0,
    beta: float = 1.0,
    rows: int = 128,
    seed: int = 0,
    device: str = "auto",
    trainer: Trainer | None = None,
) -> int:
    """Patch a model against harm and against over-refusal, by two fine-tuned copies of it (SafePatching).

    Both copies are fine-tuned from ``--model`` on harmful responses: one by ascent, which unlearns them, one by
    descent, which unlearns refusing. A random share of each change is kept, and of it what is important for one copy
    and not for the other. The importance of a weight is |weight * dL/dweight| at the copy's weights, with L the NLL of
    the harmful responses. That it is computed at the copies, and tensor by tensor, is our reading: at the model's own
    weights both copies would have the same importances. The defaults are ours, too; nothing here was measured on a
    real model.

    Args:
        module: From ``--model``: the model to patch. All weights that the copies changed must train.
        data: From ``--data``: fine-tuning data of harmful responses; the importances are computed on its train split.
        ascent: Checkpoint or exported folder of the copy trained by ascent
            (``configs/token_objective/clipped_ascent.yaml``).
        descent: Checkpoint or exported folder of the copy trained by descent: plain fine-tuning.
        out: Folder to write. It must not exist, or must be empty.
        keep: Probability of each number of a change to be kept, in (0, 1].
        safety_share: Share of each tensor that counts as important for the first copy, in [0, 1].
        over_safety_share: The same for the second copy.
        alpha: Factor on the first copy's change.
        beta: Factor on the second copy's change.
        rows: Number of harmful responses that the importances are computed on.
        seed: Seed of the numbers that are kept.
        device: Where to compute: auto (an accelerator if there is one), cpu, cuda, cuda:1 or mps.
        trainer: From ``--trainer``. Its precision is used.

    Returns:
        The exit status: 0, or 1 if the folder's log-probs differ from the patched model's.

    Raises:
        FileExistsError: If ``out`` is not empty.
        SettingError: If a probability or share is out of range, or the data are no fine-tuning data.
        ValueError: If a copy does not have the model's weights, or a gradient is not finite.
    """
    check_sizes(rows=rows)
    shares = {"keep": keep, "safety_share": safety_share, "over_safety_share": over_safety_share}
    for name, value in shares.items():
        if not 0 <= value <= 1 or (name == "keep" and not value):
            raise SettingError(f"{name} must lie in {'(0' if name == 'keep' else '[0'}, 1], got {value}")
    folder = Path(out)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{out} exists and is not empty: name another folder, or delete it first")
    make_ready(module, data, device, trainer)
    weights = _trained(module)
    base = {name: weight.detach().cpu().clone() for name, weight in weights.items()}
    patches: dict[str, dict[str, Patch]] = {}
    for kind, path, share in (("safety", ascent, safety_share), ("over-safety", descent, over_safety_share)):
        _load(module, path)
        slope = _gradients(module, data, rows)
        patches[kind] = {}
        for name, weight in weights.items():
            own = weight.detach().cpu()
            change = retained(own.float() - base[name].float(), keep, seed, kind, name)
            patches[kind][name] = Patch(change, top(snip(own.float(), slope.pop(name)), share))
    first, second = patches["safety"], patches["over-safety"]
    changed = 0
    with torch.no_grad():
        for name, weight in weights.items():
            new = patched(base[name], first[name], second[name], alpha, beta)
            changed += int((new != base[name]).sum())
            weight.copy_(new)
    total = sum(one.numel() for one in base.values())
    facts = {"ascent": ascent, "descent": descent, **shares, "alpha": alpha, "beta": beta, "rows": rows, "seed": seed}
    return _write(module, folder, {**facts, "weights": total, "changed": changed})


def _trained(module: StepModule) -> dict[str, Tensor]:
    assert isinstance(module.pair, nn.Module)
    return {name: weight for name, weight in module.pair.named_parameters() if weight.requires_grad}


def _load(module: StepModule, path: str) -> None:
    """Put the weights of a checkpoint or of an exported folder into the policy."""
    if not Path(path).is_dir():
        load_checkpoint(module, path)
        return
    weights = _trained(module)
    with ModelWeights(path) as model, torch.no_grad():
        for name, weight in weights.items():
            own = name.removeprefix(MODEL)
            if own not in model.names:
                raise ValueError(f"{path} has no weight {own}, which trains in --model: name its checkpoint instead")
            if model.shape(own) != list(weight.shape):
                raise ValueError(
                    f"{own} has the shape {model.shape(own)} in {path} and {list(weight.shape)} in --model"
                )
            weight.copy_(model[own])


def _gradients(module: StepModule, data: Any, rows: int) -> dict[str, Tensor]:
    """dL/dweight of every weight that trains, fp32 on the CPU, with L the sum of NLLs of ``rows`` responses in nats.

    The mean in place of the sum would change no order of importances.
    """
    weights = _trained(module)
    for weight in weights.values():
        weight.grad = None
    with _graded(module) as device:
        for batch in progress(_first(data, rows), "importances, batch"):
            moved = move_data_to_device(batch, device)
            loss = (-module.pair.policy_logp(moved.sequences) * moved.present).sum()
            with torch.autocast(device.type, enabled=False):
                loss.backward()
    found = {}
    for name, weight in weights.items():
        slope = torch.zeros_like(weight) if weight.grad is None else weight.grad
        if not bool(slope.isfinite().all()):
            raise ValueError(f"the gradient of {name} on the harmful responses is not finite")
        found[name], weight.grad = slope.float().cpu(), None
    return found


@contextmanager
def _graded(module: StepModule) -> Iterator[torch.device]:
    """A block in evaluation mode and the trainer's precision, with gradients."""
    with quiet(module, hash64("safe-patch")) as device, torch.enable_grad():
        yield device


def _first(data: Any, rows: int) -> list[SequenceBatch]:
    """Micro-batches of the first rows of an epoch, ``rows`` of them or up to one step more."""
    found: list[SequenceBatch] = []
    for step in data.train_dataloader():
        if not isinstance(step[0], SequenceBatch):
            raise SettingError("safe_patch reads fine-tuning data of harmful responses: use data.sft.SftData")
        for batch in step:
            if sum(int(one.present.sum()) for one in found) >= rows:
                return found
            found.append(batch)
    return found


def _write(module: StepModule, folder: Path, facts: dict[str, Any]) -> int:
    """Write the policy with a card, and check that the folder holds it."""
    draft = folder.absolute().parent / f".{folder.name}.unfinished"
    shutil.rmtree(draft, ignore_errors=True)  # left by a command that was killed
    try:
        module.pair.save_pretrained(str(draft))
        (draft / "README.md").write_text(_card(module, facts), encoding="utf-8")
        (draft / "safe_patch.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        with quiet(module, hash64("safe-patch-check")):
            found = compare_folder(module.pair, draft, None)
        if not found.same:
            log.error("%s is not written: its log-probs differ by %.1e nats per token", folder, found.gap)
            return 1
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    share = facts["changed"] / max(1, facts["weights"])
    log.info("wrote %s: %s of %s weights changed (%.2g %%)", folder, facts["changed"], facts["weights"], 100 * share)
    return 0


def _card(module: StepModule, facts: dict[str, Any]) -> str:
    known = module.pair.facts()
    rows = [f"- {name}: {value}" for name, value in facts.items()]
    head = ["---", "library_name: transformers", "license: other", "tags: [lit_safe, safe_patching]", "---"]
    says = f"SafePatching (arXiv:2405.13820, our reading) of {known.source} (licence {known.licence}):"
    return "\n".join([*head, "# A patched model", "", says, "", *rows, "", "It was not evaluated.", ""])
