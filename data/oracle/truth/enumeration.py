"""Exact log-probabilities of every well-formed response, and of one cell for all other text.

Letters: P prompts, R well-formed responses, K = R + 1 cells (the last is malformed text), N sequences of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from data.oracle.world import World
from data.render import Renderer
from data.schema import Message
from lit_safe.protocols.pair import PairModel
from lit_safe.sequences import pack_sequences
from lit_safe.types import PackedSequences

Floats = npt.NDArray[np.float64]
Which = Literal["policy", "reference"]

FLOOR = 1e-6  # smallest malformed mass: 1 - sum is exact to about the fp32 rounding of the summed log-probs
SLACK = 1e-3  # a sum may exceed 1 by this much; more is not explained by rounding


@runtime_checkable
class Tabulating(Protocol):
    """A pair that scores every response to every prompt at once and computes common prefixes only once."""

    def table_logp(
        self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], which: str, rows: int
    ) -> torch.Tensor:
        """[P, R] float64: the results of ``policy_logp`` or ``reference_logp`` (``which``), ``rows`` at a time."""


def enumerate_policy(
    pair: PairModel,
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    which: Which = "policy",
    batch: int = 512,
) -> Floats:
    """[P, K] log-probabilities in nats over the R given responses and, last, everything else; each row sums to 1.

    A response's probability is that of its token ids: the same text in other tokens counts as malformed. The malformed
    mass is 1 minus the sum of the others, and at least ``FLOOR``, because smaller values are below the rounding errors
    of fp32 log-probs. The other probabilities are scaled accordingly.

    Args:
        pair: Scores sequences, without gradient and in evaluation mode. Its state is restored afterwards.
        prompt_ids: P prompts as rendered, none empty.
        response_ids: R responses, each ending with its stop token, so that none is a prefix of another.
        which: Policy or reference.
        batch: Sequences at a time.

    Raises:
        ValueError: If two responses have the same ids, one is a prefix of another, or a row's sum exceeds 1 beyond
            rounding.
    """
    _check_prefix_free(response_ids)
    if isinstance(pair, Tabulating):
        with unnoticed(pair):
            return with_malformed(pair.table_logp(prompt_ids, response_ids, which, batch).numpy())
    score = pair.policy_logp if which == "policy" else pair.reference_logp
    length_PR = np.add.outer([len(ids) for ids in prompt_ids], [len(ids) for ids in response_ids])
    order = np.argsort(length_PR, axis=None, kind="stable")
    logp_PR = np.empty(length_PR.size)
    with unnoticed(pair) as device:
        for start in range(0, len(order), batch):
            cells = order[start : start + batch]
            p, r = np.divmod(cells, len(response_ids))
            sequences = pack_sequences([prompt_ids[i] for i in p], [response_ids[i] for i in r])
            logp_PR[cells] = score(PackedSequences(*(t.to(device) for t in sequences[:4]))).double().cpu().numpy()
    return with_malformed(logp_PR.reshape(length_PR.shape))


def with_malformed(logp_PR: Floats) -> Floats:
    """[P, K]: the log-probabilities [P, R], with the log of the remaining mass, at least ``FLOOR``, as the last column.

    Raises:
        ValueError: If a row's probabilities are not finite, or sum to more than 1 beyond rounding.
    """
    mass_P = np.exp(logp_PR).sum(-1)
    if not (mass_P <= 1 + SLACK).all():
        worst = int(np.argmax(np.where(np.isnan(mass_P), np.inf, mass_P)))
        raise ValueError(f"prompt {worst}: the probabilities of its well-formed responses sum to {mass_P[worst]}")
    malformed_P = np.maximum(1 - mass_P, FLOOR)
    logp_PK = np.concatenate([logp_PR, np.log(malformed_P)[:, None]], axis=-1)
    normaliser_P1 = np.logaddexp.reduce(logp_PK, axis=-1, keepdims=True)  # 0 if nothing was clipped
    return np.asarray(logp_PK - normaliser_P1, np.float64)


@contextmanager
def unnoticed(pair: PairModel) -> Iterator[torch.device]:
    """No gradient and evaluation mode, without random draws. The training flag of every module is restored.

    Yields:
        Device of the policy.
    """
    assert isinstance(pair, nn.Module)
    training = {part: part.training for part in pair.modules()}
    pair.eval()
    try:
        with torch.no_grad():
            yield next(pair.parameters()).device
    finally:
        for part, flag in training.items():
            part.training = flag


def world_ids(world: World, data: Any) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of every prompt and response of the world, as ``data`` renders them.

    Args:
        world: The texts.
        data: The run's data module, set up. Its rows show whether a prompt is plain text or a user's turn.

    Raises:
        ValueError: If ``data`` contains none of the world's prompts, its tokenizer does not reproduce a response, or a
            response's ids depend on the prompt.
    """
    renderer = Renderer(data.tokenizer)
    table = data.tokenised.prompts
    known = {text: table.ids.at(i).tolist() for i, text in enumerate(table.text) if text in set(world.prompts)}
    if not known:
        raise ValueError("the data contain no prompt of this world: give data and oracle the same options")
    text, ids = next(iter(known.items()))
    plain = renderer.prompt("oracle", text) == ids
    rendered: list[str | tuple[Message, ...]] = [t if plain else (Message("user", t),) for t in world.prompts]
    prompt_ids = [renderer.prompt("oracle", prompt) for prompt in rendered]
    first, last = (
        [renderer.response("oracle", "response", rendered[at], prompt_ids[at], text) for text in world.responses]
        for at in (0, -1)
    )
    if first != last:
        raise ValueError("a response's token ids depend on the prompt: give the world a word-level tokenizer")
    for ids, text in zip(first, world.responses, strict=True):
        if data.decode(ids).strip() != text:
            raise ValueError(f"the tokenizer decodes the response {text!r} as {data.decode(ids)!r}")
    return prompt_ids, first


def _check_prefix_free(response_ids: Sequence[Sequence[int]]) -> None:
    ordered = sorted(tuple(ids) for ids in response_ids)
    for one, following in pairwise(ordered):
        if following[: len(one)] == one:  # in sorted order, a sequence's extensions follow it directly
            raise ValueError(
                f"the response ids {list(one)} are a prefix of {list(following)}: end each with a stop token"
            )
