"""Log-probs of many responses to the same prompts. Common prefixes of the responses are computed once.

Letters: P prompts, R responses, G prompts at a time, n branches of a level, N = G * n rows, S longest segment, W width
of the cache, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import NamedTuple

import torch
import transformers
from torch import Tensor

from lit_safe.types import IGNORE, PackedSequences
from models.backbone import Backbone
from models.layers import decoder_of

WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")
"""Names in configurations of the length of a layer's attention window. A cache counts padding as part of the window."""


class Branch(NamedTuple):
    """A run of tokens after ``parent`` (of the level before), up to the point where the responses diverge."""

    parent: int
    segment: tuple[int, ...]
    response: int | None  # the response that ends here, None if several continue


def response_tree(responses: Sequence[Sequence[int]]) -> list[list[Branch]]:
    """Levels of branches. Every response ends in one branch; branches that continue are numbered within their level.

    Raises:
        ValueError: If a response is empty, or is a prefix of another.
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
    """The common prefix of ``lists``, which is that of the first and the last in sorted order."""
    first, last = min(lists), max(lists)
    parts = (size for size, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return first[: next(parts, min(len(first), len(last)))]


@torch.no_grad()
def tree_logp(
    backbone: Backbone, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], rows: int = 512
) -> Tensor:
    """[P, R] float64 sums of fp32 log-probs: of every response after every prompt.

    Up to rounding, this equals ``Backbone.forward`` in evaluation mode for each prompt with each response, but
    processes far fewer tokens. Each response is computed separately if attention has a window that padding would fill,
    or if layers carry a recurrent state.

    Args:
        backbone: In any mode. It runs in evaluation mode, since layers that recompute activations keep no cache.
        prompts: Token ids, none empty.
        responses: Token ids, none empty, none a prefix of another.
        rows: Approximate number of responses at a time, at least one prompt's.

    Raises:
        ValueError: If a prompt or response is empty, or a response is a prefix of another; or if this architecture's
            cached prefixes give other results than separate computations.
    """
    if not all(map(len, prompts)):
        raise ValueError("a prompt has no tokens")
    levels = response_tree(responses)
    logp_PR = torch.empty(len(prompts), len(responses), dtype=torch.float64)
    order = sorted(range(len(prompts)), key=lambda p: len(prompts[p]))  # similar lengths together: less padding
    together = max(1, rows // max(1, len(responses)))
    width = sum(max(len(branch.segment) for branch in level) for level in levels)
    flags = {module: module.training for module in backbone.modules()}
    backbone.eval()
    try:
        for start in range(0, len(order), together):
            chosen = order[start : start + together]
            group = [prompts[p] for p in chosen]
            if _shares(backbone, max(map(len, group)) + width):
                logp_PR[chosen] = _walk(backbone, group, levels, len(responses)).cpu()
                if not start:
                    _check(backbone, group[0], responses, logp_PR[chosen[0]])
            else:
                logp_PR[chosen] = torch.stack([_apart(backbone, prompt, responses, rows) for prompt in group])
    finally:
        for module, flag in flags.items():
            module.training = flag
    return logp_PR


def _shares(backbone: Backbone, width: int) -> bool:
    """Whether a cache ``width`` wide with padding in it gives every token the context of a separate computation."""
    model = backbone.causal_lm
    config = model.config.get_text_config()
    windows = [getattr(config, name, None) for name in WINDOWS]
    return not getattr(model, "_is_stateful", False) and all(width <= window for window in windows if window)


def _apart(backbone: Backbone, prompt: Sequence[int], responses: Sequence[Sequence[int]], rows: int) -> Tensor:
    """[R] float64: every response after the prompt, each as a separate sequence."""
    sums = []
    for start in range(0, len(responses), rows):
        some = responses[start : start + rows]
        lengths = torch.tensor([0, *(len(prompt) + len(response) for response in some)])
        ids = [number for response in some for number in (*prompt, *response)]
        target = [
            number for response in some for number in (*[IGNORE] * (len(prompt) - 1), *response, IGNORE)
        ]  # one position before its token
        position = torch.cat([torch.arange(int(length)) for length in lengths[1:]])
        parts = (torch.tensor(ids), torch.tensor(target), position, lengths.cumsum(0).to(torch.int32))
        sums.append(backbone(PackedSequences(*(part.to(backbone.device) for part in parts))).double().cpu())
    return torch.cat(sums)


def _check(backbone: Backbone, prompt: Sequence[int], responses: Sequence[Sequence[int]], logp_R: Tensor) -> None:
    """Compare the prompt with the most padding and the longest response with a separate computation of them."""
    longest = max(range(len(responses)), key=lambda r: len(responses[r]))
    tokens = len(responses[longest])
    apart = float((_apart(backbone, prompt, [responses[longest]], 1) - logp_R[longest]).abs())
    rounds = backbone.head.weight_VD.dtype.itemsize < 4 or torch.is_autocast_enabled(backbone.device.type)
    if not apart <= tokens * (0.25 if rounds else 1e-3):
        raise ValueError(
            f"{type(backbone.causal_lm).__name__}: a response of {tokens} tokens is off by {apart:.3g} nats where "
            "beginnings are shared; this architecture needs support in models/response_tree.py"
        )


def _walk(backbone: Backbone, prompts: list[Sequence[int]], levels: list[list[Branch]], responses: int) -> Tensor:
    """[G, R] log-probs of the responses, computed from the prompts one level at a time."""
    device, g = backbone.device, len(prompts)
    ids_NS, valid_NS = _padded(prompts, device)
    cache = transformers.DynamicCache()
    seen_NW = valid_NS
    hidden_NSD = _forward(backbone, cache, ids_NS, valid_NS, seen_NW)
    # the next-token distribution after each open branch, and the log-prob of everything up to there; the whole
    # distribution, because every branch that continues from there reads its own token
    next_NV = backbone.log_softmax(_last(hidden_NSD, valid_NS))
    logp_N = torch.zeros(g, dtype=torch.float64, device=device)
    found_GR = torch.empty(g, responses, dtype=torch.float64, device=device)
    open_GN = torch.arange(g, device=device)[:, None]  # rows of the branches that continue
    for level in levels:
        n = len(level)
        parent_n = torch.tensor([branch.parent for branch in level], device=device)
        parent_N = open_GN[:, parent_n].reshape(-1)
        ids_NS, valid_NS = (part.repeat(g, 1) for part in _padded([branch.segment for branch in level], device))
        open_N = (torch.arange(g, device=device)[:, None] * open_GN.shape[1] + parent_n).reshape(-1)
        logp_N = logp_N[parent_N] + next_NV[open_N, ids_NS[:, 0]].double()
        # no prediction is needed after the token that ends a response
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
    """[N, S, D] hidden states of new tokens after those in the cache; the new tokens are added to it."""
    before_N1 = (seen_NW.sum(1) - valid_NS.sum(1))[:, None]
    position_NS = before_N1 + (valid_NS.cumsum(1) - 1).clamp(min=0)
    decoder = decoder_of(backbone.causal_lm)
    # transformers renames the argument one architecture at a time from 5.24 on; 5.40 drops the old name
    accepted = inspect.signature(decoder.forward).parameters
    held = {"cache" if "cache" in accepted else "past_key_values": cache}
    out = decoder(input_ids=ids_NS, attention_mask=seen_NW, position_ids=position_NS, use_cache=True, **held)
    return out.last_hidden_state


def _padded(lists: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids [N, S] padded on the right, and a mask of valid positions as 0 and 1."""
    longest = max(map(len, lists))
    ids_NS = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in lists], dtype=torch.int64, device=device)
    length_N = torch.tensor([len(ids) for ids in lists], device=device)
    return ids_NS, (torch.arange(longest, device=device) < length_N[:, None]).long()


def _last(hidden_NSD: Tensor, valid_NS: Tensor) -> Tensor:
    """[N, D] at each row's last valid position."""
    return hidden_NSD[torch.arange(len(hidden_NSD), device=hidden_NSD.device), valid_NS.sum(1) - 1]
