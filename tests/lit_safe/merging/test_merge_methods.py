"""The merging of one weight: worked by hand, and against its definition in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_safe.merging.methods import linear, of_changes, shares


def test_ties_by_hand() -> None:
    """Half of each change is kept: (4, -3, 0, 0) and (0, 2, 5, 0). The sums are 4, -1, 5, 0, so 2 is left out."""
    base = torch.zeros(4, dtype=torch.float64)
    one = torch.tensor([4.0, -3.0, 1.0, 0.5], dtype=torch.float64)
    other = torch.tensor([1.0, 2.0, 5.0, 0.5], dtype=torch.float64)
    found = of_changes("ties", base, [one, other], [1.0, 1.0], 0.5, seed=0)
    torch.testing.assert_close(found, torch.tensor([4.0, -3.0, 5.0, 0.0], dtype=torch.float64))


def test_dare_keeps_the_mean_of_a_change_and_repeats_its_choice() -> None:
    base = torch.full((20_000,), 3.0)
    changed = base + 1
    found = of_changes("dare", base, [changed, changed], [0.5, 0.5], 0.25, seed=1)
    assert set((found - base).tolist()) == {0.0, 2.0, 4.0}  # kept by none, one or both, divided by the density
    assert (found - base).mean() == pytest.approx(1.0, abs=5 * (0.75 / 0.25 / 2 / 20_000) ** 0.5)
    assert torch.equal(found, of_changes("dare", base, [changed, changed], [0.5, 0.5], 0.25, seed=1))
    assert not torch.equal(found, of_changes("dare", base, [changed, changed], [0.5, 0.5], 0.25, seed=2))


def test_dare_leaves_the_random_numbers_of_others_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    of_changes("dare", torch.zeros(5), [torch.ones(5)] * 2, [0.5, 0.5], 0.5, seed=7)
    assert torch.equal(torch.rand(3), expected)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=5), st.floats(0, 1))
def test_swapping_the_models_and_the_weights_changes_nothing(values: list[float], q: float) -> None:
    a = torch.tensor(values, dtype=torch.float64)
    b = a.flip(0) + 1
    found, swapped = linear([a, b], [1 - q, q]), linear([b, a], [q, 1 - q])
    torch.testing.assert_close(found, swapped, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, (1 - q) * a + q * b, rtol=1e-12, atol=1e-12)


def test_bf16_weights_are_summed_in_fp32() -> None:
    """bf16 has 8 bits: adding 0.5 * 1 to 256 * 0.5 + ... step by step in bf16 would lose the small parts."""
    big, small = torch.tensor([256.0]).bfloat16(), torch.tensor([1.0]).bfloat16()
    found = linear([big, small, small, small], [0.25] * 4)
    assert found.dtype == torch.bfloat16
    assert found.item() == torch.tensor(64.75).bfloat16().item()


def test_without_a_weight_all_models_count_equally() -> None:
    assert shares(None, 4, "linear") == [0.25] * 4
    assert shares(None, 3, "ties") == [1.0] * 3
    assert shares(0.25, 2, "linear") == [0.75, 0.25]
    with pytest.raises(ValueError, match="each of 3 models"):
        shares(0.5, 3, "linear")
