"""Where the numbers of weights lie in the vectors of ranks: nothing is lost, and nothing is there twice."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.sharding.flat import combined, part_of


def test_a_weight_that_is_cut_lies_at_the_end_of_one_vector_and_the_start_of_the_next() -> None:
    """Weights of 3, 4 and 1 numbers in two vectors of 5: 0 1 2 3 4 | 5 6 7 and two numbers of no weight."""
    weights = [torch.tensor([0.0, 1, 2]), torch.tensor([[3.0, 4], [5, 6]]), torch.tensor([7.0])]
    sizes, shapes = [w.numel() for w in weights], [w.shape for w in weights]
    like = torch.full((5,), torch.nan)
    vectors = [combined(weights, part_of(sizes, shapes, rank, 5), like) for rank in (0, 1)]
    assert vectors[0].tolist() == [0, 1, 2, 3, 4]
    assert vectors[1].tolist() == [5, 6, 7, 0, 0]
    first, second = (part_of(sizes, shapes, rank, 5) for rank in (0, 1))
    assert (first[1].inside, first[1].held) == (slice(0, 2), slice(3, 5))
    assert (second[1].inside, second[1].held) == (slice(2, 4), slice(0, 2))
    assert (second[0].inside, first[2].inside) == (slice(0, 0), slice(0, 0))


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(1, 5),
    st.integers(0, 4),
)
def test_the_parts_of_all_ranks_make_up_every_weight_once(sizes: list[int], ranks: int, spare: int) -> None:
    weights = [torch.randn(size, generator=torch.Generator().manual_seed(k)) for k, size in enumerate(sizes)]
    length = -(-sum(sizes) // ranks) + spare
    found = [torch.zeros(size) for size in sizes]
    times = [torch.zeros(size) for size in sizes]
    for rank in range(ranks):
        parts = part_of(sizes, [w.shape for w in weights], rank, length)
        vector = combined(weights, parts, torch.empty(length))
        for k, part in enumerate(parts):
            found[k][part.inside] += vector[part.held]
            times[k][part.inside] += 1
    assert all(torch.equal(one, weight) for one, weight in zip(found, weights, strict=True))
    assert all((count == 1).all() for count in times)


def test_a_vector_has_the_type_of_the_state_that_it_goes_into() -> None:
    weight = torch.tensor([1.0, 2.0], dtype=torch.float64)
    parts = part_of([2], [weight.shape], 0, 3)
    assert combined([weight], parts, torch.empty(3)).dtype == torch.float32
    with pytest.raises(ValueError, match="zip"):
        combined([weight, weight], parts, torch.empty(3))
