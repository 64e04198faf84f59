"""How an objective is called, and what it declares. Callers use these functions for every objective.

Letters: B pairs.
"""

from typing import Any

from torch import Tensor

from lit_safe.types import Annotation, Extra, LabelNeed, Objective, Pair, Scored


def score(
    objective: Objective, logp: Pair, logratio: Pair, label: Annotation, multiplier: Tensor, extra: Extra
) -> Scored:
    """The objective's losses and weights of B pairs.

    Args:
        objective: The pairwise loss.
        logp: The policy's log-probs [B] in nats. A reference-free objective gets them in place of log-ratios.
        logratio: Log-ratios [B] in nats.
        label: Labels of the pairs.
        multiplier: [] or [C], as in ``Objective``.
        extra: At least what ``extra_needs`` names.

    Raises:
        KeyError: If ``extra`` lacks something that the objective needs.
    """
    seen = logp if is_reference_free(objective) else logratio
    names = extra_needs(objective)
    if not names:
        return objective(seen, label, multiplier)
    call: Any = objective  # the protocol has three arguments, so that objectives without a fourth one meet it
    scored: Scored = call(seen, label, multiplier, Extra(**{name: extra[name] for name in names}))  # type: ignore[literal-required, typeddict-item]  # names are keys of Extra
    return scored


def is_reference_free(objective: Objective) -> bool:
    """Whether the loss reads the policy's log-probs and no reference."""
    return bool(getattr(objective, "reference_free", False))


def extra_needs(objective: Objective) -> tuple[str, ...]:
    """The keys of ``Extra`` that the objective needs."""
    return tuple(need for need in objective.needs if need in Extra.__annotations__)


def label_needs(objective: Objective) -> tuple[LabelNeed, ...]:
    """The labels that the objective needs."""
    return tuple(need for need in objective.needs if need not in Extra.__annotations__)  # type: ignore[misc]  # what is left are labels
