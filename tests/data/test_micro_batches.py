"""How the rows of a step are divided: by tokens, with little padding, equally on all ranks."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.annotators.flags import Flags
from data.micro_batches import ALONE, PASS_TOKENS, MicroBatchLimit, Rank, by_rows, by_tokens, fewest_tokens
from data.module import PreferenceData
from data.sft import SftData
from models.layouts import lay_out
from tests.lit_safe.pair_world import Fruit, FruitTalk, pairs

LENGTHS = st.lists(st.integers(2, 60), min_size=1, max_size=40).map(np.array)


def padded(lengths, micro):
    """Tokens of a micro-batch with padding, fillers left out."""
    return len(micro.rows) * int(lengths[micro.rows].max())


@given(lengths=LENGTHS, most=st.integers(1, 300), world=st.integers(1, 4))
def test_ranks_together_compute_every_row_once_in_equally_many_equally_large_micro_batches(lengths, most, world):
    step = np.random.default_rng(0).permutation(len(lengths))
    shares = [by_tokens(most, lengths)(step, Rank(rank, world)) for rank in range(world)]
    assert sorted(row for share in shares for micro in share for row in micro.rows.tolist()) == sorted(step.tolist())
    assert len({tuple(len(micro.rows) + micro.fillers for micro in share) for share in shares}) == 1
    for micro in (micro for share in shares for micro in share if len(micro.rows) > 1):
        assert padded(lengths, micro) <= most


@given(falling=st.lists(st.integers(1, 50), min_size=1, max_size=8), most=st.integers(1, 200), each=st.integers(0, 60))
def test_no_division_of_consecutive_rows_needs_fewer_tokens(falling, most, each):
    falling = np.array(sorted(falling, reverse=True))
    count = len(falling)

    def need(bounds):
        parts = [(end - start, int(falling[start])) for start, end in itertools.pairwise(bounds)]
        allowed = all(size == 1 or size * longest <= most for size, longest in parts)
        return sum(size * longest + each for size, longest in parts) if allowed else np.inf

    inner = itertools.chain.from_iterable(itertools.combinations(range(1, count), n) for n in range(count))
    assert need(fewest_tokens(falling, most, each)) == min(need([0, *cut, count]) for cut in inner)


def test_rows_of_one_length_are_together_where_a_pass_is_worth_it():
    lengths = np.array([500, 20, 500, 20, 20, 460])
    found = by_tokens(1500, lengths)(np.arange(6), ALONE)
    assert [micro.rows.tolist() for micro in found] == [[0, 2, 5], [1, 3, 4]], (
        "padding of 40 tokens takes less than a pass"
    )
    assert [micro.rows.tolist() for micro in by_tokens(1000, lengths)(np.arange(6), ALONE)] == [[0, 2], [5], [1, 3, 4]]
    assert PASS_TOKENS["cpu"] == 64


def test_a_row_longer_than_the_limit_is_computed_alone():
    assert [len(micro.rows) for micro in by_tokens(10, np.array([90, 5, 90, 5]))(np.arange(4), ALONE)] == [1, 1, 2]


def test_little_is_padded_where_fours_in_the_order_of_the_data_pad_a_third():
    """Lengths like those of PKU-SafeRLHF: log-normal, a factor of two either way."""
    lengths = np.minimum(512, np.random.default_rng(0).lognormal(5.0, 0.6, 64)).astype(np.int64)
    share = {}
    for name, divide in {"tokens": by_tokens(2048, lengths), "fours": by_rows(4)}.items():
        share[name] = 1 - lengths.sum() / sum(padded(lengths, micro) for micro in divide(np.arange(64), ALONE))
    assert share["tokens"] < 0.08
    assert share["fours"] > 0.3


def test_a_number_of_rows_takes_rows_of_similar_length_together():
    lengths = np.array([5, 9, 5, 9, 7])
    assert [m.rows.tolist() for m in by_rows(2, lengths)(np.arange(5), ALONE)] == [[1, 3], [4, 0], [2]]
    assert [m.rows.tolist() for m in by_rows(2)(np.arange(5), ALONE)] == [[0, 1], [2, 3], [4]]


def test_the_limit_of_memory_is_met_by_every_micro_batch():
    lengths = np.array([40, 10, 4])
    for limit in (MicroBatchLimit(tokens=100), MicroBatchLimit(rows=2), MicroBatchLimit(tokens=7)):
        size = limit.largest(lengths, lengths // 2, per_step=3)
        batches = limit.divide(lengths)(np.arange(3), ALONE)
        assert size.tokens >= max(padded(lengths, micro) for micro in batches)
        assert size.scored >= max(len(micro.rows) * int(lengths[micro.rows].max() // 2) for micro in batches)
    assert MicroBatchLimit(tokens=10**6).largest(lengths, lengths, per_step=3).tokens == 120, "a whole step is the most"


def test_the_limit_counts_a_prompt_once_where_the_model_does():
    passes = {}
    for layout in ("padded", "shared"):
        data = pairs(pairs_per_step=9, micro_batch_pairs=None, micro_batch_tokens=600)
        data.setup()
        data.micro_batch.shared = layout == "shared"
        batches = [batch for step in data.train_dataloader() for batch in step]
        sizes = [lay_out(batch.sequences, layout).ids_KS.numel() for batch in batches]
        several = [size for size, batch in zip(sizes, batches, strict=True) if len(batch.sequences.cu_seqlens) > 3]
        assert several
        assert max(several) <= 600
        assert max(sizes) <= data.largest_micro_batch.tokens
        passes[layout] = len(batches)
    assert passes["shared"] < passes["padded"]


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (lambda **sizes: PreferenceData([Fruit()], Flags(), **sizes), "micro_batch_pairs"),
        (lambda **sizes: SftData([FruitTalk()], **sizes), "micro_batch_rows"),
    ],
    ids=["pairs", "rows"],
)
def test_a_size_below_one_is_refused_and_named(data, rows):
    for name in (rows, "micro_batch_tokens"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            data(**{name: 0})


def test_two_limits_both_hold():
    lengths = np.array([100, 90, 10, 9, 8, 8])
    both = MicroBatchLimit(rows=3, tokens=150)
    parts = [micro.rows.tolist() for micro in both.divide(lengths)(np.arange(6), ALONE)]
    assert parts == [[0], [1], [2, 3], [4, 5]]
    assert both.largest(lengths, lengths, per_step=6).tokens == 150


def test_a_resumed_run_keeps_the_chosen_size_and_a_typed_one_is_never_replaced():
    first, resumed, typed = MicroBatchLimit(), MicroBatchLimit(), MicroBatchLimit(tokens=50)
    first.take(256)
    for limit in (resumed, typed):
        limit.take(4096)
        limit.load_state_dict(first.state_dict())
    assert (resumed.tokens, typed.tokens) == (256, 50)
    assert typed.state_dict() == {}
    old = MicroBatchLimit()
    old.load_state_dict({"rows": 3})  # a checkpoint of an earlier version
    assert old.tokens == MicroBatchLimit().tokens
