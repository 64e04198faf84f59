"""What an objective gets besides log-ratios and labels, and training without a reference."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from data.annotators.scores import Score, Scores
from lit_safe.anchors.preferred_nll import PreferredNLL, prefers_chosen
from lit_safe.anchors.reference_support import ReferenceSupport
from lit_safe.commands.doctor import doctor
from lit_safe.evaluation.evaluate import evaluate
from lit_safe.objectives import DPO, ConstrainedDPO
from lit_safe.protocols.objective import extra_needs, label_needs, score
from lit_safe.types import NO_EXTRA, Annotation, Extra, Need, Objective, Pair, Scored
from models.adaptation import LastLayers
from models.pair import PolicyReference
from models.reference import FrozenCopy, NoReference
from models.sources import TinyLlama
from tests.lit_safe.pair_world import Fruit, adamw, aligned, pairs, trainer


@dataclass(frozen=True)
class PerToken:
    """Loss: minus the margin of log-probs per token."""

    needs: ClassVar[tuple[Need, ...]] = ("reward", "length")
    reads_multiplier: ClassVar[bool] = False
    reference_free: ClassVar[bool] = True
    beta: float = 1.0

    def __call__(self, logratio: Pair, label: Annotation, multiplier: Tensor, extra: Extra = NO_EXTRA) -> Scored:
        length = extra["length"]
        loss_B = logratio.rejected / length.rejected - logratio.chosen / length.chosen
        return Scored(loss_B, torch.ones_like(loss_B))


@dataclass(frozen=True)
class WithLikelihood(DPO):
    """DPO, and the negative log-likelihood of the chosen response."""

    needs: ClassVar[tuple[Need, ...]] = ("policy_logp",)

    def __call__(self, logratio: Pair, label: Annotation, multiplier: Tensor, extra: Extra = NO_EXTRA) -> Scored:
        scored = super().__call__(logratio, label, multiplier)
        return scored._replace(loss=scored.loss - extra["policy_logp"].chosen)


class Costly:
    """A cost function: 1 for every response."""

    def __call__(self, prompts: Any, responses: Any) -> Tensor:
        return torch.ones(len(responses))


def sides(chosen: float, rejected: float) -> Pair:
    return Pair(torch.tensor([chosen]), torch.tensor([rejected]))


LABEL = Annotation(sides(0.0, 0.0), sides(0.0, 0.0))
GIVEN = Extra(policy_logp=sides(-8.0, -6.0), length=sides(4.0, 2.0))


def run(objective: Objective, folder: Path, **options: Any) -> tuple[Any, Any, Any]:
    module, data = aligned(objective, **options), pairs(Fruit(16))
    fitting = trainer(folder, max_steps=2, limit_val_batches=1, val_check_interval=1)
    fitting.fit(module, data)
    return module, data, fitting


def test_an_objective_gets_what_it_asks_for_and_an_old_one_gets_three_arguments() -> None:
    def called(objective: Objective) -> float:
        return score(objective, GIVEN["policy_logp"], sides(1.0, 0.0), LABEL, torch.tensor(0.0), GIVEN).loss.item()

    assert called(PerToken()) == pytest.approx(2.0 - 3.0)  # -(-8 / 4 - -6 / 2), of log-probs and not of log-ratios
    assert called(DPO(beta=1.0)) == pytest.approx(0.313262)
    assert called(WithLikelihood(beta=1.0)) == pytest.approx(8.313262)
    assert (label_needs(PerToken()), extra_needs(PerToken())) == (("reward",), ("length",))
    with pytest.raises(KeyError, match="length"):
        score(PerToken(), GIVEN["policy_logp"], sides(1.0, 0.0), LABEL, torch.tensor(0.0), NO_EXTRA)


def test_training_gives_each_objective_its_quantities_and_labels_are_still_required() -> None:
    module, data = aligned(PerToken()), pairs(Fruit(16))
    data.setup()
    module.configure_model()
    batch = next(iter(data.train_dataloader()))[0]
    policy, logratio, scored = module(batch)
    length = batch.response_length
    expected_B = policy.rejected / length.rejected - policy.chosen / length.chosen
    torch.testing.assert_close(scored.loss, expected_B)
    assert all(side.isnan().all() for side in logratio)
    both = aligned(WithLikelihood())
    both.configure_model()
    policy, logratio, scored = both(batch)
    torch.testing.assert_close(scored.loss, DPO()(logratio, batch.label, both.multiplier).loss - policy.chosen)
    unknown = pairs(Fruit(16), annotator=Scores((Score("cost"),), preference_strength=None))
    with pytest.raises(ValueError, match="needs 'reward'"):
        trainer(max_steps=1).fit(aligned(PerToken()), unknown)


def test_without_a_reference_none_is_loaded_or_scored_and_a_run_trains_validates_and_reports_no_log_ratio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: object, policy: object) -> None:
        raise AssertionError("a reference was made")

    monkeypatch.setattr(FrozenCopy, "attach", refused)
    module, data, fitting = run(PerToken(), tmp_path, precompute_reference=True)
    assert isinstance(module.pair.reference, NoReference)
    logged = set(fitting.callback_metrics)
    assert {"train/loss", "train/logps/accuracies", "eval/logps/accuracies_per_token"} <= logged
    assert not [name for name in logged if "rewards/" in name or "logratios/" in name]
    assert module.pair.memory_estimate(64, 16).reference == 0
    facts = module.pair.facts()
    assert (facts.has_reference, facts.reference) == (False, "none: the objective needs no reference")
    found = evaluate(module, data, cost=Costly(), prompts=2, max_new_tokens=4).summary()
    assert {"logps/accuracies", "rollouts/unsafe", "rollouts/entropy_per_token"} <= set(found)
    absent = {"logratios/margins", "rewards/accuracies", "drift/forward_kl", "rollouts/kl_per_token"}
    assert not absent & set(found), absent & set(found)
    json.dumps({name: one.mean for name, one in found.items()}, allow_nan=False)


def test_a_chosen_reference_or_an_anchor_that_reads_it_keeps_it() -> None:
    asked = aligned(PerToken(), pair=PolicyReference(TinyLlama(), reference=FrozenCopy()))
    anchored = aligned(PerToken(), anchor=ReferenceSupport())
    free = aligned(PerToken(), anchor=PreferredNLL())
    for module, kept in ((asked, True), (anchored, True), (free, False), (aligned(DPO()), True)):
        module.configure_model()
        assert module.pair.has_reference is kept
    with pytest.raises(ValueError, match=r"this run has no reference.*model\.pair\.init_args\.reference"):
        free.pair.reference_logp(None)


def test_last_layers_train_on_stored_states_without_a_reference(tmp_path: Path) -> None:
    pair = PolicyReference(TinyLlama(), LastLayers(1, cache_trunk=True, trunk_dir=str(tmp_path / "trunk")))
    module, _, fitting = run(PerToken(), tmp_path, pair=pair)
    assert fitting.global_step == 2
    assert not module.pair.has_reference


@pytest.mark.parametrize("objective", [PerToken(), WithLikelihood()], ids=repr)
def test_doctor_passes_an_objective_with_or_without_a_reference(objective: Objective, capsys: Any) -> None:
    assert doctor(aligned(objective), pairs(Fruit(16)), pairs=2) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    assert ("none is loaded, because the objective needs none" in said) is isinstance(objective, PerToken)


def test_the_preferred_response_of_an_objective_that_reads_log_probs() -> None:
    data = pairs(Fruit(16))
    data.setup()
    batch = next(iter(data.train_dataloader()))[0]
    for objective in (PerToken(), WithLikelihood()):
        assert prefers_chosen(aligned(objective, adamw), batch).all()
    assert not prefers_chosen(aligned(ConstrainedDPO(), multiplier=100.0), batch).all()
