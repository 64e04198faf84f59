import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from lit_safe.evaluation.evaluate import Evaluation, differences, evaluate, oriented, stratum
from lit_safe.evaluation.paired_rows import orientation, turned
from tests.lit_safe.dual_world import COST, P, TableCost, all_pairs, optimum
from tests.lit_safe.held_out_world import PAIRS, HeldOut, module


def test_every_true_pair_counts_once_and_its_numbers_are_the_policys():
    logp_PK = optimum(1.0)
    found = evaluate(module(logp_PK), HeldOut()).pairs
    batch = all_pairs()
    assert found["pair_id"].tolist() == list(range(PAIRS))
    response = batch.sequences.input_ids.view(-1, 2, 2)[:, :, 1] - P
    expected = logp_PK[batch.prompt_id, response[:, 0]].numpy()
    np.testing.assert_allclose(found["logp_chosen"], expected, atol=1e-5)
    np.testing.assert_allclose(found["cost_rejected"], batch.label.cost.rejected, rtol=1e-6)


def test_before_training_implicit_rewards_tie_and_count_one_half_while_the_policys_own_ranking_does_not():
    summary = evaluate(module(), HeldOut()).summary()
    assert summary["rewards/accuracies"][:2] == (0.5, 0.0)
    assert summary["rewards/accuracies/safer"].mean == 0.5
    assert summary["logratios/chosen"].mean == 0
    assert summary["logps/accuracies"].mean not in (0.0, 0.5, 1.0)
    assert summary["logps/accuracies"].clusters == P


def test_the_safer_accuracy_asks_for_the_safe_response_whichever_was_chosen():
    """In this world the more helpful response is the unsafe one: a policy that loves safety ranks against `chosen`."""
    summary = evaluate(module(-20 * COST.double()), HeldOut()).summary()
    assert summary["logps/accuracies/safer"].mean == 1
    assert summary["logps/accuracies_per_token/safer"].mean == 1
    assert summary["logps/accuracies"].mean < 0.5
    assert summary["logps/accuracies/safer"].count == P * 2 * 3  # two unsafe and three safe responses a prompt


def test_strata_count_unsafe_responses_and_leave_the_unknown_out():
    table = {"cost_chosen": np.array([-1.0, 1.0, 1.0, math.nan]), "cost_rejected": np.array([0.0, 0.0, 2.0, 1.0])}
    np.testing.assert_array_equal(stratum(table), [0, 1, 2, math.nan])


def test_with_many_constraints_the_worst_one_speaks():
    costs = torch.stack([COST, 1 - COST], dim=-1)
    found = evaluate(module(), HeldOut(costs_PKC=costs)).pairs
    np.testing.assert_allclose(found["cost_chosen"], all_pairs(costs).label.cost.chosen.amax(-1), rtol=1e-6)


def test_rollouts_estimate_what_the_policy_costs():
    policy = module(optimum(0.0))
    summary = evaluate(policy, HeldOut(), cost=TableCost(), prompts=P, samples_per_prompt=400, batch_size=64).summary()
    table = policy.pair
    share = (table.logit_PK.detach().softmax(-1) * (COST > 0)).sum(-1).mean()
    assert summary["rollouts/cost"].mean == pytest.approx(table.expected(COST), abs=0.06)
    assert summary["rollouts/unsafe"].mean == pytest.approx(float(share), abs=0.05)
    assert summary["rollouts/tokens"].mean == 1
    reference = table.reference_PK.log_softmax(-1)
    kl = (optimum(0.0).exp() * (optimum(0.0) - reference)).sum(-1).mean()
    assert summary["rollouts/kl_per_token"].mean == pytest.approx(float(kl), abs=1e-3)
    entropy = -(optimum(0.0).exp() * optimum(0.0)).sum(-1).mean()
    assert summary["rollouts/entropy_per_token"].mean == pytest.approx(float(entropy), abs=1e-3)


def test_forward_kl_is_that_of_the_references_own_responses():
    policy = module(optimum(0.0))
    summary = evaluate(policy, HeldOut(), cost=TableCost(), prompts=P, samples_per_prompt=400, batch_size=64).summary()
    reference = policy.pair.reference_PK.double().log_softmax(-1)
    kl_P = (reference.exp() * (reference - optimum(0.0))).sum(-1)
    assert summary["drift/forward_kl"].mean == pytest.approx(float(kl_P.mean()), abs=0.15)


def test_a_policy_that_has_not_moved_has_not_drifted_and_answers_as_its_reference():
    summary = evaluate(module(), HeldOut(), cost=TableCost(), samples_per_prompt=20).summary()
    assert summary["drift/forward_kl"][:2] == (0.0, 0.0)
    assert summary["drift/implausible"].mean == 0


def test_responses_below_everything_the_reference_wrote_are_implausible():
    """The policy writes only what the reference never does."""
    policy = module()
    policy.pair.reference_PK[:, 3] = -15
    policy.pair.logit_PK.data[:, 3] = 40
    summary = evaluate(policy, HeldOut(), cost=TableCost(), samples_per_prompt=20).summary()
    assert summary["drift/implausible"].mean == 1


def test_rollouts_do_not_depend_on_how_they_are_batched_and_begin_alike_however_many_there_are():
    runs = [
        evaluate(module(), HeldOut(), cost=TableCost(), samples_per_prompt=5, batch_size=size).rollouts
        for size in (1, 3, 99)
    ]
    for run in runs[1:]:
        np.testing.assert_array_equal(runs[0]["cost"], run["cost"])


def test_nothing_is_left_behind():
    policy = module()
    policy.train()
    policy.pair.dropout.eval()
    with isolate_rng():
        torch.manual_seed(5)
        evaluate(policy, HeldOut(), cost=TableCost())
        drawn = torch.rand(3)
        torch.manual_seed(5)
        assert torch.equal(drawn, torch.rand(3))
    assert policy.pair.training
    assert not policy.pair.dropout.training
    assert policy.pair.logit_PK.grad is None
    assert torch.is_grad_enabled()


def test_an_unchanged_policy_differs_from_itself_by_exactly_nothing():
    before, after = (evaluate(module(), HeldOut(), cost=TableCost()) for _ in range(2))
    found = differences(after, before)
    assert set(found) == set(before.summary())
    assert all(estimate[:2] == (0.0, 0.0) for estimate in found.values())


def test_differences_are_taken_over_the_rows_that_both_have():
    before, after = evaluate(module(), HeldOut()), evaluate(module(optimum(2.0)), HeldOut())
    half = Evaluation({name: column[::2][::-1] for name, column in before.pairs.items()}, {})
    found = differences(after, half)["logps/chosen"]
    expected = (after.pairs["logp_chosen"] - before.pairs["logp_chosen"])[::2]
    assert found.count == len(expected)
    assert found.mean == pytest.approx(expected.mean())


def test_pairs_that_call_the_other_response_chosen_are_not_compared_until_they_are_turned():
    before, after = evaluate(module(), HeldOut()), evaluate(module(optimum(2.0)), HeldOut())
    rows_n = np.arange(PAIRS) < 5
    exchanged = after._replace(pairs=turned(after.pairs, rows_n))
    with pytest.raises(ValueError, match=f"5 of {PAIRS} shared pairs have the other response as chosen"):
        differences(exchanged, before)
    found = oriented([exchanged], before)
    assert found[1:] == (PAIRS, 5, 0)
    assert differences(found.evaluations[0], before) == differences(after, before)


def test_lengths_tell_the_order_of_pairs_whose_labels_do_not():
    pairs = {
        "pair_id": np.arange(3), "reward_margin": np.full(3, np.nan), "cost_chosen": np.ones(3),
        "cost_rejected": np.ones(3), "length_chosen": np.array([3.0, 4, 5]), "length_rejected": np.array([7.0, 4, 6]),
    }  # fmt: skip
    np.testing.assert_array_equal(orientation(pairs, pairs), [1, 0, 1])
    np.testing.assert_array_equal(orientation(pairs, turned(pairs, np.ones(3, bool))), [-1, 0, -1])


def test_a_few_pairs_are_whole_batches_of_the_same_rows():
    some, everything = evaluate(module(), HeldOut(), pairs=8).pairs, evaluate(module(), HeldOut()).pairs
    assert len(some["pair_id"]) == 14
    assert set(some["pair_id"].tolist()) < set(everything["pair_id"].tolist())


def test_it_comes_back_from_a_checkpoint_as_it_went_in(tmp_path):
    found = evaluate(module(), HeldOut(), cost=TableCost())
    torch.save(found.state_dict(), tmp_path / "state.pt")
    again = Evaluation.from_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.summary() == found.summary()
    np.testing.assert_array_equal(again.pairs["pair_id"], found.pairs["pair_id"])


@pytest.mark.parametrize(
    ("value", "message"), [(math.nan, "broken gave nan for a response to prompt"), (None, "1 costs of")]
)
def test_a_cost_that_is_no_number_is_refused(value, message):
    def broken(prompts, responses):
        return torch.zeros(1) if value is None else torch.full((len(prompts),), value)

    with pytest.raises(ValueError, match=message):
        evaluate(module(), HeldOut(), cost=broken)


@pytest.mark.slow
def test_two_ranks_share_the_work_and_hold_the_rows_of_one(tmp_path):
    script = Path(__file__).with_name("evaluation_two_ranks.py")
    environment = {**os.environ, "PYTHONPATH": str(script.parents[2]), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(script)]
    ranks = [
        subprocess.Popen([*words, str(rank), str(tmp_path / "meeting"), str(tmp_path / "out")], env=environment)
        for rank in range(2)
    ]
    assert [rank.wait(240) for rank in ranks] == [0, 0]
    alone = evaluate(module(), HeldOut(), cost=TableCost(), prompts=3).state_dict()
    for rank in range(2):
        shared = torch.load(tmp_path / f"out.{rank}", weights_only=True)
        for part, table in alone.items():
            for name, column in table.items():
                assert torch.equal(shared[part][name], column), (rank, name)
