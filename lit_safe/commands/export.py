"""Writes a checkpoint as a Hugging Face folder and checks that the folder holds the same policy."""

import logging
import shutil
from pathlib import Path
from typing import Any

from lit_safe.commands.loading import load_checkpoint, make_ready
from lit_safe.errors.message import SettingError
from lit_safe.execution.quiet import quiet
from lit_safe.export.folder_check import compare_folder, first
from lit_safe.export.model_card import model_card
from lit_safe.hashing import hash64
from lit_safe.training.score_model import ScoreModel
from lit_safe.training.stepping import StepModule
from lit_safe.types import PackedSequences

log = logging.getLogger(__name__)


def export(
    module: StepModule,
    data: Any,
    *,
    ckpt_path: str,
    out: str,
    adapter_only: bool = False,
    check_pairs: int = 4,
    device: str = "auto",
) -> int:
    """Write a checkpoint's policy as a Hugging Face folder (safetensors) with a model card, and check its log-probs.

    The folder is first written beside ``out``, then loaded with transformers and compared with the checkpoint on fixed
    texts and held-out pairs. Only after this check is it renamed to ``out``. A failed export leaves no files.

    Args:
        module: From ``--model``, as the checkpoint was trained.
        data: From ``--data``. Gives the chat template, the licences, and held-out pairs for the check.
        ckpt_path: The checkpoint, e.g. ``runs/quickstart/checkpoints/last.ckpt``.
        out: Folder to write. It must not exist, or must be empty.
        adapter_only: Write only the LoRA adapter, instead of merging it into the model.
        check_pairs: Number of held-out pairs to compare on, besides the fixed texts. 0 uses none.
        device: Where to compare: auto (an accelerator if there is one), cpu, cuda, cuda:1 or mps.

    Returns:
        The exit status: 0, or 1 if the exported log-probs differ.

    Raises:
        FileExistsError: If ``out`` is not empty.
        ValueError: If the device does not exist.
    """
    if isinstance(module, ScoreModel):
        raise SettingError("export writes policies; a score model is written by fit, as <run folder>/score_model")
    folder = Path(out)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{out} exists and is not empty: name another folder, or delete it first")
    make_ready(module, data, device)  # the data too, before anything is written
    held_out = _held_out(data, 2 * check_pairs) if check_pairs else None
    checkpoint = load_checkpoint(module, ckpt_path)
    draft = folder.absolute().parent / f".{folder.name}.unfinished"
    shutil.rmtree(draft, ignore_errors=True)  # left by an export that was killed
    try:
        module.pair.save_pretrained(str(draft), adapter_only=adapter_only)
        card = model_card(module, data, checkpoint, Path(ckpt_path).absolute().parent.parent)
        (draft / "README.md").write_text(card, encoding="utf-8")
        # in evaluation mode: an adapter's dropout would make the checkpoint's log-probs random
        with quiet(module, hash64("export")):
            found = compare_folder(module.pair, draft, held_out)
        seen = f"log-probs differ from the checkpoint by up to {found.gap:.1e} nats per token (bound {found.bound:.1e})"
        if not found.same:
            log.error("%s is not written: %s. Please report this with the model's name.", folder, seen)
            return 1
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    log.info("wrote %s (optimizer step %d of %s): %s", folder, checkpoint["global_step"], ckpt_path, seen)
    return 0


def _held_out(data: Any, count: int) -> PackedSequences | None:
    try:
        return first(next(iter(data.val_dataloader())).sequences, count)
    except ValueError as fault:  # small data may have no held-out pairs
        log.info("compared only on fixed texts: %s", fault)
        return None
