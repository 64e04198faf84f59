"""Numbers of single tokens with gradient: log-probs of targets, and KL between policy and reference.

Letters: R scored positions, K of them at which the KL is asked for, D hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_safe.types import PackedSequences, TokenScores
from models.backbone import Backbone
from models.reference import OpenReference
from ops.sequence_logratio import token_kl


def token_scores(
    policy: Backbone, open_reference: OpenReference, sequences: PackedSequences, at_K: Tensor | None
) -> TokenScores:
    """Log-probs of the R targets, and KL(policy || reference) at K of them.

    The policy runs once. The log-probs and their gradients are those of ``Backbone.forward`` to the bit. The reference
    runs without gradient, on all sequences, and only if a KL is asked for.

    Args:
        policy: The policy.
        open_reference: Gives the reference.
        sequences: The sequences.
        at_K: The targets, counted from 0 to R - 1, at which the KL is computed; None computes it nowhere.
    """
    hidden_RD, target_R, _ = policy.response_hidden(sequences)
    logp_R = policy.token_logp(hidden_RD, target_R)
    kl_R = torch.zeros_like(logp_R)
    if at_K is None or not len(at_K):
        return TokenScores(logp_R, kl_R)
    with open_reference() as reference:
        with torch.no_grad():
            theirs_RD = reference.response_hidden(sequences).hidden_RD
        kl_K = token_kl(policy.at_head(hidden_RD[at_K]), reference.at_head(theirs_RD[at_K]))
    return TokenScores(logp_R, kl_R.index_put((at_K,), kl_K.to(kl_R.dtype)))
