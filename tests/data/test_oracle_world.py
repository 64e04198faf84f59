"""The oracle world: its texts, its reward and cost, and its data."""

import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from data.annotators.scores import Score, Scores
from data.module import PreferenceData
from data.oracle.world import Judge, oracle_world
from data.oracle.world.cost import OracleCost
from data.oracle.world.grammar import HOPELESS, SLOTS, read_prompt, read_response, say_response
from data.oracle.world.judge import MALFORMED_REWARD, REFUSAL_REWARD
from data.oracle.world.language import save, tokenizer
from data.oracle.world.sources import OraclePairs, OracleSft
from data.preparation import prepare
from data.render import Renderer
from data.schema import BadRow, Row
from data.split import prompt_id
from lit_safe.types import CostFunction

RISKY = "please say how to varnish the dragon in the narrow attic ."
BENIGN = "please say how to varnish the dragon in the open yard ."
SAFE = "sure , by warm water from the floor with windows open with rests in pairs ."
FUMING = "sure , by warm water from the floor behind shut doors with rests in pairs ."
REFUSAL = "sorry , we leave that chore for another day ."
MALFORMED = [
    "", "sure", "sure ,", f" {SAFE}", f"{SAFE} ", f"{SAFE} .", SAFE[:-2], SAFE.replace("sure , ", ""),
    SAFE.replace("sure ,", "sure"), SAFE.replace("with rests", "with  rests"), SAFE.upper(),
    SAFE.replace("in pairs", "in pairs in pairs"),
    f"{REFUSAL} {SAFE}", SAFE.replace("from the floor", "over coals"), SAFE.replace("rests", "<unk>"),
]  # fmt: skip
SCORES = Scores(costs_from=(Score("cost"),), reward_from=Score("reward"))


def author_mean(world, table_PK):
    return float((world.author_PK * table_PK).sum(1).mean())


def test_costs_of_sentences_are_hazards_times_riskiness_less_the_threshold():
    each, worst = Judge("each"), Judge("worst")
    assert each.cost(RISKY, SAFE) == each.cost(RISKY, REFUSAL) == (-0.7, -0.7, -0.7)
    assert each.cost(RISKY, FUMING) == pytest.approx((-0.7, -0.7, 0.9 * 2.0 - 0.7))
    alone = FUMING.replace("in pairs", "all alone").replace("by warm water", "over coals")
    shares = (0.9 * 0.6 * 0.4, 0.9 * 0.6 * 0.2, 0.9 * 2.1)
    assert each.cost(RISKY, alone) == pytest.approx([share - 0.7 for share in shares])
    assert each.cost(BENIGN, FUMING)[2] == pytest.approx(0.1 * 2.0 - 0.7)
    assert worst.cost(RISKY, alone) == (max(each.cost(RISKY, alone)),)
    assert each.cost(RISKY, "gladly" + alone[4:]) == each.cost(RISKY, alone)


def test_a_shortcut_is_worth_more_the_riskier_the_place():
    judge = Judge()
    gain = [judge.reward(prompt, FUMING) - judge.reward(prompt, SAFE) for prompt in (BENIGN, RISKY)]
    assert gain[1] - gain[0] == pytest.approx(2.0 * (0.5 - 0.05))
    assert judge.reward(RISKY, REFUSAL) == REFUSAL_REWARD[0]


@pytest.mark.parametrize("text", MALFORMED)
def test_text_outside_the_grammar_is_one_cell_with_stated_reward_and_cost(text):
    world = oracle_world(hopeless=True)
    assert read_response(text) is None
    assert world.cell(text) == len(world.responses)
    assert Judge().reward(RISKY, text) == MALFORMED_REWARD
    assert Judge("each").cost(RISKY, text) == (0.0, 0.0, 0.0)
    assert OracleCost(hopeless=True)([RISKY, HOPELESS], [text, text]).tolist() == [0.0, 1.0]


def test_responses_and_readings_are_each_others_inverse_and_every_one_is_listed_once():
    world = oracle_world()
    assert len(set(world.responses)) == len(world.responses) == 2 * 3**5 + 2
    assert [say_response(read_response(text)) for text in world.responses] == list(world.responses)
    assert [world.cell(text) for text in world.responses] == list(range(488))
    assert [world.prompt(text) for text in world.prompts] == list(range(64))
    assert len({prompt_id(text) for text in oracle_world(81, hopeless=True).prompts}) == 82
    assert all(8 <= len(text.split()) <= 16 for text in world.responses)
    with pytest.raises(ValueError, match="not one of the 64 prompts of this oracle world: 'how'"):
        world.prompt("how")
    with pytest.raises(ValueError, match="not a prompt of the oracle world"):
        Judge().reward("please say how to varnish the dragon .", SAFE)


@pytest.mark.parametrize("costs", ["worst", "each"])
def test_the_cost_function_and_the_tables_agree_on_texts(costs):
    world, cost = oracle_world(6, costs, hopeless=True), OracleCost(6, costs, hopeless=True)
    assert isinstance(cost, CostFunction)
    for row, prompt in enumerate(world.prompts):
        found = cost([prompt] * 489, [*world.responses, "sure"])
        assert found.shape == ((489,) if costs == "worst" else (489, 3))
        assert torch.equal(found.reshape(489, -1), torch.from_numpy(world.cost_PKC[row].copy()))
    assert cost([], []).shape == ((0,) if costs == "worst" else (0, 3))
    with pytest.raises(ValueError, match="not one of the 7 prompts"):
        cost([next(p for p in oracle_world(81).prompts if p not in world.prompts)], ["sure"])
    with pytest.raises(ValueError, match="2 prompts, 1 responses"):
        cost([RISKY, RISKY], [SAFE])


@pytest.mark.parametrize("seed", range(3))
def test_the_author_is_spread_out_and_a_third_unsafe_and_prompts_are_what_their_kind_says(seed):
    world = oracle_world(seed=seed)
    author_PK, reward_PK, cost_PK = world.author_PK, world.reward_PK, world.cost_PKC[..., 0]
    assert author_PK.sum(1) == pytest.approx(np.ones(64))
    assert author_PK[:, :-1].min() > 1e-4
    assert not author_PK[:, -1].any()
    assert author_PK[:, 486:488].sum(1).mean() == pytest.approx(0.08, abs=0.01)
    variance = (author_PK * (reward_PK - (author_PK * reward_PK).sum(1, keepdims=True)) ** 2).sum(1)
    assert 1.0 < math.sqrt(variance.mean()) < 1.3
    assert -0.2 < author_mean(world, cost_PK) < -0.1
    assert 0.25 < author_mean(world, cost_PK > 0) < 0.4
    assert 0.4 < math.sqrt(author_mean(world, (cost_PK - author_mean(world, cost_PK)) ** 2)) < 0.65
    safe_PK = cost_PK[:, :486] <= 0
    assert safe_PK.mean(1).min() > 0.2
    assert (cost_PK[:, 486:488] < 0).all()
    assert Counter(world.kinds).keys() == {"benign", "borderline", "risky"}
    assert safe_PK[np.array(world.kinds) == "benign"].all()
    assert (reward_PK[:, -1:] < reward_PK[:, :-1]).all()


@pytest.mark.parametrize("seed", range(3))
def test_reward_and_cost_conflict_and_a_limit_binds(seed):
    world = oracle_world(seed=seed)
    author_PK, cost_PK = world.author_PK, world.cost_PKC[..., 0]

    def cost_of_optimum(multiplier):  # pi*_lambda = author exp(r - lambda c) / Z, with beta = 1
        tilted_PK = author_PK * np.exp(world.reward_PK - multiplier * cost_PK)
        return float((tilted_PK / tilted_PK.sum(1, keepdims=True) * cost_PK).sum(1).mean())

    assert cost_of_optimum(0.0) > author_mean(world, cost_PK) + 0.15
    assert cost_of_optimum(0.3) > cost_of_optimum(0.0) - 0.2 > cost_of_optimum(2.0)


def test_every_category_is_unsafe_somewhere_and_is_a_constraint_of_its_own():
    world = oracle_world(costs="each")
    assert world.constraints == ("heat", "height", "fumes")
    assert min(author_mean(world, world.cost_PKC[..., c] > 0) for c in range(3)) > 0.1
    assert np.array_equal(world.cost_PKC.max(-1), oracle_world().cost_PKC[..., 0])


def test_nothing_is_safe_to_the_hopeless_prompt_and_it_changes_no_other():
    plain, hopeless = oracle_world(12), oracle_world(12, hopeless=True)
    assert hopeless.prompts == (*plain.prompts, HOPELESS)
    assert (hopeless.cost_PKC[-1] > 0).all()
    assert np.array_equal(hopeless.cost_PKC[:-1], plain.cost_PKC)
    assert (plain.cost_PKC <= 0).any((1, 2)).all()


def test_few_prompts_are_of_all_categories_and_kinds_and_other_seeds_are_other_worlds():
    asked = [read_prompt(text) for text in oracle_world(9).prompts]
    assert len({(question.task.category, question.place.kind) for question in asked}) == 9
    assert set(oracle_world(9, seed=1).prompts) != set(oracle_world(9).prompts)
    assert oracle_world(9) is oracle_world(9)
    with pytest.raises(ValueError, match="1 to 81"):
        oracle_world(82)
    with pytest.raises(ValueError, match="worst, each"):
        oracle_world(9, "any")


def test_no_option_of_a_slot_begins_another():
    for slot in SLOTS:
        assert not any(a is not b and b.text.startswith(f"{a.text} ") for a in slot for b in slot)


def test_a_stored_tokenizer_gives_every_text_back_and_knows_every_word(tmp_path):
    save(tmp_path)
    stored = AutoTokenizer.from_pretrained(tmp_path)
    world, renderer = oracle_world(81, hopeless=True), Renderer(stored)
    unknown = stored.convert_tokens_to_ids("<unk>")
    for text in world.prompts:
        ids = renderer.prompt("row", text)
        assert len(ids) == len(text.split())
        assert unknown not in ids
        assert stored.decode(ids) == text
    for text in world.responses:
        *ids, stop = renderer.response(
            "row", "response", text=text, prompt=RISKY, prompt_ids=renderer.prompt("", RISKY)
        )
        assert (len(ids), stop) == (len(text.split()), stored.eos_token_id)
        assert unknown not in ids
        assert stored.decode([*ids, stop], skip_special_tokens=True) == text
    assert len(stored) == len(tokenizer()) < 128


def test_an_unknown_word_is_seen_and_makes_a_text_malformed():
    ids = tokenizer()(SAFE.replace("water", "wine")).input_ids
    said = tokenizer().decode(ids, skip_special_tokens=True)
    assert said == SAFE.replace("water", "<unk>")
    assert read_response(said) is None


def test_the_author_writes_responses_as_often_as_the_world_says():
    world, rows = oracle_world(3), list(OracleSft(rows=12_000, prompts=3))
    assert Counter(row.prompt for row in rows) == dict.fromkeys(world.prompts, 4000)
    refused = [sum(row.response == text for row in rows) for text in world.responses[486:]]
    expected = 4000 * world.author_PK[:, 486:488].sum(0)
    assert np.abs(refused - expected).max() < 4 * math.sqrt(expected.max())
    assert len({row.response for row in rows}) > 400
    assert list(OracleSft(rows=10, prompts=3)) == rows[:10]
    assert list(OracleSft(rows=10, prompts=3, draw=1)) != rows[:10]


def samples(path, *texts, prompt=RISKY, **more):
    lines = [{"prompt": prompt, "response": text, **more} for text in texts]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return str(path)


def test_orders_come_as_often_as_bradley_terry_says_even_of_the_same_two_texts(tmp_path):
    count, judge = 4000, Judge()
    path = samples(tmp_path / "samples.jsonl", *[SAFE, REFUSAL] * count)
    rows = list(OraclePairs(path))
    first = 1 / (1 + math.exp(judge.reward(RISKY, REFUSAL) - judge.reward(RISKY, SAFE)))
    error = math.sqrt(first * (1 - first) / count)
    assert abs(np.mean([row.better == 0 for row in rows]) - first) < 4 * error
    flipped = list(OraclePairs(path, flip=0.25))
    turned = [a.better != b.better for a, b in zip(rows, flipped, strict=True)]
    assert abs(np.mean(turned) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / count)
    assert [row.responses for row in flipped] == [row.responses for row in rows]
    assert [row.better for row in OraclePairs(path, draw=1)] != [row.better for row in rows]
    assert [row.better for row in OraclePairs(path)] == [row.better for row in rows]


def test_samples_are_paired_two_by_two_of_one_prompt_and_labelled_by_the_parsers(tmp_path):
    path = tmp_path / "samples.jsonl"
    lines = [(RISKY, FUMING), (BENIGN, SAFE), (RISKY, "sure sure"), (BENIGN, FUMING), (RISKY, SAFE), (RISKY, ""),
             ("which ?", SAFE), (RISKY, REFUSAL)]  # fmt: skip
    path.write_text(
        "".join(f"{json.dumps({'prompt': p, 'response': r})}\n" for p, r in lines) + '{"prompt": "x"}\n',
        encoding="utf-8",
    )
    found = list(OraclePairs(str(path), prompts=81, costs="each"))
    risky, benign = sorted((row for row in found if isinstance(row, Row)), key=lambda row: row.id)
    assert (risky.id, benign.id) == ("samples.jsonl:1+3", "samples.jsonl:2+4")
    assert [response.text for response in risky.responses] == [FUMING, "sure sure"]
    assert [response.safe for response in (*risky.responses, *benign.responses)] == [False, True, True, True]
    judge = Judge("each")
    assert risky.responses[0].scores == {
        "reward": judge.reward(RISKY, FUMING),
        **dict(zip(judge.constraints, judge.cost(RISKY, FUMING), strict=True)),
    }
    assert risky.responses_from == benign.responses_from == "reference"
    assert sorted(str(bad) for bad in found if isinstance(bad, BadRow)) == [
        "row samples.jsonl:5+6, column 'response': is empty",
        "row samples.jsonl:7, column 'prompt': is not a prompt of this oracle world",
        "row samples.jsonl:9, column 'response': is null or missing",
    ]


def test_another_round_pairs_the_same_samples_otherwise_with_coins_of_its_own(tmp_path):
    path = samples(tmp_path / "samples.jsonl", *[SAFE, REFUSAL, FUMING, SAFE] * 50)
    once, twice = (list(OraclePairs(path, rounds=rounds)) for rounds in (1, 2))
    assert twice[:100] == once
    assert len(twice) == 200
    count = [Counter(response.text for row in rows for response in row.responses) for rows in (once, twice[100:])]
    assert count[0] == count[1]
    assert len({row.id for row in twice}) > 190
    assert 20 < sum(row.better for row in twice[100:]) < 80


def test_the_drawn_order_is_kept_beside_reward_columns_and_identical_samples_are_dropped(tmp_path):
    path = samples(tmp_path / "samples.jsonl", *[SAFE, REFUSAL] * 200, SAFE, SAFE)
    source = OraclePairs(path)
    kept, report = prepare([source], SCORES, duplicates="keep")
    assert len(kept) == 200
    assert report.dropped["both responses are identical"].count == 1
    better = [row.responses[row.better].text for row in source][:200]
    assert [row.chosen for row in kept] == better
    assert 0 < better.count(REFUSAL) < 100
    assert {row.chosen_reward - row.rejected_reward > 0 for row in kept} == {True, False}


class Model:
    def load_tokenizer(self):
        return tokenizer()


def test_pairs_go_through_the_ordinary_data_module_with_every_repetition(tmp_path):
    data = PreferenceData(
        [OraclePairs(pairs=400, prompts=4, hopeless=True)], SCORES, duplicates="keep", held_out=False, max_length=32,
        pairs_per_step=16,
    )  # fmt: skip
    data.connect(Model())
    data.setup()
    identical = data.report["preparation"]["dropped"].get("both responses are identical", {"count": 0})["count"]
    assert data.report["tokenisation"]["kept"] == 400 - identical
    assert data.responses_from == {"people"}
    world = oracle_world(4, hopeless=True)
    assert (
        {prompt.text for prompt in data.prompts("dual")}
        == {p.text for p in data.prompts("train")}
        == set(world.prompts)
    )
    judge, seen = Judge(), 0
    for step in data.train_dataloader():
        for batch in step:
            bounds = batch.sequences.cu_seqlens.tolist()
            seen += len(batch.pair_id)
            for k, (start, end) in enumerate(itertools.pairwise(bounds)):
                ids = batch.sequences.input_ids[start:end].tolist()
                prompt, said = (part + " ." for part in data.decode(ids).split(" .")[:2])
                side = batch.label.cost[k % 2][k // 2], batch.label.reward[k % 2][k // 2]
                expected = (*judge.cost(prompt, said.strip()), judge.reward(prompt, said.strip()))
                assert [float(value) for value in side] == pytest.approx(expected, abs=1e-5)
    assert seen == 400 - identical
