import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.pack import pack_pairs, pack_rows
from data.schema import Message, PreferenceRow, SftRow
from data.split import assign
from data.tokeniser import Tokeniser
from lit_safe.hashing import uniform
from lit_safe.sequences import pack_sequences
from lit_safe.types import IGNORE

ids = st.lists(st.integers(0, 50), min_size=1, max_size=6).map(lambda x: np.array(x, np.int32))
NAN = float("nan")


def row(number, chosen="yes", rejected="no", costs=((1.0,), (-1.0,)), rewards=(2.0, NAN), prompt=None):
    prompt = prompt or (Message("user", f"question {number}"),)
    return PreferenceRow(f"toy:{number}", prompt, chosen, rejected, *rewards, *costs, "people")


def tokenise(rows, renderer, max_length=200, **options):
    tokeniser = Tokeniser(renderer, max_length, **options)
    return tokeniser.pairs(rows, assign(rows)), tokeniser.report


@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=5))
def test_a_packed_position_predicts_the_next_token_of_its_own_response_and_nothing_else(parts):
    packed = pack_sequences(*zip(*parts, strict=True))
    bounds = packed.cu_seqlens.tolist()
    assert packed.cu_seqlens.dtype == torch.int32
    assert bounds[-1] == len(packed.input_ids)
    for (prompt, response), start, end in zip(parts, bounds[:-1], bounds[1:], strict=True):
        assert packed.input_ids[start:end].tolist() == [*prompt, *response]
        assert packed.position[start:end].tolist() == list(range(end - start))
        assert packed.target[start:end].tolist() == [IGNORE] * (len(prompt) - 1) + [*response, IGNORE]


def test_chosen_and_rejected_alternate_and_labels_follow_their_pairs(renderer):
    rows = [row(0), row(1, "longer answer", "n", ((NAN,), (3.0,)))]
    pairs, _ = tokenise(rows, renderer)
    batch = pack_pairs(pairs, np.array([1, 0]), 0, pairs_in_step=7, seed=5)
    bounds = batch.sequences.cu_seqlens.tolist()
    decoded = [renderer.tokenizer.decode(batch.sequences.input_ids[a:b]) for a, b in itertools.pairwise(bounds)]
    assert [text.rpartition("\n")[2] for text in decoded] == [
        f"{answer}<|im_end|>" for answer in ("longer answer", "n", "yes", "no")
    ]
    assert ["question 1" in text for text in decoded] == [True, True, False, False]
    torch.testing.assert_close(batch.label.cost.chosen, torch.tensor([NAN, 1.0]), equal_nan=True)
    torch.testing.assert_close(batch.label.cost.rejected, torch.tensor([3.0, -1.0]))
    torch.testing.assert_close(batch.label.reward.rejected, torch.tensor([NAN, NAN]), equal_nan=True)
    assert batch.response_length.chosen.tolist() == [14, 4]
    assert batch.pairs_in_step == 7
    assert batch.prompt_id.tolist() == pairs.prompt_id[[1, 0]].tolist()


def test_one_constraint_is_a_vector_and_several_a_matrix(renderer):
    one, _ = tokenise([row(0)], renderer)
    two, _ = tokenise([row(0, costs=((1.0, -2.0), (0.5, 0.0)))], renderer)
    assert pack_pairs(one, np.array([0]), 0, 1, 0).label.cost.chosen.shape == (1,)
    assert pack_pairs(two, np.array([0]), 0, 1, 0).label.cost.chosen.tolist() == [[1.0, -2.0]]


def test_filler_rows_are_absent_finite_and_the_smallest_there_are(renderer):
    pairs, _ = tokenise([row(0, costs=((NAN,), (NAN,)))], renderer)
    alone, filled = (pack_pairs(pairs, np.array([0]), fillers, 1, 0) for fillers in (0, 2))
    assert filled.present.tolist() == [True, False, False]
    assert filled.label.cost.chosen[1:].tolist() == [0, 0]
    size = len(alone.sequences.input_ids)
    assert filled.sequences.input_ids[:size].equal(alone.sequences.input_ids)
    assert filled.sequences.cu_seqlens.tolist()[3:] == [size + 2, size + 4, size + 6, size + 8]
    only_fillers = pack_pairs(pairs, np.zeros(0, np.int64), 1, 1, 0)
    assert only_fillers.present.tolist() == [False]
    assert only_fillers.sequences.target.tolist() == [0, IGNORE] * 2


def test_a_pairs_draw_is_a_hash_of_seed_and_pair(renderer):
    pairs, _ = tokenise([row(i) for i in range(20)], renderer)
    draws = {seed: pack_pairs(pairs, np.arange(20), 0, 20, seed).label.draw for seed in (0, 1)}
    exact = [uniform("draw", 0, int(i)) for i in pairs.pair_id]
    torch.testing.assert_close(draws[0], torch.tensor(exact), atol=2e-7, rtol=0)
    assert (draws[0] < 1).all()
    assert not draws[0].equal(draws[1])
    backwards = pack_pairs(pairs, np.arange(20)[::-1], 0, 20, 0).label.draw
    assert backwards.flip(0).equal(draws[0])


def test_truncation_takes_the_prompts_start_and_leaves_the_response(renderer):
    (whole, _), (cut, report) = (tokenise([row(0, "a" * 30, "b" * 20)], renderer, size) for size in (200, 50))
    assert cut.chosen.at(0).tolist() == whole.chosen.at(0).tolist()
    assert cut.prompt.at(0).tolist() == whole.prompt.at(0)[-19:].tolist()
    assert report.cut == {"the prompt cut": 1}
    assert "1 rows with the prompt cut (toy:0)" in report.lines()


def test_a_response_that_does_not_fit_is_cut_and_is_not_taught_to_stop_there(renderer):
    pairs, report = tokenise([row(0, "a" * 300, "b")], renderer, 100)
    chosen, stop = pairs.chosen.at(0), renderer.stop_id
    assert len(pairs.prompt.at(0)) == renderer.opening
    assert renderer.tokenizer.decode(chosen) == "a" * (100 - renderer.opening)
    assert stop not in chosen
    assert pairs.rejected.at(0)[-1] == stop
    assert list(report.cut) == ["a response cut (no stop token is scored there)", "the prompt cut"]


def test_pairs_that_truncation_makes_equal_are_dropped_counted_and_named(renderer):
    pairs, report = tokenise([row(0, "a" * 200 + "b", "a" * 200 + "c"), row(1)], renderer, 100)
    assert pairs.name == ("toy:1",)
    (reason,) = report.dropped
    assert reason.startswith("both responses are the same tokens")
    assert report.named[reason] == ["toy:0"]


def test_a_row_that_cannot_be_rendered_stops_or_is_counted(renderer):
    rows = [row(0), row(1, chosen="")]
    with pytest.raises(ValueError, match=r"row toy:1, column 'chosen'"):
        tokenise(rows, renderer)
    pairs, report = tokenise(rows, renderer, on_bad_row="skip")
    assert pairs.name == ("toy:0",)
    assert sum(report.dropped.values()) == 1


def test_a_length_without_room_is_refused(renderer):
    with pytest.raises(ValueError, match="leaves no room"):
        Tokeniser(renderer, renderer.opening + 1)


def test_single_responses_pack_like_pairs(renderer):
    rows = [SftRow("toy:0", (Message("user", "q"),), "yes"), SftRow("toy:1", "The sky", " is blue")]
    tokenised = Tokeniser(renderer, 100).rows(rows, assign(rows))
    batch = pack_rows(tokenised, np.array([0, 1]), 1, tokens_in_step=13)
    assert batch.present.tolist() == [True, True, False]
    assert (batch.sequences.target >= 0).sum() == 4 + 9 + 1
    assert batch.tokens_in_step == 13
