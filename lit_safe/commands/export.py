"""Write a checkpoint as a Hugging Face folder, and prove that it is the same policy.

Letters: N sequences, S padded length, V vocabulary.
"""

import importlib.metadata
import itertools
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_safe.stepping import StepModule
from lit_safe.types import IGNORE, PackedSequences

log = logging.getLogger(__name__)

TOLERANCE = 2e-2  # nats over a whole response: what merging an adapter may round; unmerged weights are equal to 1e-4


def export(
    module: StepModule,
    data: Any,
    *,
    ckpt_path: str,
    out: str,
    adapter_only: bool = False,
    check_pairs: int = 4,
) -> int:
    """Write a checkpoint's policy as a Hugging Face folder (safetensors) with a model card, and check its log-probs.

    Args:
        module: From ``--model``, as the checkpoint was trained.
        data: From ``--data``: its held-out pairs check the export, its licences stand in the card.
        ckpt_path: The checkpoint, e.g. ``runs/quickstart/checkpoints/last.ckpt``.
        out: Folder to write; one that exists and is not empty is refused.
        adapter_only: Write the LoRA adapter alone instead of merging it.
        check_pairs: Held-out pairs whose log-probs must agree with the checkpoint's; 0 skips the check.

    Returns:
        The exit status: 0, or 1 if the exported log-probs differ.

    Raises:
        FileExistsError: If ``out`` is not empty.
    """
    folder = Path(out)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{out} exists and is not empty")
    data.setup("validate")  # first: a fault of the data leaves no folder, and the data may set the chat template
    module.take_stop_tokens(data)
    module.configure_model()
    module.eval()  # an adapter's dropout would score the checkpoint's log-probs at random
    checkpoint = torch.load(ckpt_path, map_location="cpu", weights_only=True)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    module.pair.save_pretrained(str(folder), adapter_only=adapter_only)
    (folder / "README.md").write_text(model_card(module, data, checkpoint), encoding="utf-8")
    log.info("wrote %s (optimizer step %d of %s)", folder, checkpoint["global_step"], ckpt_path)
    if adapter_only or not check_pairs:
        log.info("log-probs not compared%s", ": an adapter alone has none" if adapter_only else "")
        return 0
    sequences = next(iter(data.val_dataloader())).sequences
    sequences = _first(sequences, 2 * check_pairs)
    with torch.no_grad():
        ours = module.pair.policy_logp(sequences).float()
    gap = float((ours - plain_logp(str(folder), sequences)).abs().max())
    log.info("log-probs of %d held-out responses differ from the checkpoint's by %.1e nats", len(ours), gap)
    return int(not gap <= TOLERANCE)


def plain_logp(folder: str, sequences: PackedSequences) -> Tensor:
    """[N] summed response log-probs in nats of the model in ``folder``: transformers' own logits, one at a time."""
    from transformers import AutoModelForCausalLM  # seconds to import: only the export needs it here

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
    sums = []
    for start, end in itertools.pairwise(sequences.cu_seqlens.tolist()):
        with torch.no_grad():
            logits_SV = model(input_ids=sequences.input_ids[start:end][None]).logits[0].float()
        target_S = sequences.target[start:end]
        scored_S = target_S != IGNORE
        logp_SV = logits_SV[scored_S].log_softmax(-1)
        sums.append(logp_SV.gather(-1, target_S[scored_S][:, None]).sum())
    return torch.stack(sums)


def model_card(module: StepModule, data: Any, checkpoint: dict[str, Any]) -> str:
    """The README of an export: what it is, from what, on which data, under which licences."""
    facts = module.pair.facts()
    objective = repr(getattr(module, "objective", "supervised fine-tuning"))
    multiplier = checkpoint["state_dict"].get("multiplier")
    licences = "\n".join(f"- {name}: {licence}" for name, licence in data.licences.items())
    return f"""---
library_name: transformers
base_model: {facts.source}
license: other
tags: [lit_safe, preference-optimization, safety]
---
# A policy aligned with {type(module).__name__}

- base model: {facts.source} ({facts.licence})
- objective: `{objective}`{"" if multiplier is None else f", multiplier {multiplier.tolist()}"}
- reference: {facts.reference}
- optimizer steps: {checkpoint["global_step"]}
- made with lit_safe {_version()}, torch {torch.__version__}

Data and their licences (they may bind this model too):

{licences}

Evaluate it against your own limit before you rely on it: training against a cost estimate certifies nothing.
"""


def _version() -> str:
    try:
        return importlib.metadata.version("lit-safe")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _first(sequences: PackedSequences, count: int) -> PackedSequences:
    bounds = sequences.cu_seqlens[: count + 1]
    end = int(bounds[-1])
    ids, target, position = (tensor[:end] for tensor in sequences[:3])
    return PackedSequences(ids, target, position, bounds)
