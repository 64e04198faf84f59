import math
from collections import Counter

import pytest
import torch

from lit_safe.anchors.preferred_nll import PreferredNLL, prefers_chosen
from lit_safe.anchors.reference_mass import ReferenceMass
from lit_safe.anchors.reference_support import ReferenceSupport
from lit_safe.doctor.patient import take_pairs
from lit_safe.hashing import uniform
from lit_safe.objectives import DPO, ConstrainedDPO, SafeDPO
from lit_safe.training.module import PreferenceAlignment
from lit_safe.types import Annotation, Pair, Prompt
from tests.lit_safe.dual_world import K, P, Table, Toy, all_pairs

UNSEEN = 4  # a response that the reference never writes


class Prompts(Toy):
    def prompts(self, split):
        return [Prompt(p, (p,), f"prompt {p}") for p in range(P)]


def world(anchor, objective=None, leak=0.0):
    """A policy that gives its unseen response ``leak`` nats more than the reference does, and is it otherwise."""
    table = Table()
    table.reference_PK[:, UNSEEN] = -30.0
    table.logit_PK.data.copy_(table.reference_PK)
    table.logit_PK.data[:, UNSEEN] += leak
    module = PreferenceAlignment(table, objective or DPO(), anchor=anchor)
    anchor.prepare(module, Prompts())
    return module


def term(module, step=0):
    return sum(share() for share in module.anchor.on_step(module, step))


def test_a_policy_that_is_its_reference_pays_nothing():
    assert term(world(ReferenceMass(prompts_per_step=P))).item() == pytest.approx(0, abs=1e-10)


def test_what_a_leak_costs_is_the_squared_log_of_the_mass_left():
    """With half of the mass gone everywhere, policy / reference is 1/2 for whatever the reference writes."""
    module = world(ReferenceMass(weight=3.0, prompts_per_step=P))
    reference_PK = module.pair.reference_PK.log_softmax(-1)
    module.pair.logit_PK.data.copy_(reference_PK)
    module.pair.logit_PK.data[:, UNSEEN] = 0.0
    assert term(module).item() == pytest.approx(3 * math.log(2) ** 2, rel=1e-4)
    assert module.anchor.logged()["anchor/log_mass"].pooled().value.item() == pytest.approx(-math.log(2), rel=1e-4)


def test_it_brings_the_mass_back_and_leaves_preferences_alone():
    anchor = ReferenceMass(weight=1.0, prompts_per_step=P, samples_per_prompt=200, samples_per_step=100)
    module = world(anchor, leak=31.0)
    logit_PK = module.pair.logit_PK
    logit_PK.data[:, 0] += 1.0  # a preference among what the reference writes
    before = logit_PK.data.log_softmax(-1)
    assert (before[:, UNSEEN].exp() > 0.2).all()
    optimizer = torch.optim.SGD([logit_PK], lr=4.0)
    for step in range(100):
        optimizer.zero_grad()
        term(module, step).backward()
        optimizer.step()
    after = logit_PK.data.log_softmax(-1)
    assert (after[:, UNSEEN].exp() < 0.08).all()
    inside = [logp[:, :UNSEEN].log_softmax(-1) for logp in (before, after)]
    assert (inside[1] - inside[0]).abs().max() < 0.5  # what 200 samples let it believe


def support_term(module):
    batch = all_pairs()
    return module.anchor.on_pairs(module, batch, module(batch)[0]), batch


def test_inside_the_references_support_any_preference_is_free():
    module = world(ReferenceSupport(floor=1e-4))
    module.pair.logit_PK.data[:, :UNSEEN] += torch.randn(P, UNSEEN)
    term_B, _ = support_term(module)
    assert term_B.abs().max() < 1e-6


def test_mass_on_a_token_that_the_reference_never_writes_is_paid_by_its_logarithm():
    module = world(ReferenceSupport(weight=2.0, floor=1e-4))
    module.pair.logit_PK.data.copy_(module.pair.reference_PK.log_softmax(-1))
    module.pair.logit_PK.data[:, UNSEEN] = 0.0  # half of the mass
    term_B, _ = support_term(module)
    assert torch.allclose(term_B, torch.full_like(term_B, 2 * math.log(2)), rtol=1e-4)


def test_its_gradient_moves_mass_back_and_no_preference():
    module = world(ReferenceSupport(floor=1e-4), leak=31.0)
    term_B, _ = support_term(module)
    term_B.sum().backward()
    gradient_PK, chance_PK = module.pair.logit_PK.grad, module.pair.logit_PK.data.softmax(-1)
    assert (gradient_PK[:, UNSEEN] > 0).all()
    inside = gradient_PK[:, :UNSEEN] / chance_PK[:, :UNSEEN]  # the same for all: a factor on what lies inside
    assert torch.allclose(inside, inside[:, :1].expand_as(inside), rtol=1e-3)


def many_pairs(count):
    """``count`` pairs with ids and coins of their own, as data/pack.py tosses them."""
    once = all_pairs()
    batch = take_pairs(once, [i % len(once.pair_id) for i in range(count)])
    draw_B = torch.tensor([uniform("draw", 0, pair) for pair in range(count)])
    return batch._replace(pair_id=torch.arange(count), label=batch.label._replace(draw=draw_B))


def test_a_share_of_the_pairs_speaks_for_all_of_them():
    module, batch = world(ReferenceSupport(floor=1e-4, share=0.5), leak=31.0), many_pairs(2000)
    policy, _, _ = module(batch)
    part_B = module.anchor.on_pairs(module, batch, policy)
    whole_B = ReferenceSupport(floor=1e-4).on_pairs(module, batch, policy)
    spoken_B = part_B != 0
    torch.testing.assert_close(part_B[spoken_B], 2 * whole_B[spoken_B], rtol=1e-5, atol=0)
    assert part_B.mean().item() == pytest.approx(whole_B.mean().item(), rel=0.1)


def test_sampled_labels_are_the_same_inside_the_share_and_outside():
    module, batch = world(ReferenceSupport(floor=1e-4, share=0.3), leak=31.0), many_pairs(2000)
    spoken_B = module.anchor.on_pairs(module, batch, module(batch)[0]) != 0
    assert spoken_B.float().mean().item() == pytest.approx(0.3, abs=0.04)  # 4 standard errors
    label_B = batch.label.draw < 0.5
    inside, outside = label_B[spoken_B].float().mean().item(), label_B[~spoken_B].float().mean().item()
    assert inside == pytest.approx(outside, abs=0.1)  # 4 standard errors


def test_all_prompts_take_turns_and_a_resumed_run_takes_the_same():
    module = world(ReferenceMass(prompts_per_step=3))
    turns = [module.anchor._turns(step) for step in range(P)]
    assert Counter(i for turn in turns for i in turn) == {(p, number): 1 for p in range(P) for number in range(3)}
    again = world(ReferenceMass(prompts_per_step=3)).anchor
    assert again._turns(2) == turns[2]
    assert again._responses == module.anchor._responses


def test_what_is_drawn_is_bounded_and_told_before_it_begins(caplog, monkeypatch):
    class Many(Toy):
        def prompts(self, split):
            return [Prompt(p, (p % P,), f"prompt {p}") for p in range(300)]

    asked = []
    monkeypatch.setattr(Table, "generate", lambda self, prompts, *_: asked.append(caplog.text) or [[P]] * len(prompts))
    anchor = ReferenceMass(samples_per_prompt=2, samples_per_step=1)
    with caplog.at_level("INFO"):
        anchor.prepare(PreferenceAlignment(Table(), DPO(), anchor=anchor), Many())
    assert len(anchor._responses) == 256
    told = "the reference writes 512 responses of up to 64 tokens, 2 to each of 256 prompts; max_prompts leaves out 44"
    assert told in asked[0]


def test_samples_do_not_depend_on_how_many_are_drawn_at_once():
    drawn = [world(ReferenceMass(batch_size=size)).anchor._responses for size in (1, 7, 1000)]
    assert drawn[0] == drawn[1] == drawn[2]


def test_at_margin_0_each_objective_says_which_response_it_prefers():
    reward = Pair(torch.tensor([1.0, -1.0, 1.0]), torch.zeros(3))
    cost = Pair(torch.tensor([1.0, -1.0, -1.0]), torch.tensor([-1.0, -1.0, 1.0]))
    length = Pair(torch.ones(3), torch.ones(3))
    batch = all_pairs()._replace(label=Annotation(reward, cost), pair_id=torch.arange(3), response_length=length)
    prefers = {
        objective: prefers_chosen(PreferenceAlignment(Table(), objective, multiplier=1.0), batch).tolist()
        for objective in (DPO(), SafeDPO(), ConstrainedDPO())
    }
    assert prefers[DPO()] == [True, True, True]
    assert prefers[SafeDPO()] == [False, True, True]
    assert prefers[ConstrainedDPO()] == [False, False, True]  # r - c: -1, -1, +3


def test_nll_is_that_of_the_preferred_response_per_token():
    module = world(PreferredNLL(weight=0.5), SafeDPO())
    batch = all_pairs()
    policy, _, _ = module(batch)
    term_B = module.anchor.on_pairs(module, batch, policy)
    chosen_B = prefers_chosen(module, batch)
    expected = -0.5 * torch.where(chosen_B, policy.chosen, policy.rejected)  # one token each
    assert torch.allclose(term_B, expected)
    assert 0 < chosen_B.float().mean() < 1


def test_the_nll_of_a_dropped_pair_is_dropped_with_it():
    unsafe = torch.ones(P, K)
    batch = all_pairs(unsafe)
    module = world(PreferredNLL(), SafeDPO())
    module.count = lambda *_: None
    assert module.loss_share(batch).item() == 0


@pytest.mark.parametrize(
    "bad", [{"weight": 0}, {"weight": math.nan}, {"samples_per_prompt": 0}, {"samples_per_step": 99}]
)
def test_arguments_out_of_range_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        ReferenceMass(**bad)


def test_what_support_is_lost_is_a_mean_over_the_pairs_that_count_of_all_micro_batches():
    batch = all_pairs()
    unsafe = batch.label._replace(cost=Pair(*(side.clone() for side in batch.label.cost)))
    for side in unsafe.cost:
        side[: len(side) // 3] = 1.0  # SafeDPO drops the first third
        side[len(side) // 3 :] = -1.0
    present = torch.arange(len(batch.pair_id)) % 5 > 0
    batch = batch._replace(label=unsafe, present=present)
    module = world(ReferenceSupport(floor=1e-4), SafeDPO(), leak=30.0)
    module.pair.logit_PK.data += torch.linspace(0, 2, P)[:, None] * torch.nn.functional.one_hot(
        torch.tensor(UNSEEN), module.pair.logit_PK.shape[1]
    )
    counts = present & (torch.arange(len(present)) >= len(present) // 3)
    whole = ReferenceSupport(floor=1e-4).on_pairs(module, batch, module(batch)[0])
    expected = whole[counts].mean().item()
    assert expected != pytest.approx(whole.mean().item(), rel=1e-3), "the others are to differ"
    half = len(present) // 2
    for part in (range(half), range(half, len(present))):
        module.loss_share(take_pairs(batch, list(part)))
    measured = module.anchor.logged()["anchor/lost_support"]
    assert measured.pooled().value.item() == pytest.approx(expected, rel=1e-5)
    assert measured.pooled().weight.item() == counts.sum()
    assert module.anchor.logged()["anchor/lost_support"].pooled().weight.item() == 0, "a step's own alone"
