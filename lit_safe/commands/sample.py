"""Writes a policy's responses to the prompts of a dataset, e.g. to build preference pairs from its own text."""

import json
import logging
import os
from pathlib import Path
from typing import Any, Literal, get_args

from lightning import Trainer
from torch import Tensor

from lit_safe.commands.loading import load_checkpoint, make_ready
from lit_safe.commands.sizes import check_sizes
from lit_safe.execution.quiet import quiet
from lit_safe.hashing import hash64, uniforms
from lit_safe.rollouts.answers import answers
from lit_safe.training.stepping import StepModule
from lit_safe.types import Prompt

log = logging.getLogger(__name__)

Split = Literal["train", "val", "dual", "certify"]


def sample(
    module: StepModule,
    data: Any,
    *,
    out: str,
    split: Split | Literal["all"] = "train",
    ckpt_path: str | None = None,
    samples_per_prompt: int = 8,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "auto",
    trainer: Trainer | None = None,
) -> int:
    """Answer every prompt of a split and write JSONL: ``prompt``, ``response``, ``sample`` (its number), ``complete``.

    Lines of a split are ordered by prompt. Each response depends on (seed, prompt, its number) and the policy, and not
    on the batch size. ``complete`` is false if a response was cut at ``max_new_tokens`` before its stop token.

    Args:
        module: From ``--model``.
        data: From ``--data``. The policy answers its prompts.
        out: The file to write. An older file is replaced only once the new one is complete.
        split: The split whose prompts are answered; ``all`` answers those of the four splits, one split after another.
        ckpt_path: Checkpoint of the policy. With null, the untrained model answers.
        samples_per_prompt: Number of responses to each prompt.
        max_new_tokens: Maximum length of a response in tokens.
        temperature: Divides the logits. At 1, responses are samples from the policy itself.
        batch_size: Number of responses generated at once.
        seed: Seed of the random draws.
        device: Where to run: auto (an accelerator if there is one), cpu, cuda, cuda:1 or mps.
        trainer: From ``--trainer``. Its precision is used.

    Returns:
        The exit status, 0.

    Raises:
        ValueError: If a count is not positive, the split has no prompts, or the device does not exist.
    """
    check_sizes(samples_per_prompt=samples_per_prompt, batch_size=batch_size, max_new_tokens=max_new_tokens)
    make_ready(module, data, device, trainer)
    if ckpt_path is not None:
        load_checkpoint(module, ckpt_path)
    splits = get_args(Split) if split == "all" else (split,)
    prompts: list[Prompt] = [prompt for name in splits for prompt in data.prompts(name)]
    of = "all splits" if split == "all" else f"the {split} split"
    log.info("%d prompts of %s, %d responses each", len(prompts), of, samples_per_prompt)
    jobs = [(prompt, number) for prompt in prompts for number in range(samples_per_prompt)]
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    cut = 0

    def draw(prompt: Prompt, number: int) -> Tensor:
        return uniforms(max_new_tokens, "sample", seed, prompt.prompt_id, number)

    with partial.open("w", encoding="utf-8") as file, quiet(module, hash64("sample-pass", seed)):
        for batch in answers(module, data, jobs, draw, batch_size=batch_size, temperature=temperature, texts=True):
            assert batch.text is not None
            for prompt, text, number, complete in zip(
                batch.prompt, batch.text, batch.number, batch.complete, strict=True
            ):
                cut += not complete
                line = {"prompt": prompt.text, "response": text, "sample": number, "complete": complete}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    os.replace(partial, path)
    log.info("wrote %d responses to %s; %d of them were cut at %d tokens", len(jobs), path, cut, max_new_tokens)
    return 0
