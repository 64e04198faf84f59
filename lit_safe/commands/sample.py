"""Write responses of a policy to the prompts of a dataset: what pairs and estimates on its own text are made of."""

import json
import logging
import os
from pathlib import Path
from typing import Any, Literal

import torch

from lit_safe.hashing import hash64, uniforms
from lit_safe.progress import progress
from lit_safe.quiet import quiet
from lit_safe.stepping import StepModule
from lit_safe.types import Prompt

log = logging.getLogger(__name__)


def sample(
    module: StepModule,
    data: Any,
    *,
    out: str,
    split: Literal["train", "val", "dual", "certify"] = "train",
    ckpt_path: str | None = None,
    samples_per_prompt: int = 8,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    batch_size: int = 32,
    seed: int = 0,
) -> int:
    """Answer every prompt of a split and write JSONL: ``prompt``, ``response``, ``sample`` (its number), ``complete``.

    Lines come prompt by prompt. A response is a function of (seed, prompt, its number) and the policy, whatever the
    batch size. ``complete`` is false where a response was cut at ``max_new_tokens`` before its stop token.

    Args:
        module: From ``--model``.
        data: From ``--data``: its prompts are answered.
        out: The file to write; it replaces an older one only when it is complete.
        split: Which prompts.
        ckpt_path: Policy to load; null answers with the model as its source gives it.
        samples_per_prompt: Responses to each prompt.
        max_new_tokens: Longest response.
        temperature: Divides the logits; at 1 these are samples of the policy itself.
        batch_size: Responses generated at once.
        seed: Of the responses.

    Returns:
        The exit status, 0.

    Raises:
        ValueError: If a count is not positive, or the split has no prompts.
    """
    if samples_per_prompt < 1 or batch_size < 1:
        raise ValueError(f"samples_per_prompt and batch_size must be >= 1, got {samples_per_prompt} and {batch_size}")
    module.configure_model()
    if ckpt_path is not None:
        module.load_state_dict(torch.load(ckpt_path, map_location="cpu", weights_only=True)["state_dict"])
    data.setup("validate")
    module.take_stop_tokens(data)
    prompts: list[Prompt] = data.prompts(split)
    log.info("%d prompts of the %s split, %d responses each", len(prompts), split, samples_per_prompt)
    jobs = [(prompt, number) for prompt in prompts for number in range(samples_per_prompt)]
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    cut, stops = 0, module.pair.stop_tokens()
    with partial.open("w", encoding="utf-8") as file, quiet(module, hash64("sample-pass", seed)):
        for start in progress(range(0, len(jobs), batch_size), "batch of responses"):
            batch = jobs[start : start + batch_size]
            uniform = torch.stack(
                [uniforms(max_new_tokens, "sample", seed, prompt.prompt_id, number) for prompt, number in batch]
            )
            responses = module.pair.generate([prompt.ids for prompt, _ in batch], uniform, temperature)
            for (prompt, number), ids in zip(batch, responses, strict=True):
                complete = ids[-1] in stops
                cut += not complete
                line = {"prompt": prompt.text, "response": data.decode(ids), "sample": number, "complete": complete}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    os.replace(partial, path)
    log.info("wrote %d responses to %s; %d of them were cut at %d tokens", len(jobs), path, cut, max_new_tokens)
    return 0
