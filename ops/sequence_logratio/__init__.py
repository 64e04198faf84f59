"""Log-probabilities of response tokens, their sums over sequences, and log-ratios of two models.

Letters: T scored positions, N sequences, D hidden width, V vocabulary.
"""

from ops.sequence_logratio.api import Head, sequence_logp, sequence_logratio, token_logp

__all__ = ["Head", "sequence_logp", "sequence_logratio", "token_logp"]
