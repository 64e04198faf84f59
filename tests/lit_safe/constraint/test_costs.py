"""What the estimators of E[cost] say of a policy whose expected cost is known."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lit_safe.constraint.costs.importance import ImportanceCost
from lit_safe.constraint.costs.rollout import RolloutCost
from lit_safe.hashing import uniforms
from lit_safe.sequences import pack_sequences
from lit_safe.types import Annotation, CostEstimate, PackedBatch, Pair, Prompt
from tests.lit_safe.dual_world import COST, REWARD, P, Table, TableCost, Toy


class Module(NamedTuple):
    pair: Table


def policy(shift: float = 1.0) -> Module:
    """A policy that has moved from the reference towards the helpful and unsafe responses by ``shift``."""
    table = Table()
    with torch.no_grad():
        table.logit_PK += 0.5 * shift * REWARD
    return Module(table)


def rollout(data: Any = None, cost: Any = None, seed: int = 0, epoch: int = 0, **options: Any) -> CostEstimate:
    return RolloutCost(cost or TableCost(), **options)(policy(), data or Toy(), seed=seed, epoch=epoch)


class Silent(Table):
    """Its only response is a stop token, which is no text."""

    def generate(
        self, prompts: Any, uniforms: Tensor, temperature: float = 1.0, reference: bool = False
    ) -> list[list[int]]:
        return [[P] for _ in prompts]


class Unspoken(Toy):
    def decode(self, ids: list[int]) -> str:
        return ""


class ByPrompt:
    """A cost that the prompt alone decides: all its responses err together."""

    def __call__(self, prompts: list[str], responses: list[str]) -> Tensor:
        return torch.tensor([float(prompt.split()[1]) for prompt in prompts])


# -- rollouts


def test_rollouts_find_the_expected_cost_within_their_error() -> None:
    estimate = rollout(samples_per_prompt=250)
    exact = policy().pair.expected(COST)
    sampling_error = float(COST.std()) / (P * 250) ** 0.5  # prompts are all there are: only the responses are drawn
    assert estimate.mean.item() == pytest.approx(exact, abs=4 * sampling_error)
    assert estimate.unsafe.item() == pytest.approx(policy().pair.expected((COST > 0).double()), abs=0.06)
    assert estimate.count == P * 250


def test_a_sample_depends_on_neither_batch_size_nor_what_was_drawn_before() -> None:
    whole = rollout(samples_per_prompt=3, batch_size=100)
    for batch_size in (1, 5):
        torch.rand(7)
        again = rollout(samples_per_prompt=3, batch_size=batch_size)
        assert again[:5] == whole[:5]
        assert again.samples == whole.samples
        assert again.also == whole.also


def test_seed_and_epoch_name_other_samples() -> None:
    def texts(**options: Any) -> list[tuple[str, str]]:
        return [(s.prompt, s.response) for s in rollout(**options).samples]

    assert len({tuple(texts(seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_samples_of_a_prompt_are_spread_evenly_and_still_drawn_from_the_policy() -> None:
    exact = policy().pair.expected(COST)
    mean_S = torch.stack([rollout(seed=seed, samples_per_prompt=10).mean for seed in range(60)])
    independent = float(COST.std()) / (P * 10) ** 0.5
    assert float(mean_S.std()) < independent / 2
    assert float(mean_S.mean()) == pytest.approx(exact, abs=4 * float(mean_S.std()) / 60**0.5)


def test_fresh_prompts_change_with_the_epoch_and_fixed_ones_do_not() -> None:
    class Many(Toy):
        def prompts(self, split: str) -> list[Prompt]:
            return [Prompt(p, (p % P,), f"prompt {p % P} of {p}") for p in range(100)] if split == "dual" else []

    def asked(epoch: int, fresh: bool) -> set[str]:
        estimate = rollout(Many(), epoch=epoch, prompts=8, fresh_prompts=fresh)
        return {sample.prompt for sample in estimate.samples}

    assert asked(0, True) == asked(0, True) != asked(1, True)
    assert asked(0, False) == asked(1, False)
    assert len(asked(0, False)) == 8


@pytest.mark.parametrize("samples", [1, 4])
def test_responses_to_one_prompt_are_no_independent_evidence(samples: int) -> None:
    """Costs 0, 1, 2, 3 by prompt: mean 1.5, standard error sqrt(5 / 3) / 2, however often each is asked."""
    estimate = rollout(cost=ByPrompt(), samples_per_prompt=samples)
    assert estimate.mean == 1.5
    assert estimate.stderr.item() == pytest.approx((5 / 3) ** 0.5 / 2)
    assert estimate.unsafe == 0.75


def test_two_constraints_are_estimated_side_by_side_and_either_makes_a_response_unsafe() -> None:
    class Both(ByPrompt):
        def __call__(self, prompts: list[str], responses: list[str]) -> Tensor:
            number = super().__call__(prompts, responses)
            return torch.stack((number - 2.5, 0.5 - number), dim=-1)  # unsafe by the first at 3, by the second at 0

    estimate = rollout(cost=Both())
    assert estimate.mean.tolist() == [-1.0, -1.0]
    assert estimate.stderr.shape == (2,)
    assert estimate.unsafe == 0.5


def test_an_empty_response_is_scored_as_the_empty_text() -> None:
    class Silence:
        def __call__(self, prompts: list[str], responses: list[str]) -> Tensor:
            assert set(responses) == {""}
            return torch.full((len(responses),), -0.25)

    estimate = RolloutCost(Silence())(Module(Silent()), Unspoken(), seed=0, epoch=0)
    assert estimate.mean == -0.25
    assert estimate.count == P


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_cost_that_is_not_finite_is_traced_to_its_prompt(value: float) -> None:
    class Broken(TableCost):
        def __call__(self, prompts: list[str], responses: list[str]) -> Tensor:
            return torch.tensor([value if prompt == "prompt 2" else 0.0 for prompt in prompts])

    with pytest.raises(ValueError, match="prompt 102"):
        rollout(cost=Broken())


def test_a_cost_function_that_drops_a_response_is_caught() -> None:
    class Short(TableCost):
        def __call__(self, prompts: list[str], responses: list[str]) -> Tensor:
            return super().__call__(prompts, responses)[1:]

    with pytest.raises(ValueError, match="3 costs of 4 responses"):
        rollout(cost=Short())


def test_drift_is_the_full_vocabulary_kl_and_entropy_at_the_positions_visited() -> None:
    table = policy().pair
    policy_logp, reference_logp = (x.double().log_softmax(-1) for x in (table.logit_PK.detach(), table.reference_PK))
    exact = (policy_logp.exp() * (policy_logp - reference_logp)).sum(-1).mean()
    assert rollout().also["drift/kl_per_token"] == pytest.approx(float(exact), abs=1e-5)
    entropy = -(policy_logp.exp() * policy_logp).sum(-1).mean()
    assert rollout().also["drift/entropy_per_token"] == pytest.approx(float(entropy), abs=1e-5)
    unmoved = RolloutCost(TableCost())(policy(0.0), Toy(), seed=0, epoch=0)
    assert unmoved.also["drift/kl_per_token"] == pytest.approx(0, abs=1e-6)


def test_drift_takes_no_pass_of_a_model_but_those_of_its_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    for score in ("policy_logp", "reference_logp", "both_logp"):
        monkeypatch.delattr(Table, score)
    assert rollout().also["drift/reference_logp_per_token"] < 0


def test_drift_may_be_measured_on_fewer_samples_than_the_cost() -> None:
    few = rollout(samples_per_prompt=4, drift_samples_per_prompt=1)
    assert few.count == 4 * P
    all_of_them = rollout(samples_per_prompt=4)
    kl = "drift/kl_per_token"  # of this table, the same at whatever a sample visits
    assert few.also[kl] == pytest.approx(all_of_them.also[kl], abs=1e-6)
    assert few.also["drift/reference_logp_per_token"] != all_of_them.also["drift/reference_logp_per_token"]
    assert few.also["drift/tokens_per_response"] == all_of_them.also["drift/tokens_per_response"]
    assert few.mean == all_of_them.mean


@pytest.mark.parametrize("fails", [False, True])
def test_training_flags_and_random_state_are_as_before_even_after_an_error(fails: bool) -> None:
    class Fails(TableCost):
        def __call__(self, prompts: list[str], responses: list[str]) -> Tensor:
            torch.rand(5)
            return torch.full((len(prompts),), float("nan") if fails else 0.0)

    module = policy()
    module.pair.train()
    module.pair.dropout.eval()  # a part that somebody froze on purpose
    state = torch.get_rng_state()
    if fails:
        with pytest.raises(ValueError, match="cost function"):
            RolloutCost(Fails())(module, Toy(), seed=0, epoch=0)
    else:
        RolloutCost(Fails())(module, Toy(), seed=0, epoch=0)
    assert [part.training for part in module.pair.modules()] == [True, False]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert module.pair.logit_PK.grad is None


@pytest.mark.parametrize(
    "options",
    [{"prompts": 1}, {"samples_per_prompt": 0}, {"max_new_tokens": 0}, {"temperature": 0.0}, {"batch_size": 0}],
)
def test_counts_that_cannot_work_are_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        RolloutCost(TableCost(), **options)


def test_a_dual_split_of_one_prompt_has_no_standard_error_and_is_refused() -> None:
    class One(Toy):
        def prompts(self, split: str) -> list[Prompt]:
            return super().prompts(split)[:1]

    with pytest.raises(ValueError, match="at least two prompts"):
        rollout(One())


# -- importance weights


def drawn(pairs: int, filler: int = 0) -> PackedBatch:
    """Pairs of independent draws of the reference, prompts in turn, then fillers with labels that would show."""
    reference = Module(Table()).pair
    rows = []
    for side in range(2):
        prompts = [(i % P,) for i in range(pairs + filler)]
        uniform = torch.stack([uniforms(1, "drawn", side, i) for i in range(pairs + filler)])
        rows.append(torch.tensor([ids[0] - P for ids in reference.eval().generate(prompts, uniform)]))
    p = torch.arange(pairs + filler) % P
    present_B = torch.arange(pairs + filler) < pairs
    both = torch.stack(rows, 1).flatten().tolist()
    cost = Pair(*(torch.where(present_B, COST[p, row], float("nan")) for row in rows))
    one_B = torch.ones(pairs + filler, dtype=torch.int64)
    return PackedBatch(
        pack_sequences([[i] for i in p.repeat_interleave(2).tolist()], [[P + k] for k in both]),
        Annotation(cost, cost),
        torch.arange(pairs + filler),
        torch.arange(pairs + filler),
        Pair(one_B, one_B),
        present_B,
        torch.tensor(pairs),
    )


class Drawn(Toy):
    def __init__(self, *batches: PackedBatch) -> None:
        super().__init__()
        self.batches = batches

    def dual_pairs(self) -> list[PackedBatch]:
        return list(self.batches)


def importance(module: Module, data: Toy, **options: Any) -> CostEstimate:
    return ImportanceCost(**options)(module, data, seed=0, epoch=0)


def test_weighted_draws_of_the_reference_find_the_policys_expected_cost() -> None:
    module, data = policy(2.0), Drawn(drawn(1500))
    estimate = importance(module, data)
    exact, unmoved = module.pair.expected(COST), policy(0.0).pair.expected(COST)
    assert abs(exact - unmoved) > 5 * estimate.stderr  # so that unweighted means would be seen
    assert estimate.mean.item() == pytest.approx(exact, abs=4 * float(estimate.stderr))
    assert estimate.unsafe.item() == pytest.approx(module.pair.expected((COST > 0).double()), abs=0.05)
    assert 100 < estimate.effective < estimate.count == 3000


def test_the_reference_itself_weighs_every_response_alike() -> None:
    batch = drawn(30, filler=2)
    estimate = importance(policy(0.0), Drawn(batch), minimum_effective=2)
    costs = torch.cat([side[:30] for side in batch.label.cost])
    assert estimate.mean.item() == pytest.approx(costs.mean().item())
    assert estimate.effective == pytest.approx(60)
    assert estimate.count == 60


def test_reference_log_probs_that_came_with_the_batch_are_used() -> None:
    """A cached reference that finds everything a nat likelier than it is changes no self-normalised weight."""
    batch = drawn(40)
    logp_N = policy().pair.reference_logp(batch.sequences)
    cached = batch._replace(reference_logp=Pair(logp_N[0::2] + 1, logp_N[1::2] + 1))
    skewed = batch._replace(reference_logp=Pair(logp_N[0::2] + 1, logp_N[1::2]))
    plain = importance(policy(), Drawn(batch), minimum_effective=2)
    assert importance(policy(), Drawn(cached), minimum_effective=2).mean.item() == pytest.approx(plain.mean.item())
    assert importance(policy(), Drawn(skewed), minimum_effective=2).mean.item() != pytest.approx(plain.mean.item())


def test_the_same_prompts_again_are_no_news() -> None:
    whole = drawn(60)
    parts = Drawn(whole, whole)
    once, twice = (importance(policy(), data, minimum_effective=2) for data in (Drawn(whole), parts))
    assert twice.mean.item() == pytest.approx(once.mean.item())
    assert twice.effective == pytest.approx(2 * once.effective)
    assert twice.stderr.item() == pytest.approx(once.stderr.item())


@pytest.mark.parametrize("authors", [{"people"}, {"reference", "model"}, set()])
def test_responses_of_others_are_refused(authors: set[str]) -> None:
    data = Drawn(drawn(100))
    data.responses_from = frozenset(authors)  # type: ignore[misc]
    with pytest.raises(ValueError, match="responses of the reference itself"):
        importance(policy(), data)


@pytest.mark.parametrize("shift", [30.0, 1e5])
def test_a_policy_that_has_left_the_responses_behind_is_refused(shift: float) -> None:
    with pytest.raises(ValueError, match="effective sample size"):
        importance(policy(shift), Drawn(drawn(20)), minimum_effective=20)


def test_a_missing_cost_is_traced_to_its_pair() -> None:
    batch = drawn(60)
    batch.label.cost.rejected[17] = float("nan")
    with pytest.raises(ValueError, match="pair 17 "):
        importance(policy(), Drawn(batch))


def test_a_split_without_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        importance(policy(), Drawn())


# -- two ranks


@pytest.mark.slow
def test_two_ranks_estimate_what_one_does_and_agree_on_the_multiplier(tmp_path: Path) -> None:
    script = Path(__file__).with_name("dual_two_ranks.py")
    root = str(Path(__file__).parents[3])
    for devices in (1, 2):
        subprocess.run(
            [sys.executable, script, str(devices), tmp_path / str(devices)],
            check=True,
            timeout=240,
            env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        )
    one = json.loads((tmp_path / "1" / "0.json").read_text(encoding="utf-8"))
    two = [json.loads((tmp_path / "2" / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    assert two[0] == two[1]
    assert two[0]["rollout"] == one["rollout"]  # of the same policy, to the bit
    assert two[0]["in_two_parts"] == one["in_two_parts"] == one["rollout"], "all prompts, for a small standard error"
    for name in ("importance", "labels"):
        assert two[0][name] == pytest.approx(one[name], rel=1e-12, nan_ok=True)
    assert two[0]["reachability"] == one["reachability"]
    assert two[0]["multiplier"] == pytest.approx(one["multiplier"], abs=1e-5)
    assert one["multiplier"] > 0
    assert "disagree" in two[0]["refusal"]
