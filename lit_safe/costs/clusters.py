"""Means of dependent samples: two responses to one prompt are not two independent ones.

Letters: n samples, G prompts (clusters), C constraints.
"""

from torch import Tensor


def weighted_mean(value: Tensor, weight_n: Tensor, prompt_n: Tensor) -> tuple[Tensor, Tensor]:
    """The self-normalised mean of ``value`` and its standard error, clustered by prompt.

    Args:
        value: [n] or [n, C].
        weight_n: >= 0, of any scale.
        prompt_n: Ids; samples of one id may depend on each other in any way.

    Returns:
        Mean and standard error, [] or [C] each. The error is the delta method's for a ratio of sums, with the
        G / (G - 1) correction; of equal weights and one sample a prompt it is the textbook one.

    Raises:
        ValueError: With fewer than two prompts, which have no standard error.
    """
    _, cluster_n = prompt_n.unique(return_inverse=True)
    clusters = int(cluster_n.max()) + 1 if len(cluster_n) else 0
    if clusters < 2:
        raise ValueError(f"a clustered standard error needs at least two prompts, got {clusters}")
    share = (weight_n / weight_n.sum()).reshape(-1, *[1] * (value.ndim - 1))
    mean = (share * value).sum(0)
    residual = value.new_zeros(clusters, *value.shape[1:]).index_add_(0, cluster_n, share * (value - mean))
    return mean, (clusters / (clusters - 1) * residual.square().sum(0)).sqrt()
