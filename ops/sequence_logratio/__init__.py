"""Log-probs of response tokens, their sums over sequences, log-ratios, and KL and entropy of two models.

Letters: T scored positions, N sequences, D hidden width, V vocabulary.
"""

from ops.sequence_logratio.api import Head, both_sequence_logp, sequence_logp, sequence_logratio, token_logp
from ops.sequence_logratio.kl import token_kl
from ops.sequence_logratio.logits import logits_token_logp, logits_token_stats
from ops.sequence_logratio.stats import TokenStats, token_stats
from ops.sequence_logratio.support import support_logratio
from ops.sequence_logratio.vocab_parallel import vocab_parallel_token_logp

__all__ = [
    "Head",
    "TokenStats",
    "both_sequence_logp",
    "logits_token_logp",
    "logits_token_stats",
    "sequence_logp",
    "sequence_logratio",
    "support_logratio",
    "token_kl",
    "token_logp",
    "token_stats",
    "vocab_parallel_token_logp",
]
