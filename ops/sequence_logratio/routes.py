"""Which of two routes an ungraded forward pass of the fused backend takes.

``stream``: one kernel computes products and sums and stores no logits. ``merge``: the library multiplies a slab of the
head at a time, and a kernel adds its rows up. The table contains predictions (roofline.py), no timings.

Letters: T positions, D hidden width, V vocabulary.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ops.sequence_logratio.cards import CARDS, Card, card_of

Route = Literal["stream", "merge"]


class Sizes(NamedTuple):
    """The least numbers of positions and of hidden units from which ``merge`` is predicted to be faster."""

    tokens: int
    width: int


# by card, because what ``merge`` loses depends on the rate of memory; of any vocabulary from 32,000 on
MERGED_FROM = {CARDS["H200"].name: Sizes(2048, 1280), CARDS["H100"].name: Sizes(2048, 3072)}
ALWAYS: Route | None = None  # for benchmarks: this route in every case


def ungraded(hidden_TD: Tensor, weight_VD: Tensor) -> Route:
    """The route for these inputs.

    A head of another type than the hidden states takes ``merge``, which casts a slab at a time, where ``stream`` would
    need a copy of the whole head.
    """
    if ALWAYS is not None:
        return ALWAYS
    if weight_VD.dtype != hidden_TD.dtype:
        return "merge"
    if not hidden_TD.is_cuda:
        return "stream"
    facts = torch.cuda.get_device_properties(hidden_TD.device)
    return by_table(card_of(facts.name, facts.multi_processor_count), len(hidden_TD), hidden_TD.shape[1])


def by_table(card: Card | None, tokens: int, width: int) -> Route:
    """The table's route on this card; ``stream`` on every card that is not in it.

    Example:
        >>> by_table(CARDS["H200"], 16384, 4096), by_table(CARDS["H200"], 16384, 896), by_table(None, 16384, 4096)
        ('merge', 'stream', 'stream')
    """
    least = None if card is None else MERGED_FROM.get(card.name)
    return "merge" if least is not None and tokens >= least.tokens and width >= least.width else "stream"
