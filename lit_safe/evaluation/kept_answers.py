"""Responses to questions, kept in a file as they come. A killed call, or one with more questions, continues there."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lit_safe.execution.progress import Tracker
from lit_safe.execution.quiet import quiet
from lit_safe.execution.ranks import of_first_rank, rank_and_world
from lit_safe.hashing import hash64, uniforms
from lit_safe.rollouts.answers import Answering, Decoding, Job
from lit_safe.rollouts.texts import Drawn, draw_texts
from lit_safe.types import Prompt

log = logging.getLogger(__name__)

CHUNK = 4
"""Batches of each rank between two writes of the file."""


class Draws(NamedTuple):
    """How responses are drawn: all that decides them beside the model and the prompt. Temperature 0 is greedy."""

    seed: int
    max_new_tokens: int
    temperature: float
    stop_ids: tuple[int, ...]
    precision: str


def answer_key(digest: str, prompt: Prompt, number: int, draws: Draws) -> str:
    """A hash of everything that decides a response: weights, prompt, number of the response, decoding."""
    parts = [digest, prompt.prompt_id, list(prompt.ids), number, list(draws)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def kept_answers(
    module: Answering,
    data: Decoding,
    jobs: Sequence[Job],
    draws: Draws,
    *,
    digest: str,
    path: Path,
    batch_size: int,
    reference: bool = False,
    who: str = "policy",
) -> list[Drawn]:
    """A response to each job, equal on every rank. The file holds one line for each response, with its key.

    A response depends only on (seed, prompt, its number) and the model. Two models therefore answer with the same
    random numbers. Greedy responses of a prompt are equal, so ask for one.

    Args:
        module: The module whose pair answers.
        data: Decodes ids.
        jobs: The jobs of all ranks together; the same list on each rank.
        draws: How responses are drawn.
        digest: A hash of the model that answers.
        path: The file. Lines with other keys stay in it.
        batch_size: Number of responses generated at once.
        reference: Whether the reference answers instead of the policy.
        who: The model in words, for messages.
    """
    rank, world = rank_and_world()
    keys = [answer_key(digest, prompt, number, draws) for prompt, number in jobs]
    with quiet(module, hash64("evaluate-pass", draws.seed)) as device:
        known = of_first_rank(_read(path, set(keys)) if rank == 0 else {})
        first = {key: job for key, job in zip(reversed(keys), reversed(jobs), strict=True)}
        todo = [key for key in dict.fromkeys(keys) if key not in known]
        if known:
            log.info("%d of %d responses of the %s are in %s", len(known), len(first), who, path)
        step = CHUNK * batch_size * world
        tracker = Tracker(f"responses of the {who}", len(first), len(known)) if todo and rank == 0 else None
        try:
            for start in range(0, len(todo), step):
                part = todo[start : start + step]
                found = draw_texts(
                    module,
                    data,
                    [first[key] for key in part],
                    lambda prompt, number: uniforms(
                        draws.max_new_tokens, "evaluate", draws.seed, prompt.prompt_id, number
                    ),
                    max_new_tokens=draws.max_new_tokens,
                    temperature=draws.temperature,
                    batch_size=batch_size,
                    device=device,
                    reference=reference,
                    what=f"batch of responses of the {who}",
                )
                known |= dict(zip(part, found, strict=True))
                if rank == 0:
                    _append(path, part, found)
                if tracker is not None:
                    tracker.update(len(known))
        finally:
            if tracker is not None:
                tracker.close()
    return [known[key] for key in keys]


def _read(path: Path, wanted: set[str]) -> dict[str, Drawn]:
    """The responses with these keys. Damaged lines, as the last one after a kill, are taken out of the file."""
    if not path.is_file():
        return {}
    found: dict[str, Drawn] = {}
    whole: list[str] = []
    with path.open(encoding="utf-8", errors="replace") as file:
        lines = list(file)
    for line in lines:
        try:
            row = json.loads(line)
            key, one = row["key"], Drawn(str(row["text"]), bool(row["complete"]), int(row["tokens"]))
        except (ValueError, KeyError, TypeError):
            continue
        if not line.endswith("\n"):
            continue
        whole.append(line)
        if key in wanted:
            found[key] = one
    if len(whole) < len(lines):
        log.warning("%s: %d damaged lines; their responses are drawn again", path, len(lines) - len(whole))
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text("".join(whole), encoding="utf-8")
        os.replace(partial, path)
    return found


def _append(path: Path, keys: Sequence[str], drawn: Sequence[Drawn]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (
        json.dumps({"key": key, **one._asdict()}, ensure_ascii=False) for key, one in zip(keys, drawn, strict=True)
    )
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
