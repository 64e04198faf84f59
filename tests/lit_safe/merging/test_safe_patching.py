"""SafePatching on tensors: two weights by hand, sets that never meet, and what randomness decides."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_safe.merging.safe_patching import Patch, patched, retained, snip, top

F64 = torch.float64


def test_two_weights_by_hand():
    """L = 3 w_0 + w_1^2. At the first copy, (1.4, 1.0), S = (4.2, 2); at the second, (0.7, 2.0), S = (2.1, 8)."""
    base = torch.tensor([1.0, 0.5], dtype=F64)
    patches = []
    for copy in ([1.4, 1.0], [0.7, 2.0]):
        weight = torch.tensor(copy, dtype=F64, requires_grad=True)
        (3 * weight[0] + weight[1] ** 2).backward()
        importance = snip(weight.detach(), weight.grad)
        patches.append(Patch(weight.detach() - base, top(importance, 0.5)))
        assert importance.tolist() == pytest.approx([3 * copy[0], 2 * copy[1] ** 2], abs=1e-15)
    assert patches[0].important.tolist() == [True, False]
    assert patches[1].important.tolist() == [False, True]
    found = patched(base, *patches, alpha=2.0, beta=0.1)
    assert found.tolist() == pytest.approx([1.0 + 2.0 * 0.4, 0.5 + 0.1 * 1.5], abs=1e-15)


def test_a_weight_that_both_need_keeps_its_value():
    base, change = torch.tensor([1.0, 2.0]), torch.tensor([0.3, 0.3])
    both, none = torch.tensor([True, True]), torch.tensor([False, False])
    assert torch.equal(patched(base, Patch(change, both), Patch(-change, both), 1.0, 1.0), base)
    assert torch.equal(patched(base, Patch(change, none), Patch(-change, none), 1.0, 1.0), base)


def test_one_whole_patch_alone_is_its_copy():
    base = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    change = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=F64)
    whole, nothing = (
        Patch(change, torch.ones(5, 4, dtype=torch.bool)),
        Patch(change, torch.zeros(5, 4, dtype=torch.bool)),
    )
    torch.testing.assert_close(patched(base, whole, nothing, 1.0, 1.0), base + change)
    torch.testing.assert_close(patched(base, nothing, whole, 1.0, -1.0), base - change)


def test_the_result_has_the_type_of_the_base_and_is_computed_in_fp32():
    base = torch.tensor([1.0], dtype=torch.bfloat16)
    small = Patch(torch.tensor([0.003]), torch.tensor([True]))
    other = Patch(torch.tensor([0.0]), torch.tensor([False]))
    found = patched(base, small, other, 2.0, 1.0)  # 0.003 in bf16 and twice that would both be rounded
    assert found.dtype == torch.bfloat16
    assert found.item() == torch.tensor(1.006).bfloat16().item()


@given(st.lists(st.floats(0, 10), min_size=1, max_size=30), st.floats(0, 1))
def test_the_most_important_weights_are_chosen(values, share):
    importance = torch.tensor(values, dtype=F64)
    chosen = top(importance, share)
    size = min(round(share * len(values)), int((importance > 0).sum()))
    assert int(chosen.sum()) == size
    if 0 < size < len(values):
        assert importance[chosen].min() >= importance[~chosen].max()


def test_of_equal_importances_the_first_are_chosen():
    assert top(torch.tensor([[1.0, 2.0], [2.0, 2.0]]), 0.5).tolist() == [[False, True], [True, False]]


def test_a_random_share_of_a_change_is_kept_as_it_is():
    change = torch.arange(1.0, 20001.0)
    found = retained(change, 0.3, 0, "safety", "w")
    kept = found != 0
    assert torch.equal(found[kept], change[kept])
    assert abs(kept.float().mean().item() - 0.3) < 4 * (0.3 * 0.7 / 20000) ** 0.5
    assert torch.equal(retained(change, 0.3, 0, "safety", "w"), found)
    for other in ((1, "safety", "w"), (0, "over-safety", "w"), (0, "safety", "v")):
        assert not torch.equal(retained(change, 0.3, *other), found)
    assert torch.equal(retained(change, 1.0, 0, "safety", "w"), change)
