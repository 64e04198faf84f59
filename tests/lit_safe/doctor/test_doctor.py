"""A healthy model and data pass every check; each planted fault fails the check that is there for it."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from data.annotators.scores import Score, Scores
from data.module import PreferenceData
from lit_safe.commands.doctor import doctor
from lit_safe.constraint.costs.rollout import RolloutCost
from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.doctor.checks import CHECKS
from lit_safe.objectives import DPO, ConstrainedDPO, SafeDPO
from lit_safe.precision import compute_dtype
from lit_safe.training.module import PreferenceAlignment
from lit_safe.types import Annotation, PackedBatch, PackedSequences, Pair, Scored
from models.adaptation import LastLayers, LoRA
from models.backbone import Backbone
from models.layouts import LAYOUTS, Rows
from models.pair import PolicyReference
from models.reference import AdapterOff, Checkpoint, FrozenCopy
from models.sources import TinyLlama
from tests.lit_safe.pair_world import Fruit, adamw, aligned, pairs, trainer

Examine = Callable[..., tuple[int, set[str]]]


@pytest.fixture
def failed(capsys: pytest.CaptureFixture[str]) -> Examine:
    """Runs the command: its exit status, and the names of the checks that it shows as failed."""

    def run(module: Any = None, data: PreferenceData | None = None, **options: Any) -> tuple[int, set[str]]:
        status = doctor(module or aligned(), data or pairs(), **options)
        cells = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
        names = [[cell.strip() for cell in row[1:3]] for row in cells]
        assert sum(verdict in ("ok", "FAILED") for _, verdict in names) == len(CHECKS)
        return status, {name for name, verdict in names if verdict == "FAILED"}

    return run


def aligned_with(pair: Any, objective: Any = None) -> Any:
    return aligned(objective, pair=pair)


@pytest.mark.parametrize("objective", [DPO(), SafeDPO(), ConstrainedDPO()], ids=lambda o: type(o).__name__)
def test_a_healthy_model_passes(objective: Any, failed: Examine) -> None:
    assert failed(aligned(objective)) == (0, set())


@pytest.mark.parametrize(
    "pair",
    [
        lambda: PolicyReference(TinyLlama(), LoRA(r=2), AdapterOff()),
        lambda: PolicyReference(TinyLlama(), LastLayers(1), FrozenCopy(), layout="packed"),
        lambda: PolicyReference(TinyLlama(), gradient_checkpointing=True),
        lambda: PolicyReference(TinyLlama(), LoRA(r=2), AdapterOff(), gradient_checkpointing=True),
        lambda: PolicyReference(TinyLlama(), reference=Checkpoint(TinyLlama(seed=1))),
        lambda: PolicyReference(TinyLlama(), reference=FrozenCopy(dtype="bfloat16")),
        lambda: PolicyReference(TinyLlama(), LoRA(r=2, dropout=0.5), AdapterOff()),
    ],
    ids=[
        "adapter off",
        "packed",
        "checkpointed",
        "adapter off, checkpointed",
        "another model as reference",
        "a smaller copy as reference",
        "dropout of an adapter",
    ],
)
def test_so_does_every_way_to_make_a_pair(pair: Any, failed: Examine) -> None:
    assert failed(aligned_with(pair())) == (0, set())


def test_nothing_is_left_changed(failed: Examine) -> None:
    module = aligned()
    module.configure_model()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    layout = module.pair.layout
    failed(module)
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    assert module.pair.layout == layout
    assert all(p.grad is None for p in module.parameters())


def test_sequences_as_long_as_the_model_has_positions_are_no_fault(failed: Examine) -> None:
    data = pairs()
    data.setup()
    tokens = data.tokenised
    longest = int((tokens.prompt.sizes + tokens.rejected.sizes).max())
    assert failed(aligned_with(PolicyReference(TinyLlama(positions=longest)))) == (0, set())


# -- labels


def test_an_unknown_label_that_the_objective_needs(failed: Examine) -> None:
    class Unlabelled(Scores):
        def costs(self, row: Any) -> Any:
            return (float("nan"),), (1.0,)

    data = pairs(annotator=Unlabelled((Score("cost"),), Score("reward")))
    assert failed(aligned(SafeDPO()), data) == (1, {"labels"})
    assert failed(aligned(DPO()), data) == (0, set())


# -- log-probs


class Tampered(PolicyReference):
    """Both models' log-probs go through ``tamper``."""

    def __init__(self, tamper: Callable[[Tensor, PackedSequences], Tensor]) -> None:
        super().__init__(TinyLlama())
        self.tamper = tamper

    def policy_logp(self, sequences: PackedSequences) -> Tensor:
        return self.tamper(super().policy_logp(sequences), sequences)

    def reference_logp(self, sequences: PackedSequences) -> Tensor:
        return self.tamper(super().reference_logp(sequences), sequences)


class Noisy(PolicyReference):
    def policy_logp(self, sequences: PackedSequences) -> Tensor:
        logp_N = super().policy_logp(sequences)
        return logp_N + 1e-4 * torch.rand(len(logp_N))


@pytest.mark.parametrize(
    "pair",
    [lambda: Tampered(lambda logp_N, _: logp_N + 1000), lambda: Noisy(TinyLlama())],
    ids=["above 0", "not the same twice"],
)
def test_log_probs_that_are_none(pair: Any, failed: Examine) -> None:
    assert failed(aligned_with(pair())) == (1, {"log-probs"})


class WithDropout(TinyLlama):
    def load_model(self) -> transformers.PreTrainedModel:
        model = super().load_model()
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.5
        return model


def test_dropout_left_on(failed: Examine) -> None:
    status, names = failed(aligned_with(PolicyReference(WithDropout(), disable_dropout=False)))
    assert status == 1
    assert names >= {"log-probs", "margin at step 0"}
    assert failed(aligned_with(PolicyReference(WithDropout()))) == (0, set())


# -- stop token


def _scored(sequences: PackedSequences, number: int) -> list[int]:
    start, end = sequences.cu_seqlens[number : number + 2].tolist()
    return [t for t in range(start, end) if sequences.target[t] >= 0]


class Rewritten(PreferenceData):
    """The first micro-batch's sequences after ``rewrite``."""

    rewrite: Any = None

    def train_dataloader(self) -> Any:
        for step in super().train_dataloader():
            target = step[0].sequences.target.clone()
            self.rewrite(step[0].sequences._replace(target=target), target)
            yield [step[0]._replace(sequences=step[0].sequences._replace(target=target)), *step[1:]]


def two_stops(sequences: PackedSequences, target: Tensor) -> None:
    *_, before, last = _scored(sequences, 2)
    target[before] = target[last]


def scored_after_the_stop(sequences: PackedSequences, target: Tensor) -> None:
    *_, before, last = _scored(sequences, 0)
    target[before], target[last] = target[last].clone(), target[before].clone()


def no_stop_anywhere(sequences: PackedSequences, target: Tensor) -> None:
    for number in range(len(sequences.cu_seqlens) - 1):
        target[_scored(sequences, number)[-1]] = -100


@pytest.mark.parametrize("rewrite", [two_stops, scored_after_the_stop, no_stop_anywhere], ids=lambda f: f.__name__)
def test_a_response_that_does_not_end_with_its_one_stop_token(rewrite: Any, failed: Examine) -> None:
    data = pairs()
    data.__class__ = type("Planted", (Rewritten,), {"rewrite": staticmethod(rewrite)})
    assert failed(data=data) == (1, {"stop token"})


# -- step 0


class Moved(PolicyReference):
    """A policy that something changed after its reference was made."""

    def load(self) -> None:
        new = self.policy is None
        super().load()
        if new:
            with torch.no_grad():
                next(self.parameters())[40:90] += 0.2


def test_a_policy_that_is_not_its_reference(failed: Examine) -> None:
    assert failed(aligned_with(Moved(TinyLlama()))) == (1, {"margin at step 0", "loss at step 0"})


@dataclasses.dataclass(frozen=True)
class Restless(DPO):
    """Another value on every call, as of an objective that keeps a moving average."""

    calls: Any = dataclasses.field(default_factory=lambda: itertools.count(1))

    def __call__(self, logratio: Pair, label: Annotation, multiplier: Tensor) -> Scored:
        scored = super().__call__(logratio, label, multiplier)
        return scored._replace(loss=scored.loss + 1e-3 * next(self.calls))


class OneSided(DPO):
    """Looks at the chosen side alone; with it a policy apart from its reference has no margin and another loss."""

    def __call__(self, logratio: Pair, label: Annotation, multiplier: Tensor) -> Scored:
        return Scored(-logratio.chosen, torch.ones_like(logratio.chosen))


class Shifted(PolicyReference):
    """Both sides one nat above the reference, so that no margin shows it."""

    def policy_logp(self, sequences: PackedSequences) -> Tensor:
        return super().policy_logp(sequences) + 1


@pytest.mark.parametrize(
    ("pair", "objective"),
    [(PolicyReference, Restless()), (Shifted, OneSided())],
    ids=["changes from call to call", "reads more than the margin"],
)
def test_an_objective_off_its_value_at_margin_0(pair: Any, objective: Any, failed: Examine) -> None:
    names = failed(aligned_with(pair(TinyLlama()), objective))[1]
    assert "loss at step 0" in names
    assert "margin at step 0" not in names


# -- invariances


def test_log_probs_that_depend_on_the_batch(failed: Examine) -> None:
    mean = Tampered(lambda logp_N, _: logp_N + 0.1 * logp_N.detach().mean())
    assert "batch invariance" in failed(aligned_with(mean))[1]
    place = Tampered(lambda logp_N, _: logp_N - 0.01 * torch.arange(len(logp_N)).div(2, rounding_mode="floor"))
    assert failed(aligned_with(place)) == (1, {"batch invariance"})


def padded_left_without_a_mask(sequences: PackedSequences) -> Rows:
    length_N = sequences.cu_seqlens.diff().tolist()
    longest = max(length_N)
    ids_NS = torch.zeros(len(length_N), longest, dtype=torch.int64)
    row_T = torch.repeat_interleave(torch.arange(len(length_N)), torch.tensor(length_N))
    column_T = torch.cat([torch.arange(longest - length, longest) for length in length_N])
    ids_NS[row_T, column_T] = sequences.input_ids
    return Rows(ids_NS, torch.arange(longest).expand_as(ids_NS), row_T, column_T)


def test_padding_that_is_attended_to(failed: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    module = aligned_with(PolicyReference(TinyLlama(), layout="padded"))
    module.configure_model()
    monkeypatch.setitem(LAYOUTS, "padded", padded_left_without_a_mask)
    # of sequences of one length nothing is padded: only a longer neighbour shows it
    assert failed(module, pairs(Fruit(same_length=True))) == (1, {"padding"})
    assert failed(module)[1] >= {"padding", "packing", "batch invariance"}


def packed_without_bounds(sequences: PackedSequences) -> Rows:
    through_T = torch.arange(len(sequences.input_ids))
    return Rows(sequences.input_ids[None], through_T[None], torch.zeros_like(through_T), through_T)


def test_packed_sequences_that_see_each_other(failed: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    module = aligned()
    module.configure_model()
    with monkeypatch.context() as planted:
        planted.setitem(LAYOUTS, "packed", packed_without_bounds)
        layout = module.pair.layout
        assert failed(module) == (0, set()), "a layout that the model cannot take, and that this run does not use"
        assert module.pair.layout == layout
    module.pair.layout = "packed"
    module.pair.layout = "padded"
    monkeypatch.setitem(LAYOUTS, "packed", packed_without_bounds)
    assert failed(module) == (1, {"packing"})


class OwnMean(PreferenceAlignment):
    """Divides by the pairs of its micro-batch instead of those of the step."""

    def loss_share(self, batch: PackedBatch) -> Tensor:
        return super().loss_share(batch) * batch.pairs_in_step / batch.present.sum()


def test_a_loss_that_depends_on_how_a_step_is_cut(failed: Examine) -> None:
    module = OwnMean(PolicyReference(TinyLlama()), DPO(), adamw(1e-3))
    assert failed(module) == (1, {"accumulation"})


# -- reference


class Live:
    """The policy itself."""

    def attach(self, policy: Backbone) -> Any:
        import contextlib

        return lambda: contextlib.nullcontext(policy)

    def describe(self) -> str:
        return "the policy"


class Tracked(PolicyReference):
    def reference_logp(self, sequences: PackedSequences) -> Tensor:
        return super().reference_logp(sequences) + 0 * next(self.parameters()).sum()


class Stuck(PolicyReference):
    """A policy that no parameter reaches."""

    def policy_logp(self, sequences: PackedSequences) -> Tensor:
        return super().reference_logp(sequences) + 0 * next(self.parameters()).sum()


@pytest.mark.parametrize(
    "pair",
    [lambda: PolicyReference(TinyLlama(), reference=Live()), lambda: Tracked(TinyLlama()), lambda: Stuck(TinyLlama())],
    ids=["is the policy", "has a gradient", "is all there is"],
)
def test_a_reference_that_is_none(pair: Any, failed: Examine) -> None:
    assert failed(aligned_with(pair())) == (1, {"reference"})


# -- precision and steps


class InBf16(TinyLlama):
    def load_model(self) -> transformers.PreTrainedModel:
        return super().load_model().bfloat16()


def test_a_step_that_rounds_to_nothing(failed: Examine) -> None:
    rounds = PolicyReference(InBf16(), trainable_dtype="bfloat16")
    assert failed(aligned(lr=1e-6, pair=rounds), trainer=trainer(precision="bf16-mixed")) == (1, {"step"})
    held = PolicyReference(InBf16())
    assert failed(aligned(lr=1e-6, pair=held), trainer=trainer(precision="bf16-mixed")) == (0, set())


class Precise(PolicyReference):
    """Notes the type of products of each of the policy's passes."""

    def policy_logp(self, sequences: PackedSequences) -> Tensor:
        self.seen = {*getattr(self, "seen", ()), compute_dtype(torch.device("cpu"))}
        return super().policy_logp(sequences)


@pytest.mark.parametrize(
    ("precision", "products"), [("32-true", "weights"), ("bf16-mixed", "bfloat16"), ("64-true", "weights")]
)
def test_checks_run_in_the_precision_of_the_run(precision: Any, products: str, failed: Examine) -> None:
    pair = Precise(TinyLlama(), LoRA(r=2))  # its last part is scored apart
    module = aligned(pair=pair)
    assert failed(module, trainer=trainer(precision=precision)) == (0, set())
    assert pair.seen == {products}
    assert next(module.parameters()).dtype == (torch.float64 if precision == "64-true" else torch.float32)


def test_a_precision_that_fit_refuses_is_refused_here() -> None:
    with pytest.raises(ValueError, match="'bf16-true' is not supported"):
        doctor(aligned(), pairs(), trainer=trainer(precision="bf16-true"))


# -- the dual group


def per_letter(prompts: Any, responses: Any) -> Tensor:
    return torch.tensor([len(text) / 10 - 1 for text in responses])


def missing(prompts: Any, responses: Any) -> Tensor:
    raise FileNotFoundError("scorers/mine/card.json")


@pytest.mark.parametrize(
    ("dual", "multiplier", "names"),
    [
        (lambda: DualAscent(lr=0.1, estimator=RolloutCost(per_letter)), 1.0, set()),
        (lambda: DualAscent(lr=0.1, estimator=RolloutCost(missing)), 1.0, {"dual"}),
        (lambda: DualAscent(lr=0.1, estimator=RolloutCost(lambda p, r: per_letter(p, r)[:, None])), 1.0, {"dual"}),
        (lambda: DualAscent(limit=[0.0, 1.0]), 1.0, {"dual"}),
        (lambda: DualAscent(estimator=RolloutCost(per_letter)), [1.0], {"dual"}),
    ],
    ids=["fits", "no scorer", "costs of another shape", "two limits", "a list for one constraint"],
)
def test_a_dual_group_that_could_only_fail_later(dual: Any, multiplier: Any, names: set[str], failed: Examine) -> None:
    module = aligned(ConstrainedDPO(), multiplier=multiplier)
    assert failed(module, trainer=trainer(callbacks=[dual()])) == (int(bool(names)), names)


# -- memory


def test_a_step_larger_than_the_machine(failed: Examine) -> None:
    assert failed(data=pairs(micro_batch_pairs=10**9)) == (1, {"memory"})


# -- whom it examines


def test_a_training_split_without_pairs_is_an_error() -> None:
    class Nothing(PreferenceData):
        def train_dataloader(self) -> Iterator[Any]:
            return iter(())

    data = pairs()
    data.__class__ = Nothing
    with pytest.raises(ValueError, match="no pairs"):
        doctor(aligned(), data)
