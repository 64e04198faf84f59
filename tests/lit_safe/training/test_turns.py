"""Responses of several turns in training: their log-probs, their stored reference log-probs, and what doctor says."""

from types import SimpleNamespace

import pytest
import torch

from data.annotators.flags import Flags
from data.module import PreferenceData
from data.sources.trl import TRL
from lit_safe.doctor.checks import stop_token
from lit_safe.training.reference_cache import _keys
from lit_safe.types import IGNORE
from models.pair import PolicyReference
from models.sources import TinyLlama


def said(*texts):
    return [{"role": ("assistant", "user")[i % 2], "content": text} for i, text in enumerate(texts)]


USER = [{"role": "user", "content": "Name a colour."}]
ROWS = [
    {"prompt": USER, "chosen": said("Red.", "Another.", "Blue."), "rejected": said("Red.", "Another.", "No.")},
    # the same texts as two preferences over one turn
    {"prompt": USER, "chosen": said("Red."), "rejected": said("No.")},
    {"prompt": [*USER, *said("Red.", "Another.")], "chosen": said("Blue."), "rejected": said("No.")},
]


@pytest.fixture(scope="module")
def world():
    data = PreferenceData([TRL(ROWS)], Flags(), held_out=False, pairs_per_step=3, micro_batch_pairs=3, max_length=400)
    pair = PolicyReference(TinyLlama())
    data.connect(pair)
    data.setup()
    pair.load()
    ((batch,),) = data.train_dataloader()
    order = [data.tokenised.pair_id.tolist().index(i) for i in batch.pair_id.tolist()]
    return SimpleNamespace(data=data, pair=pair, batch=batch, place=[order.index(i) for i in range(3)])


def test_the_log_prob_of_a_conversation_is_the_sum_over_the_assistants_turns(world):
    with torch.no_grad():
        logp = world.pair.policy_logp(world.batch.sequences).reshape(3, 2)[world.place]
    torch.testing.assert_close(logp[0], logp[1, 0] + logp[2], rtol=1e-5, atol=1e-4)


def test_the_users_turn_is_read_by_the_model(world):
    sequences = world.batch.sequences
    first = 2 * world.place[0]
    start, end = sequences.cu_seqlens[first : first + 2].tolist()
    ids, target = sequences.input_ids[start:end], sequences.target[start:end]
    assert "Another." in world.data.decode(ids)
    assert "Another." not in world.data.decode(target[target != IGNORE])


def test_stored_reference_log_probs_tell_scored_turns_from_read_ones(world):
    sequences = world.batch.sequences
    keys = _keys(sequences)
    start = int((sequences.target != IGNORE).nonzero()[0])
    other = sequences.target.clone()
    other[start] = IGNORE
    changed = _keys(sequences._replace(target=other))
    assert (changed[0] != keys[0], changed[1:] == keys[1:]) == (True, True)


def test_doctor_finds_one_stop_token_at_the_end_of_every_scored_turn(world):
    def examined(target):
        batch = world.batch._replace(sequences=world.batch.sequences._replace(target=target))
        return stop_token(SimpleNamespace(batch=batch, stop_ids=world.data.stop_ids))

    target = world.batch.sequences.target
    assert examined(target).passed
    assert examined(target).seen.startswith("6 of 6 responses end with one")
    first = 2 * world.place[0]
    start, end = world.batch.sequences.cu_seqlens[first : first + 2].tolist()
    stops = [i for i in range(start, end) if int(target[i]) in world.data.stop_ids]
    assert len(stops) == 2
    without_first, without_last, with_context = target.clone(), target.clone(), target.clone()
    without_first[stops[0]] = IGNORE
    without_last[stops[1]] = IGNORE
    with_context[stops[0] + 1 : stops[1]] = world.batch.sequences.input_ids[stops[0] + 2 : stops[1] + 1]
    assert not examined(without_first).passed
    assert "1 were cut" in examined(without_last).seen
    assert not examined(with_context).passed
