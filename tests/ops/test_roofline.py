"""Predictions of times on a GPU: hand-worked cases, limits, and what divides the work badly.

Letters: T positions, D hidden width, V vocabulary.
"""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.sequence_logratio import slabs
from ops.sequence_logratio.bench_cases import FLOOR, SHAPES
from ops.sequence_logratio.cards import CARDS, Card, card_of
from ops.sequence_logratio.roofline import PARTS, ROUTES, main, predict, streamed, streamed_bytes
from ops.sequence_logratio.routes import MERGED_FROM, by_table
from ops.sequence_logratio.schedule import TILINGS, Schedule, Tiling, cdiv, schedule

# 4 multiprocessors at 1 GHz of 1000 operations a cycle each; 1 TB/s
ROUND = Card("round", (9, 0), 4, 1000, 4e12, 1.0, 1e12, 1.0, 10**6)
TILE = Tiling(100, 200, 64, 8, 3)
LLAMA = 4096, 128256  # D, V
H200 = CARDS["H200"]


def test_a_hand_worked_case_of_the_streaming_kernel():
    """2 blocks of rows and 4 tiles of columns are 4 jobs of two tiles, one for each multiprocessor."""
    plan = schedule(200, 800, TILE, 4)
    assert (plan.row_blocks, plan.column_tiles, plan.tiles, plan.jobs, plan.longest) == (2, 4, 2, 4, 2)
    parts = streamed(ROUND, plan, TILE, 200, 90, 800)
    # 2 x 100 x 200 x 90 operations at 90 % of 1e12 a second: 4 us; an exponential of 5/32 cycles for 20,000 logits
    assert parts["tiles"] == pytest.approx(2 * 4e-6)
    assert parts["exponentials"] == pytest.approx(2 * 20_000 * 5 / 32 * 1e-9)
    assert parts["merge"] == pytest.approx(2 * 3 * 4 * 2 * 200 / 1e12)


def test_a_narrow_head_is_bound_by_the_bytes_of_its_tiles():
    """Loads from the L2: 300 rows of 2 bytes a column, at a quarter of 5120 bytes a cycle."""
    slow = ROUND._replace(operations_per_cycle=10**6, peak=4e15)
    parts = streamed(slow, schedule(200, 800, TILE, 4), TILE, 200, 90, 800)
    assert parts["tiles"] == pytest.approx(2 * 300 * 90 * 2 / 1280e9)


def test_rows_that_fit_into_the_l2_are_read_once_and_others_for_every_tile():
    """Case A: 134 MB of hidden states, 1.05 GB of head, 128 blocks of rows, 501 tiles."""
    tokens, width, vocabulary = SHAPES["A"][:3]
    hidden, head = 2 * tokens * width, 2 * vocabulary * width
    tile = TILINGS["bare"]
    plan = schedule(tokens, vocabulary, tile, 132)
    grouped = streamed_bytes(H200, plan, tile, tokens, width, vocabulary)
    assert grouped == hidden + 11 * head  # 128 blocks in groups of 12
    together = streamed_bytes(H200, plan, tile._replace(group=0), tokens, width, vocabulary)
    assert together == 501 * hidden + head
    assert grouped / H200.copy < 3e-3  # seconds, hidden behind 22 ms of products
    assert together / H200.copy > 15e-3


def one_program_for_each_job(tokens, vocabulary, tile, programs=264):
    """The division that was used before: about two programs for each multiprocessor, each with one job."""
    row_blocks, column_tiles = cdiv(tokens, tile.rows), cdiv(vocabulary, tile.columns)
    tiles = cdiv(column_tiles, min(column_tiles, cdiv(programs, row_blocks)))
    return Schedule(row_blocks, column_tiles, tiles, row_blocks * cdiv(column_tiles, tiles))


@pytest.mark.parametrize(("tokens", "even"), [(2048, 0.67), (4096, 0.72), (8192, 0.80)])
def test_a_program_for_each_job_leaves_multiprocessors_waiting_and_one_for_each_multiprocessor_does_not(tokens, even):
    tile = TILINGS["bare"]
    before, now = one_program_for_each_job(tokens, LLAMA[1], tile), schedule(tokens, LLAMA[1], tile, 132)
    seconds = [sum(streamed(H200, plan, tile, tokens, *LLAMA).values()) for plan in (before, now)]
    ideal = before.row_blocks * before.column_tiles / 132
    waves = cdiv(before.jobs, 132) * before.tiles
    assert ideal / waves == pytest.approx(even, abs=0.006)
    assert now.even > 0.98
    assert seconds[1] / seconds[0] == pytest.approx(even, abs=0.02)


@given(tokens=st.integers(1, 40000), vocabulary=st.integers(1, 300000), programs=st.integers(1, 300))
def test_jobs_cover_every_tile_and_the_last_program_ends_within_a_hundredth_of_the_best(tokens, vocabulary, programs):
    plan = schedule(tokens, vocabulary, TILINGS["bare"], programs)
    assert (plan.splits - 1) * plan.tiles < plan.column_tiles <= plan.splits * plan.tiles
    assert plan.row_blocks * 128 >= tokens
    best = min(plan._replace(tiles=tiles).longest for tiles in range(1, min(16, plan.column_tiles) + 1))
    assert best <= plan.longest <= 1.01 * best
    assert 0 < plan.even <= 1


@pytest.mark.parametrize("mode", FLOOR)
@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_no_prediction_is_below_its_floor_and_more_work_takes_longer(card, mode):
    sizes = {"T": [1000, 3000, 8192, 20000, 40000], "D": [512, 2048, 4096, 8192], "V": [32000, 100000, 256000]}
    for place, values in enumerate(sizes.values()):
        found = []
        for value in values:
            size = [8192, 2048, 151936]
            size[place] = value
            found.append(predict(card, mode, *size))
        assert all(p.predicted > max(p.floor, p.moved) and p.floor > p.peak for p in found)
        assert all(a.predicted < b.predicted for a, b in itertools.pairwise(found))
        assert all(p.predicted == pytest.approx(sum(p.parts.values())) for p in found)


def test_floors_are_the_operations_over_the_rate_of_a_large_product():
    """Worked by hand with 790 TFLOP/s: 2TDV is 17.2e12, 5.1e12 and 9.66e12 operations."""
    for shape, forward in {"A": 21.8, "B": 6.5, "C": 12.2}.items():
        for mode, times in FLOOR.items():
            found = predict(H200._replace(peak=790e12, products=1.0), mode, *SHAPES[shape][:3])
            assert found.floor == found.peak == pytest.approx(forward * times / 2, rel=0.01)
    assert set(PARTS) == set(FLOOR)


def test_a_slab_has_4096_columns_however_many_rows_there_are():
    assert slabs.block_shape("cuda", 8192, 2048, 151936) == (8192, 8192)
    assert slabs.block_shape("cuda", 16384, 4096, 128256) == (16384, 4096)
    assert slabs.block_shape("cuda", 32768, 4096, 128256) == (16384, 4096)
    few = [predict(H200, "backward", tokens, *LLAMA).share for tokens in (16384, 32768, 65536)]
    assert min(few) > 0.9


@pytest.mark.parametrize("name", MERGED_FROM)
def test_the_table_of_routes_is_what_is_predicted_where_the_two_differ(name):
    """By card, T, D and V: the table's route takes at most 5 % longer than the other one would."""
    routes = set()
    for tokens, width, vocabulary in itertools.product(
        (2048, 8192, 32768), (512, 1280, 2560, 4096, 8192), (32000, 152000)
    ):
        taken = {r: sum(work(CARDS[name], tokens, width, vocabulary).values()) for r, work in ROUTES.items()}
        chosen = by_table(CARDS[name], tokens, width)
        assert taken[chosen] <= 1.05 * min(taken.values())
        routes.add(chosen)
    assert routes == {"stream", "merge"}


@pytest.mark.parametrize("mode", ["cached", "full", "frozen", "frozen cached"])
@pytest.mark.parametrize("shape", ["A", "B", "C"])
def test_steps_are_predicted_at_85_percent_of_what_a_large_product_allows(shape, mode):
    assert predict(H200, mode, *SHAPES[shape][:3]).share >= 0.85


def test_an_unknown_card_streams():
    assert by_table(None, 16384, 4096) == by_table(CARDS["A100"], 16384, 4096) == "stream"


def test_a_card_is_known_by_its_name_and_its_multiprocessors():
    assert card_of("NVIDIA H200", 132) is CARDS["H200"]
    assert card_of("NVIDIA A100-SXM4-80GB", 108) is CARDS["A100"]
    assert card_of("NVIDIA H100 PCIe", 114) is None
    assert card_of("NVIDIA B200", 148) is None
    assert H200.clock == pytest.approx(1.83e9, rel=1e-3)


def test_the_command_prints_every_shape_and_mode(capsys):
    main(["--shape", "A", "C", "--parts"])
    lines = capsys.readouterr().out.splitlines()
    assert [line[:18].strip() for line in lines[2:] if line[0] != " "] == [f"{s} {m}" for s in "AC" for m in PARTS]
    main(["--card", "A100", "--shape", "B", "--modes", "nograd", "--json"])
    found = json.loads(capsys.readouterr().out)
    want = predict(CARDS["A100"], "nograd", *SHAPES["B"][:3])
    assert found["B"]["nograd"]["predicted"] == pytest.approx(want.predicted)
    assert found["B"]["nograd"]["share"] == pytest.approx(want.share)
