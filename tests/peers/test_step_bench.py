"""The step benchmark counts what is computed, compares equal losses, and divides the right way round, without TRL."""

import json
import math

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from lit_safe.objectives import ConstrainedDPO
from lit_safe.types import Annotation, Pair
from models.sources import TinyLlama
from tests.peers.step import ours
from tests.peers.step.cases import ROBUST, SAFE, UNSAFE, Case, cases, weights
from tests.peers.step.count import Operations
from tests.peers.step.job import SIDES, Job
from tests.peers.step.report import lines, of_case, of_side

ANSWERS = ("Six hours of light.", "The Loire.", "391.", "Wipe the chain dry.", "Buenos días.", "Jupiter.", "Swift.")


@pytest.mark.parametrize("multiplier", [0.0, 0.25, 1.0, 3.0])
def test_two_losses_of_trl_add_up_to_that_of_c_dpo(multiplier):
    margin_B = torch.linspace(-40, 40, 9, dtype=torch.float64)
    zero_B = torch.zeros_like(margin_B)
    label = Annotation(reward=Pair(zero_B, zero_B), cost=Pair(zero_B + SAFE, zero_B + UNSAFE))
    loss_B = ConstrainedDPO(beta=0.1)(Pair(margin_B, zero_B), label, torch.tensor(multiplier, dtype=torch.float64)).loss
    sigmoid_B, flipped_B = (-torch.nn.functional.logsigmoid(sign * 0.1 * margin_B) for sign in (1, -1))
    robust_B = ((1 - ROBUST) * sigmoid_B - ROBUST * flipped_B) / (1 - 2 * ROBUST)  # TRL 1.16, dpo_trainer.py
    of_sigmoid, of_robust = weights(multiplier)
    torch.testing.assert_close(loss_B, of_sigmoid * sigmoid_B + of_robust * robust_B, rtol=1e-12, atol=1e-12)


@pytest.fixture
def model():
    shape = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, **heads, attn_implementation="eager"))


def test_operations_are_those_of_torchs_own_counter(model):
    counted = Operations()
    counted.watch(model)
    with FlopCounterMode(display=False) as expected:
        hidden = model.model(torch.arange(14).reshape(2, 7)).last_hidden_state.flatten(0, 1)
        counted.head(hidden, 50)
        model.lm_head(hidden).sum().backward()
    assert counted.done == expected.get_total_flops()
    before = counted.done
    with torch.no_grad():
        model.model(torch.arange(14).reshape(2, 7))
    assert counted.done - before == (before - 3 * 2 * 14 * 16 * 50) / 3, "no backward pass, and no head"


def test_a_forward_pass_that_checkpointing_repeats_counts_twice(model):
    done = []
    for repeats in (False, True):
        if repeats:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.train()
        counted = Operations()
        counted.watch(model)
        model.model(torch.arange(14).reshape(2, 7)).last_hidden_state.sum().backward()
        done.append(counted.done)
    assert done[1] == pytest.approx(done[0] * 4 / 3)


def measured(seconds, ahead, operations, peak):
    runs = [
        {
            "ahead": ahead,
            "ahead_operations": 10.0,
            "seconds": [9.0, s],
            "losses": [0.5, s],
            "operations": [9.0, operations],
        }
        for s in seconds
    ]
    return {"runs": runs, "imported_bytes": 2**30, "peak_bytes": peak * 2**30}


def test_a_ratio_above_one_means_that_lit_safe_is_faster():
    found = {
        name: of_side([measured([seconds], 0.0, operations, peak)] * 2, tokens=60.0, matmul=100.0, whole=False)
        for name, seconds, operations, peak in [
            ("trl default", 6.0, 30.0, 4),
            ("lit_safe default", 2.0, 15.0, 1),
            ("trl best", 4.0, 20.0, 5),
            ("lit_safe best", 1.0, 10.0, 2),
        ]
    }
    assert found["trl default"]["tokens_per_second"] == 10
    assert found["trl default"]["share_of_matmul_peak"] == 0.05
    assert found["trl default"]["peak_beyond_imports_gib"] == 3
    case = of_case(Case("pairs", [], 8), found)
    assert (case["ratio_trl_default"], case["ratio_trl_best"]) == (3, 4)
    assert (case["counted_ratio_default"], case["counted_ratio_best"]) == (2, 2)
    assert (case["share_of_counted_default"], case["share_of_counted_best"]) == (1.5, 2)
    assert case["memory_ratio_trl_default"] == 0.25
    assert case["max_loss_difference"] == 5, "the last losses, here 6 and 1, are furthest apart"
    assert "out of the box 3.00 (counted 2.00)" in lines({"cases": [case]})[-1]


def test_a_sweep_is_timed_as_a_whole_with_the_scoring_of_the_reference():
    found = of_side([measured([1.0, 3.0], 4.0, 5.0, 1)], tokens=60.0, matmul=1.0, whole=True)
    assert found["step_seconds"] == (2 * 4 + 2 * 9 + 1 + 3) / 4
    assert found["counted_operations"] == (2 * 10 + 2 * 9 + 2 * 5) / 4
    assert found["ahead_seconds"] == 8


def test_rows_come_from_files_or_are_chained(tmp_path):
    labels = {"response_1": "No.", "safer_response_id": 0}
    rows = [{"prompt": f"q{i}", "response_0": answer, **labels} for i, answer in enumerate((*ANSWERS, ANSWERS[0]))]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    before = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d\n\nHuman: e\n\nAssistant: "
    long = [
        {"chosen": before + "yes", "rejected": before + "no"},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": before},
    ]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, long)), encoding="utf-8")
    pairs, turns, sweep = cases(tmp_path / "pairs.jsonl", tmp_path / "long.jsonl", 64, 128, 99)
    assert [row["chosen"][0]["content"] for row in pairs.records] == list(ANSWERS), "each answer once"
    assert sweep.records == pairs.records
    assert [turn["content"] for turn in turns.records[0]["prompt"]] == list("abcde")
    assert len(turns.records) == 1, "a transcript with earlier answers"
    chained = cases(tmp_path / "pairs.jsonl", None, 64, 128, 99)[1].records
    assert [turn["content"] for turn in chained[2]["prompt"]] == ["q0", ANSWERS[0], "q1", ANSWERS[1], "q2"]


def test_our_side_scores_the_reference_once_for_a_sweep_and_computes_less_at_its_best(tmp_path):
    source = TinyLlama(layers=2, width=32)
    source.load_model().save_pretrained(tmp_path / "model")
    source.load_tokenizer().save_pretrained(tmp_path / "model")
    sides = [[{"role": "assistant", "content": text}] for text in ANSWERS]
    records = [
        {
            "prompt": [{"role": "user", "content": f"Question {i}?"}],
            "chosen": sides[i % 7],
            "rejected": sides[(i + 1) % 7],
        }
        for i in range(14)
    ]
    found = {}
    for name in ("lit_safe default", "lit_safe best"):
        side, options = SIDES[name]
        job = Job(side, options, str(tmp_path / "model"), records, [], 64, (0.25, 1.0), 2, 2, 1, str(tmp_path / name))
        found[name] = ours.train(job)
    plain, best = found.values()
    assert [run.ahead_operations > 0 for run in (*plain, *best)] == [False, False, True, False]
    for one, other in zip(plain, best, strict=True):
        assert one.losses == pytest.approx(other.losses, abs=1e-4)
        assert one.losses[0] == pytest.approx(math.log(2), abs=1e-4), "policy and reference are equal"
        assert all(a > b > 0 for a, b in zip(one.operations, other.operations, strict=True))
        assert len(one.seconds) == 2
