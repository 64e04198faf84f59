"""Draws one response to each prompt of a certificate, keeps them in a file, and scores them.

Letters: n responses, C constraints.
"""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_safe.execution.quiet import quiet
from lit_safe.execution.ranks import merge, of_first_rank, rank_and_world
from lit_safe.hashing import hash64, uniforms
from lit_safe.rollouts.answers import Answering, Decoding
from lit_safe.rollouts.scoring import check_scores, place, score
from lit_safe.rollouts.texts import draw_texts
from lit_safe.types import CostFunction, Prompt

log = logging.getLogger(__name__)

RESPONSES = "certificate_responses.jsonl"
CHUNK = 8
"""Batches of each rank between two writes of the file."""


class Response(NamedTuple):
    """A response. ``complete`` is False if it was cut at the maximum length before its stop token."""

    prompt_id: int
    prompt: str
    text: str
    complete: bool


class Draws(NamedTuple):
    """How responses are drawn: all that decides them beside the policy."""

    seed: int
    max_new_tokens: int
    temperature: float


def responses_key(digest: str, precision: str, prompts: Sequence[Prompt], draws: Draws) -> str:
    """A hash of everything that decides the responses."""
    asked = [[prompt.prompt_id, *prompt.ids] for prompt in prompts]
    return hashlib.sha256(json.dumps([digest, precision, asked, draws]).encode()).hexdigest()[:32]


def choose(prompts: Sequence[Prompt], seed: int, count: int | None) -> list[Prompt]:
    """``count`` prompts, or all, in an order that depends only on the seed and the prompts."""
    order = sorted(prompts, key=lambda p: (hash64("certify-prompt", seed, p.prompt_id), p.prompt_id))
    return order[:count]


def draw_responses(
    module: Answering, data: Decoding, prompts: Sequence[Prompt], draws: Draws, *, path: Path, key: str, batch_size: int
) -> list[Response]:
    """One response to each prompt, equal on every rank. A killed call continues where its file ends.

    Args:
        module: The module whose policy answers.
        data: Decodes ids.
        prompts: The prompts, in the order of the file.
        draws: How responses are drawn.
        path: The file: a line with the key, then one for each response. A file with another key is replaced.
        key: From ``responses_key``.
        batch_size: Number of responses generated at once.
    """
    rank, world = rank_and_world()
    step = CHUNK * batch_size * world
    with quiet(module, hash64("certify-pass", draws.seed)) as device:
        done = of_first_rank(_kept(path, key) if rank == 0 else [])
        if done:
            log.info("%d of %d responses are in %s", len(done), len(prompts), path)
        if rank == 0:
            _write(path, key, done)
        for start in range(len(done), len(prompts), step):
            found = _answer(module, data, prompts[start : start + step], draws, batch_size, device)
            if rank == 0:
                with path.open("a", encoding="utf-8") as file:
                    file.writelines(_line(response) for response in found)
            done = [*done, *found]
    return done


def _answer(
    module: Answering, data: Decoding, prompts: Sequence[Prompt], draws: Draws, batch_size: int, device: torch.device
) -> list[Response]:
    drawn = draw_texts(
        module,
        data,
        [(prompt, 0) for prompt in prompts],
        lambda prompt, number: uniforms(draws.max_new_tokens, "certify", draws.seed, prompt.prompt_id, number),
        max_new_tokens=draws.max_new_tokens,
        temperature=draws.temperature,
        batch_size=batch_size,
        device=device,
        what="batch of responses to certify",
    )
    pairs = zip(prompts, drawn, strict=True)
    return [Response(prompt.prompt_id, prompt.text, one.text, one.complete) for prompt, one in pairs]


def probe(cost: CostFunction, prompt: str, device: torch.device) -> int:
    """Score one text, to find errors before a response is drawn. Returns C, the number of constraints.

    Raises:
        ValueError: If the cost function does not return costs, or they are not finite.
    """
    place(cost, device)
    with quiet(cost, hash64("certify-probe")):
        costs = score(cost, [prompt], ["I cannot say."])
        check_scores(cost, costs, ["a response of the check before the start"])
    return 1 if costs.ndim == 1 else costs.shape[1]


def score_responses(
    cost: CostFunction, responses: Sequence[Response], constraints: int, batch_size: int, device: torch.device
) -> Tensor:
    """[n, C] costs in float64, equal on every rank. The ranks share the work.

    Raises:
        ValueError: If costs are not finite or have another shape than before. The message names the cost function and
            the prompt.
    """
    rank, world = rank_and_world()
    costs = torch.zeros(len(responses), constraints, dtype=torch.float64)
    mine = range(rank, len(responses), world)
    place(cost, device)
    with quiet(cost, hash64("certify-score")):
        for start in range(0, len(mine), batch_size):
            part = list(mine[start : start + batch_size])
            batch = [responses[i] for i in part]
            found = score(cost, [r.prompt for r in batch], [r.text for r in batch]).reshape(len(batch), -1)
            check_scores(cost, found, [f"a response to prompt {r.prompt_id}" for r in batch])
            if found.shape[1] != constraints:
                raise ValueError(f"the cost function gave rows of {found.shape[1]} costs after rows of {constraints}")
            costs[part] = found
        return merge(costs, device)


def _kept(path: Path, key: str) -> list[Response]:
    """The responses of a file with this key. An incomplete last line is left out."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as file:
        lines = [line for line in file if line.endswith("\n")]
    try:
        if not lines or json.loads(lines[0]).get("key") != key:
            return []
        fields: list[dict[str, Any]] = [json.loads(line) for line in lines[1:]]
        return [Response(**{name: row[name] for name in Response._fields}) for row in fields]
    except (ValueError, KeyError, AttributeError) as error:
        log.warning("%s is damaged (%s): all responses are drawn again", path, error)
        return []


def _write(path: Path, key: str, responses: Sequence[Response]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    lines = [json.dumps({"key": key}) + "\n", *map(_line, responses)]
    partial.write_text("".join(lines), encoding="utf-8")
    os.replace(partial, path)


def _line(response: Response) -> str:
    return json.dumps(response._asdict(), ensure_ascii=False) + "\n"
