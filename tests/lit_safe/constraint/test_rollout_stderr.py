"""Rollouts that go on until the estimate is as exact as it was wanted."""

import logging
import math

import pytest
import torch

from lit_safe.constraint.costs.rollout import RolloutCost
from lit_safe.types import Prompt
from tests.lit_safe.constraint.test_costs import ByPrompt, P, TableCost, Toy, rollout


class Hundred(Toy):
    """A hundred prompts, which ``ByPrompt`` gives the costs 0 to 99: their standard deviation is 29.0."""

    def prompts(self, split: str) -> list[Prompt]:
        return [Prompt(p, (p % P,), f"prompt {p}") for p in range(100)] if split == "dual" else []


def test_as_many_prompts_are_answered_as_the_first_ones_ask_for() -> None:
    first = rollout(Hundred(), ByPrompt(), prompts=20)
    found = rollout(Hundred(), ByPrompt(), prompts=20, stderr=4.5)
    needed = math.ceil(20 * (float(first.stderr) / 4.5) ** 2)  # by hand: the variance of a mean falls as 1 / prompts
    assert 20 < needed < 100
    assert found.clusters == needed
    assert float(found.stderr) == pytest.approx(4.5, rel=0.2)
    whole = rollout(Hundred(), ByPrompt(), prompts=needed)
    assert (found.mean, found.stderr, found.unsafe) == (whole.mean, whole.stderr, whole.unsafe), "in one pass or in two"


def test_an_estimate_that_is_exact_enough_or_does_not_vary_takes_no_more_prompts() -> None:
    assert rollout(Hundred(), ByPrompt(), prompts=20, stderr=30.0).clusters == 20
    constant = rollout(Hundred(), lambda prompts, responses: torch.ones(len(prompts)), prompts=20, stderr=0.1)
    assert constant.clusters == 20
    assert constant.stderr.isnan()


def test_a_split_with_too_few_prompts_is_used_whole_and_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = rollout(Hundred(), ByPrompt(), prompts=20, stderr=1.0)
    assert found.clusters == 100
    assert (
        "the standard error of the cost is 2.9 with all 100 prompts of the dual split, and 1 was wanted" in caplog.text
    )


def test_of_several_constraints_the_one_that_varies_most_decides() -> None:
    class Both(ByPrompt):
        def __call__(self, prompts: list[str], responses: list[str]) -> torch.Tensor:
            cost_n = super().__call__(prompts, responses)
            return torch.stack([cost_n / 10, cost_n], -1)

    both = rollout(Hundred(), Both(), prompts=20, stderr=4.5)
    assert both.clusters == rollout(Hundred(), ByPrompt(), prompts=20, stderr=4.5).clusters
    assert both.mean.shape == (2,)


@pytest.mark.parametrize("stderr", [0.0, -1.0, math.inf, math.nan])
def test_a_standard_error_that_cannot_be_is_refused(stderr: float) -> None:
    with pytest.raises(ValueError, match="stderr must be > 0 and finite"):
        RolloutCost(TableCost(), stderr=stderr)
