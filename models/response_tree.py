"""Log-probs of many responses to the same prompts, where what responses begin with alike is computed once.

Letters: P prompts, R responses, G prompts at a time, n branches of a level, N = G * n rows, S longest segment, W width
of what is cached, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import NamedTuple

import torch
import transformers
from torch import Tensor

from models.backbone import Backbone


class Branch(NamedTuple):
    """Tokens that no response leaves half way: after ``parent`` (of the level before), up to where responses part."""

    parent: int
    segment: tuple[int, ...]
    response: int | None  # the one that ends here, None where several go on


def response_tree(responses: Sequence[Sequence[int]]) -> list[list[Branch]]:
    """Levels of branches; every response ends in one, and those that go on are numbered within their level.

    Raises:
        ValueError: If a response is empty, or is the beginning of another.
    """
    levels: list[list[Branch]] = []
    open_groups = [[(number, tuple(ids)) for number, ids in enumerate(responses)]]
    while open_groups:
        level: list[Branch] = []
        following = []
        for parent, group in enumerate(open_groups):
            children: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
            for number, rest in group:
                if not rest:
                    raise ValueError(
                        f"response {number} is empty, or the beginning of another: end it with a stop token"
                    )
                children.setdefault(rest[0], []).append((number, rest))
            for members in children.values():
                segment = _shared([rest for _, rest in members])
                level.append(Branch(parent, segment, members[0][0] if len(members) == 1 else None))
                if len(members) > 1:
                    following.append([(number, rest[len(segment) :]) for number, rest in members])
        levels.append(level)
        open_groups = following
    return levels


def _shared(lists: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """What all of ``lists`` begin with: what the first and the last in order share."""
    first, last = min(lists), max(lists)
    parts = (size for size, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return first[: next(parts, min(len(first), len(last)))]


@torch.no_grad()
def tree_logp(
    backbone: Backbone, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], rows: int = 512
) -> Tensor:
    """[P, R] float64 sums of fp32 log-probs: of every response after every prompt.

    What ``Backbone.forward`` gives for each prompt with each response, to rounding, from far fewer tokens.

    Args:
        backbone: In evaluation mode.
        prompts: Token ids, none empty.
        responses: Token ids, none empty, none the beginning of another.
        rows: About so many responses at a time, one prompt's at least.

    Raises:
        ValueError: If a prompt or response is empty, or a response is the beginning of another.
    """
    if not all(map(len, prompts)):
        raise ValueError("a prompt has no tokens")
    levels = response_tree(responses)
    logp_PR = torch.empty(len(prompts), len(responses), dtype=torch.float64)
    order = sorted(range(len(prompts)), key=lambda p: len(prompts[p]))  # of like length, so that little is padded
    together = max(1, rows // max(1, len(responses)))
    for start in range(0, len(order), together):
        chosen = order[start : start + together]
        logp_PR[chosen] = _walk(backbone, [prompts[p] for p in chosen], levels, len(responses)).cpu()
    return logp_PR


def _walk(backbone: Backbone, prompts: list[Sequence[int]], levels: list[list[Branch]], responses: int) -> Tensor:
    """[G, R]: from the prompts on, a level at a time."""
    device, g = backbone.device, len(prompts)
    ids_NS, valid_NS = _padded(prompts, device)
    cache = transformers.DynamicCache()
    seen_NW = valid_NS
    hidden_NSD = _forward(backbone, cache, ids_NS, valid_NS, seen_NW)
    # what each open branch's last token says of the next one, and the log-prob of everything up to there; whole
    # distributions, because every branch that goes on from there reads its own token
    next_NV = backbone.log_softmax(_last(hidden_NSD, valid_NS))
    logp_N = torch.zeros(g, dtype=torch.float64, device=device)
    found_GR = torch.empty(g, responses, dtype=torch.float64, device=device)
    open_GN = torch.arange(g, device=device)[:, None]  # the rows of open branches
    for level in levels:
        n = len(level)
        parent_n = torch.tensor([branch.parent for branch in level], device=device)
        parent_N = open_GN[:, parent_n].reshape(-1)
        ids_NS, valid_NS = (part.repeat(g, 1) for part in _padded([branch.segment for branch in level], device))
        open_N = (torch.arange(g, device=device)[:, None] * open_GN.shape[1] + parent_n).reshape(-1)
        logp_N = logp_N[parent_N] + next_NV[open_N, ids_NS[:, 0]].double()
        # nothing is asked of the token that ends a response
        fed_NS = _padded([b.segment if b.response is None else b.segment[:-1] for b in level], device)[1].repeat(g, 1)
        if fed_NS.shape[1]:
            cache.batch_select_indices(parent_N)
            seen_NW = torch.cat([seen_NW[parent_N], fed_NS], dim=1)
            hidden_NSD = _forward(backbone, cache, ids_NS[:, : fed_NS.shape[1]], fed_NS, seen_NW)
        inner_NS = valid_NS[:, 1:].bool()
        if inner_NS.any():
            rest_T = backbone.token_logp(hidden_NSD[:, : inner_NS.shape[1]][inner_NS], ids_NS[:, 1:][inner_NS])
            logp_N = logp_N.index_add(0, inner_NS.nonzero()[:, 0], rest_T.double())
        ends = [k for k, branch in enumerate(level) if branch.response is not None]
        found_GR[:, [level[k].response for k in ends]] = logp_N.view(g, n)[:, ends]
        goes_on = [k for k, branch in enumerate(level) if branch.response is None]
        if goes_on:
            open_GN = torch.arange(g, device=device)[:, None] * n + torch.tensor(goes_on, device=device)
            kept_N = open_GN.reshape(-1)
            next_NV = backbone.log_softmax(_last(hidden_NSD[kept_N], fed_NS[kept_N]))
    return found_GR


def _forward(
    backbone: Backbone, cache: transformers.DynamicCache, ids_NS: Tensor, valid_NS: Tensor, seen_NW: Tensor
) -> Tensor:
    """[N, S, D] hidden states of new tokens after what the cache holds, to which they are added."""
    before_N1 = (seen_NW.sum(1) - valid_NS.sum(1))[:, None]
    position_NS = before_N1 + (valid_NS.cumsum(1) - 1).clamp(min=0)
    decoder = backbone.causal_lm.base_model
    # transformers 5.24 renames the argument, an architecture at a time; 5.40 drops the old name
    accepted = inspect.signature(decoder.forward).parameters
    held = {"cache" if "cache" in accepted else "past_key_values": cache}
    out = decoder(input_ids=ids_NS, attention_mask=seen_NW, position_ids=position_NS, use_cache=True, **held)
    return out.last_hidden_state


def _padded(lists: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids [N, S] padded on the right, and where they are valid, as 0 and 1."""
    longest = max(map(len, lists))
    ids_NS = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in lists], dtype=torch.int64, device=device)
    length_N = torch.tensor([len(ids) for ids in lists], device=device)
    return ids_NS, (torch.arange(longest, device=device) < length_N[:, None]).long()


def _last(hidden_NSD: Tensor, valid_NS: Tensor) -> Tensor:
    """[N, D] at each row's last valid position."""
    return hidden_NSD[torch.arange(len(hidden_NSD), device=hidden_NSD.device), valid_NS.sum(1) - 1]
