"""Checks and messages when a pair is loaded."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

import transformers

from models.backbone import Backbone
from models.layers import FAULTS
from models.sources import ModelSource

log = logging.getLogger(__name__)


def say_router_loss(policy: Backbone) -> None:
    """Log that routers train without their own loss: no objective here adds a mixture-of-experts balancing loss."""
    share = getattr(policy.causal_lm.config.get_text_config(), "router_aux_loss_coef", None)
    routers = [n for n, p in policy.named_parameters() if p.requires_grad and re.search(r"\.(gate|router)\.", n)]
    if share and routers:
        log.warning(
            "%d routers train (%s, ...) without the load-balancing loss of their model (router_aux_loss_coef %g): no "
            "objective here adds it. An adapter on attention layers alone leaves routers as they are.",
            len(routers),
            routers[0],
            share,
        )


def check_tokens(
    policy: ModelSource,
    tokenizer: Callable[[], transformers.PreTrainedTokenizerBase],
    reference: ModelSource | None,
) -> None:
    """Refuse a reference with another tokenizer, since both models score the same token ids.

    Args:
        policy: Source of the policy.
        tokenizer: Reads the policy's tokenizer.
        reference: Source of the reference; None for the policy itself.

    Raises:
        ValueError: Names the first token that differs.
    """
    if reference is None or reference == policy:
        return
    mine, theirs = tokenizer().get_vocab(), reference.load_tokenizer().get_vocab()
    apart = sorted({*mine.items()} ^ {*theirs.items()}, key=lambda item: (item[1], item[0]))
    if apart:
        token = apart[0][0]
        raise ValueError(
            f"the reference {reference.describe()} reads other tokens than the policy {policy.describe()}: {token!r} "
            f"is number {mine.get(token)} of the policy's and {theirs.get(token)} of the reference's: use a reference "
            "with the policy's tokenizer"
        )


def verify_layout(policy: Backbone, *, training: bool, asked: bool) -> None:
    """Verify ``policy``. One that cannot take the layout ``shared`` gets ``padded``, and the log says why.

    Args:
        policy: The model.
        training: As in ``Backbone.verify``.
        asked: Whether the user asked for the layout. The log then warns.

    Raises:
        ValueError: As ``Backbone.verify`` does, in another layout.
    """
    if policy.layout == "shared":
        try:
            return policy.verify(training=training)
        except FAULTS as reason:
            say_padded(reason, asked=asked)
            policy.layout = "padded"
    policy.verify(training=training)


SHARDED = "the ranks that share a model's layers would have to ask for masks in the same steps"
"""Why a sharded model does not compute the layout ``shared``: its longest sequence differs between ranks."""


def say_padded(reason: object, *, asked: bool) -> None:
    """Log that ``padded`` takes the place of ``shared``; as a warning if the user asked for ``shared``."""
    level = logging.WARNING if asked else logging.INFO
    log.log(level, "layout 'shared' is not possible, so each response computes its prompt: %s", reason)
