"""Checks that the last layers of a model run on the output of its frozen layers alone."""

from __future__ import annotations

import logging

import torch

from models.backbone import Backbone
from models.layers import FAULTS
from models.trunk import Trunk

log = logging.getLogger(__name__)


def find_trunk(policy: Backbone, *, asked: bool) -> None:
    """Set ``policy.trunk`` to its frozen layers, if it has some and their output can replace them.

    Args:
        policy: The model, with the parameters that train marked, and without dropout.
        asked: Whether the settings ask for the states of the frozen layers. If not, a model without them is not an
            error.

    Raises:
        ValueError: If they are asked for, and no layer is frozen, or this architecture passes more than hidden states
            from layer to layer.
    """
    policy.trunk, reason = None, ""
    try:
        policy.trunk = Trunk.of(policy.causal_lm)
        reason = "" if policy.trunk is None else _difference(policy)
    except ValueError as fault:
        reason = str(fault)
    if not reason:
        if asked and policy.trunk is None:
            raise ValueError(
                "adaptation.cache_trunk: no layer below the last ones is frozen (head: true trains a tied embedding, "
                "and k must be below the number of layers): set it to false"
            )
        return
    policy.trunk = None
    name = type(policy.causal_lm).__name__
    said = f"{name}: its last layers cannot run on the hidden states of the layers below alone ({reason})"
    if asked:
        raise ValueError(f"{said}: set adaptation.cache_trunk to false")
    log.info("%s, so every pass runs all layers", said)


@torch.no_grad()
def _difference(policy: Backbone) -> str:
    """What differs where trunk states replace the frozen layers, on a few tokens; empty if nothing does."""
    sequences = policy.few_tokens()
    whole_RD = policy.response_hidden(sequences).hidden_RD.float()
    try:
        known = sequences._replace(trunk=policy.trunk_states(sequences))
        policy.response_hidden(sequences._replace(input_ids=sequences.input_ids.flip(0)))  # forget these tokens
        apart = (policy.response_hidden(known).hidden_RD.float() - whole_RD).abs().max().item()
    except FAULTS as fault:
        return str(fault).split("\n")[0] or type(fault).__name__
    # the same operations on the same numbers
    return "" if apart <= 1e-5 * whole_RD.abs().max().item() else f"hidden states are off by {apart:.3g}"
