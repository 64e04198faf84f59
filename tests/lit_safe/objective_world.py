"""Numbers for objectives: pairs in float64, and a world of a few responses with its exact expected loss.

Letters: K responses, B = K * K ordered pairs.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lit_safe.protocols.objective import extra_needs, is_reference_free, score
from lit_safe.types import Annotation, Extra, Objective, Pair, Scored


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


ZERO = f64(0.0)[0]


def pair(chosen: float, rejected: float) -> Pair:
    return Pair(f64(chosen), f64(rejected))


def label(reward: tuple[float, float] = (0.0, 0.0), cost: tuple[float, float] = (-1.0, -1.0)) -> Annotation:
    return Annotation(pair(*reward), pair(*cost))


def scored(
    objective: Objective,
    value: tuple[float, float],
    labels: Annotation | None = None,
    length: tuple[float, float] = (1.0, 1.0),
    mismatched: float = 0.0,
) -> Scored:
    """The result for one pair, whose log-ratios (or log-probs, without a reference) are ``value``."""
    extra = Extra(policy_logp=pair(*value), length=pair(*length), mismatched_logratio=f64(mismatched)[0])
    return score(objective, pair(*value), pair(*value), label() if labels is None else labels, ZERO, extra)


def loss(objective: Objective, value: tuple[float, float], *others: object) -> float:
    return scored(objective, value, *others).loss.item()  # type: ignore[arg-type]  # any number is a value


class World(NamedTuple):
    """Log-probs of a reference, rewards, costs and lengths of K responses to one prompt."""

    reference: Tensor
    reward: Tensor
    cost: Tensor
    length: Tensor

    @property
    def prefer(self) -> Tensor:
        """[K, K] Bradley-Terry probability that the first is more helpful than the second."""
        return (self.reward[:, None] - self.reward).sigmoid()


def world(cells: int = 5, seed: int = 0) -> World:
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(3, cells, dtype=torch.float64, generator=draw)
    length = torch.randint(1, 6, (cells,), generator=draw).double()
    return World(rows[0].log_softmax(-1), rows[1], rows[2], length)


def expected_loss(
    objective: Objective, of: World, flip: float = 0.0, mismatched: float = 0.0
) -> Callable[[Tensor], Tensor]:
    """The mean loss over pairs drawn from the reference and ordered by helpfulness, of a policy [K] in log-probs."""
    cells = len(of.reward)

    def sides(value_K: Tensor) -> Pair:
        return Pair(value_K.repeat_interleave(cells), value_K.repeat(cells))

    drawn_KK = (of.reference[:, None] + of.reference).exp().fill_diagonal_(0)
    order_KK = (1 - flip) * of.prefer + flip * of.prefer.T
    share_B = (2 * drawn_KK / drawn_KK.sum() * order_KK).flatten()

    def mean(policy_K: Tensor) -> Tensor:
        extra = Extra(policy_logp=sides(policy_K), length=sides(of.length), mismatched_logratio=f64(mismatched)[0])
        ratio = sides(policy_K - of.reference)
        found = score(objective, sides(policy_K), ratio, Annotation(sides(of.reward), sides(of.cost)), ZERO, extra)
        return (share_B * found.weight * found.loss).sum()

    return mean


def least(objective: Objective, of: World, flip: float = 0.0) -> Tensor:
    """[K] log-probs of the policy with the least expected loss, by L-BFGS over all categorical policies."""
    mean = expected_loss(objective, of, flip)
    logit_K = of.reference.clone().requires_grad_()
    search = torch.optim.LBFGS(
        [logit_K],
        max_iter=300,
        tolerance_grad=1e-13,
        tolerance_change=1e-15,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        search.zero_grad()
        value = mean(logit_K.log_softmax(-1))
        value.backward()
        return value

    search.step(closure)
    return logit_K.detach().log_softmax(-1)


def tilt(of: World, multiplier: float = 0.0, beta: float = 1.0) -> Tensor:
    """[K] reference * exp((reward - multiplier * cost) / beta), normalised."""
    return (of.reference + (of.reward - multiplier * of.cost) / beta).log_softmax(-1)


def check_derivatives(objective: Objective) -> None:
    """Compare the gradient in both log-ratios, or log-probs, with finite differences in float64."""
    draw = torch.Generator().manual_seed(0)
    numbers = torch.randn(6, 8, dtype=torch.float64, generator=draw)
    labels = Annotation(
        Pair(numbers[0], numbers[1]), Pair(numbers[2], numbers[3]), torch.rand(8, generator=draw).double()
    )
    length = Pair(torch.arange(1.0, 9.0).double(), torch.arange(8.0, 0.0, -1.0).double())
    below = 12.0 if is_reference_free(objective) else 0.0  # a log-prob is negative
    inputs = tuple((numbers[4 + k] - below).requires_grad_() for k in (0, 1))

    def weighted(chosen: Tensor, rejected: Tensor) -> Tensor:
        value = Pair(chosen, rejected)
        extra = Extra(policy_logp=value, length=length, mismatched_logratio=f64(0.3)[0])
        found = score(objective, value, value, labels, f64(0.3)[0], extra)
        return found.loss * found.weight

    assert torch.autograd.gradcheck(weighted, inputs), extra_needs(objective)
