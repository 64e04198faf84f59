"""The mass of tokens that the reference finds plausible, under both models.

Letters: R response positions, D hidden width, V vocabulary.
"""

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.backbone import Backbone

LOGITS = 2**24  # logits per block: 64 MiB for each model in fp32


def lost_support(policy: Backbone, reference: Backbone, mine_RD: Tensor, theirs_RD: Tensor, floor: float) -> Tensor:
    """[R] min(0, log of policy / reference) of the mass of the tokens that are plausible under the reference.

    The backward pass recomputes both models' logits: only a block's hidden states are stored.
    """
    rows = max(1, LOGITS // policy.head.weight_VD.shape[0])
    blocks = zip(mine_RD.split(rows), theirs_RD.split(rows), strict=True)
    return torch.cat(
        [
            checkpoint(_block, policy, reference, mine_rD, theirs_rD, floor, use_reentrant=False)
            for mine_rD, theirs_rD in blocks
        ]
    )


def _block(policy: Backbone, reference: Backbone, mine_RD: Tensor, theirs_RD: Tensor, floor: float) -> Tensor:
    with torch.no_grad():
        theirs_RV = reference.log_softmax(theirs_RD)
        highest_R1 = theirs_RV.max(-1, keepdim=True).values
        outside_RV = theirs_RV < highest_R1.clamp(max=math.log(floor))
        theirs_R = theirs_RV.masked_fill_(outside_RV, -torch.inf).logsumexp(-1)
    mine_R = policy.log_softmax(mine_RD).masked_fill(outside_RV, -torch.inf).logsumexp(-1)
    return (mine_R - theirs_R).clamp(max=0)
