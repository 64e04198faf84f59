"""Responses as texts, equal on every rank, for commands that keep them in a file.

Letters: n jobs.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_safe.rollouts.answers import Answering, Decoding, Draw, Job, Rows, answers


class Drawn(NamedTuple):
    """A response: its text, whether it ended with a stop token, and its number of tokens, the stop token included."""

    text: str
    complete: bool
    tokens: int


def draw_texts(
    module: Answering,
    data: Decoding,
    jobs: Sequence[Job],
    draw: Draw,
    *,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
    device: torch.device,
    reference: bool = False,
    what: str = "batch of responses",
) -> list[Drawn]:
    """A response to each job, equal on every rank. Arguments as in ``lit_safe.rollouts.answers.answers``.

    Args:
        module: The module whose pair answers.
        data: Decodes ids.
        jobs: The jobs of all ranks together; the same list on each rank, not empty.
        draw: Gives the random numbers [max_new_tokens] of each response.
        max_new_tokens: Maximum length of a response in tokens.
        temperature: Divides the logits.
        batch_size: Number of responses generated at once.
        device: Device on which ranks exchange responses.
        reference: Whether the reference answers instead of the policy.
        what: Description for the progress bar.
    """
    rows = Rows(len(jobs))  # [n, 1 + max_new_tokens]: whether it is complete, and ids + 1, padded with 0
    for batch in answers(
        module, data, jobs, draw, batch_size=batch_size, temperature=temperature, reference=reference, what=what
    ):
        table = torch.zeros(len(batch.ids), 1 + max_new_tokens, dtype=torch.int64)
        for row, ids, complete in zip(table, batch.ids, batch.complete, strict=True):
            row[0] = int(complete)
            row[1 : 1 + len(ids)] = torch.tensor(ids, dtype=torch.int64) + 1
        rows.put(batch, table)
    found = []
    for complete, *padded in rows.everywhere(device).tolist():
        ids = [int(i) - 1 for i in padded if i > 0]
        found.append(Drawn(data.decode(ids), bool(complete), len(ids)))
    return found


def policy_digest(source: str, weights: Mapping[str, Any]) -> str:
    """A hash of a policy: of where its model came from, and of the weights that were trained since.

    Args:
        source: From the pair's facts.
        weights: The state that a checkpoint ships, in the dtypes of the file; of a model without a checkpoint, its
            own. Only its tensors count.
    """
    found = hashlib.sha256(source.encode())
    for name in sorted(weights):
        tensor = weights[name]
        if not isinstance(tensor, Tensor):
            continue
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
