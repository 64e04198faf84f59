"""The spread of costs, in total and within prompts: numbers worked by hand, and variances that are known."""

import pytest
import torch

from lit_safe.constraint.costs.mean import spread_of


def test_two_prompts_of_two_responses() -> None:
    """Variances 2 (of 0 and 2) and 0 (of 5 and 5). Squared deviations from 3: 9, 1, 4, 4; their mean 4.5, times 2."""
    found = spread_of(torch.tensor([0.0, 5.0, 2.0, 5.0]), torch.tensor([0, 1, 0, 1]))
    assert found.within == 1.0
    assert found.total == pytest.approx(9.0**0.5)


def test_each_constraint_has_its_own_and_one_response_a_prompt_has_no_variance_within() -> None:
    found = spread_of(torch.tensor([[0.0, 10.0], [2.0, 30.0]]), torch.tensor([4, 9]))
    assert found.within.isnan().tolist() == [True, True]
    assert found.total.tolist() == pytest.approx([2.0**0.5, 200.0**0.5])


def test_they_estimate_the_variances_of_a_population() -> None:
    """Prompts vary by 1, responses to one by 4: within 4, total sqrt(5)."""
    random = torch.Generator().manual_seed(0)
    prompts, samples = 4000, 5
    level = torch.randn(prompts, 1, generator=random, dtype=torch.float64)
    cost = level + 2 * torch.randn(prompts, samples, generator=random, dtype=torch.float64)
    found = spread_of(cost.flatten(), torch.arange(prompts).repeat_interleave(samples))
    assert float(found.within) == pytest.approx(4.0, rel=0.05)
    assert float(found.total) == pytest.approx(5.0**0.5, rel=0.03)
