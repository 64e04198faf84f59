"""The columns that ``predict`` gives for each pair.

Letters: B pairs, C cost constraints.
"""

from collections.abc import Sequence

from torch import Tensor

from lit_safe.types import PackedBatch, Pair, Scored


def pair_columns(
    batch: PackedBatch, policy: Pair, reference: Pair, scored: Scored, beta: float, constraints: Sequence[str]
) -> dict[str, Tensor]:
    """One column [B] for everything known of a pair. Unknown labels are NaN.

    Args:
        batch: B pairs, with the labels of the data.
        policy: Log-probs of the policy: sums over a response, in nats.
        reference: Log-probs of the reference.
        scored: The objective's losses and weights.
        beta: Factor from a log-ratio to an implicit reward (Rafailov et al. 2023, eq. 5).
        constraints: Names of the C constraints.

    Returns:
        Ids, log-probs, log-ratios and ``margin`` (the log-ratio of chosen minus that of rejected) in nats, implicit
        rewards, labels (``reward_*``, ``cost_*``: > 0 is unsafe), lengths in tokens, ``loss`` and ``weight``, and
        ``present``, which is false for a filler row.
    """
    logratio = Pair(policy.chosen - reference.chosen, policy.rejected - reference.rejected)
    columns = {"pair_id": batch.pair_id, "prompt_id": batch.prompt_id, "present": batch.present}
    columns |= _sides("logp", policy) | _sides("reference_logp", reference) | _sides("logratio", logratio)
    columns["margin"] = logratio.margin
    columns |= _sides("implicit_reward", Pair(*(beta * side for side in logratio)))
    columns |= _sides("reward", batch.label.reward)
    if batch.label.cost.chosen.ndim == 1:
        columns |= _sides("cost", batch.label.cost)
    else:
        for k, name in enumerate(constraints):
            columns |= _sides(f"cost_{name}", Pair(*(side[:, k] for side in batch.label.cost)))
    return {**columns, **_sides("length", batch.response_length), "loss": scored.loss, "weight": scored.weight}


def _sides(name: str, values: Pair) -> dict[str, Tensor]:
    return {f"{name}_{side}": value for side, value in values._asdict().items()}
