"""Preference training of a real (tiny) language model on the real data module: what one optimizer step is."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.doctor.patient import take_pairs
from lit_safe.objectives import DPO, ConstrainedDPO, SafeDPO
from lit_safe.runs.loggers.tensorboard import TensorBoardRun
from lit_safe.runs.run_checkpoint import RunCheckpoint
from lit_safe.runs.run_folder import RunFolder
from lit_safe.training.metrics import PAIR_NAMES
from lit_safe.training.module import PreferenceAlignment
from lit_safe.types import PackedBatch, Pair, SequenceLogp
from models.adaptation import LastLayers, LoRA
from models.pair import PolicyReference
from models.sources import TinyLlama
from tests.lit_safe.pair_world import MIXED, Fruit, aligned, pairs, plain_logp, trainer, weights

SGD = lambda parameters: torch.optim.SGD(parameters, lr=1.0)  # noqa: E731  # a step is the gradient itself


class Only(Fruit):
    """Pairs of one kind of cost, by its index in ``MIXED``."""

    def __init__(self, kind: int) -> None:
        super().__init__()
        self.kind = kind

    def __iter__(self):
        return (row for i, row in enumerate(super().__iter__()) if i % len(MIXED) == self.kind)


@pytest.fixture
def batch() -> PackedBatch:
    """Six training pairs."""
    return first_batch(pairs(pairs_per_step=6, micro_batch_pairs=6))


def first_batch(data: Any) -> PackedBatch:
    data.setup()
    return next(iter(data.train_dataloader()))[0]


def loaded(module: PreferenceAlignment) -> PreferenceAlignment:
    module.configure_model()
    return module


def gradient(module: PreferenceAlignment, loss: Tensor) -> Tensor:
    parameters = [p for p in module.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def one_step(module: Any, folder: Path) -> Any:
    """A fit of one optimizer step."""
    run = trainer(folder, max_steps=1)
    run.fit(module, pairs(pairs_per_step=6, micro_batch_pairs=6))
    assert run.global_step == 1
    return run


# -- a step is its pairs


def test_a_step_is_the_same_however_it_is_cut(tmp_path: Path) -> None:
    ends = []
    for size in (1, 3, 8):
        data = pairs(pairs_per_step=10, micro_batch_pairs=size)
        # Adam would blow the rounding of a gradient near 0 up to a whole step
        module = PreferenceAlignment(PolicyReference(TinyLlama()), SafeDPO(), SGD)
        run = trainer(tmp_path, max_epochs=1)
        run.fit(module, data)
        assert run.global_step == 2  # of 26 training pairs SafeDPO keeps 19: ten and nine
        ends.append(weights(module))
    begin = weights(loaded(aligned()))
    assert (ends[0] - begin).abs().max() > 1e-2
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=0, atol=1e-6)


def test_a_weight_of_zero_takes_a_pair_out_of_the_sum_and_not_out_of_the_denominator() -> None:
    batch = first_batch(pairs(pairs_per_step=12, micro_batch_pairs=12))
    module, objective = loaded(aligned(SafeDPO(beta=0.1, offset=10.0))), 0.0
    lm = module.pair.policy.causal_lm
    frozen = plain_logp(lm, batch.sequences).float()
    kinds = [(c > 0, r > 0) for c, r in zip(*(side.tolist() for side in batch.label.cost), strict=True)]
    assert len(set(kinds)) == len(MIXED), "the world is to have every kind here"
    logratio_N = module.pair.policy_logp(batch.sequences) - frozen
    for (chosen, rejected), margin in zip(kinds, logratio_N[0::2] - logratio_N[1::2], strict=True):
        if chosen and rejected:
            continue
        sign = -1 if chosen else 1  # swapped where the chosen response alone is unsafe
        offset = 10.0 if chosen != rejected else 0.0
        objective = objective - torch.nn.functional.logsigmoid(0.1 * sign * margin - offset)
    expected = gradient(module, objective / len(kinds))
    torch.testing.assert_close(gradient(module, module.loss_share(batch)), expected, rtol=1e-4, atol=1e-7)


def test_a_step_of_dropped_pairs_alone_has_loss_and_gradient_zero() -> None:
    module = loaded(aligned(SafeDPO()))
    share = module.loss_share(first_batch(pairs(Only(3))))
    assert share.item() == 0
    assert not gradient(module, share).any()
    assert "loss" not in module.train_means.compute()  # a mean over kept pairs, of which there are none


class Watched(PreferenceAlignment):
    """Notes the labels of every pair that it trains on, and of how many its step is said to be."""

    def loss_share(self, batch: PackedBatch) -> Tensor:
        self.__dict__.setdefault("unsafe", []).extend(zip(*(side.tolist() for side in batch.label.unsafe), strict=True))
        self.__dict__.setdefault("sizes", []).append(int(batch.pairs_in_step))
        return super().loss_share(batch)


@pytest.mark.parametrize(("objective", "count"), [(SafeDPO(), 19), (DPO(), 26)], ids=["safe_dpo", "dpo"])
def test_pairs_that_an_objective_never_trains_on_fill_no_step(tmp_path: Path, objective: Any, count: int) -> None:
    module, data = Watched(PolicyReference(TinyLlama()), objective, SGD, precompute_reference=True), pairs()
    run = trainer(tmp_path, max_epochs=1, limit_val_batches=1.0)
    run.fit(module, data)
    assert run.global_step == -(-count // 4)
    assert sum(module.sizes) == len(module.unsafe) == count
    assert ((True, True) in module.unsafe) is (count == 26)
    held_out = data.report["splits"]["val"]
    assert len(module.reference_cache) == 2 * (count + held_out), "the reference is spared them as well"
    assert len(data.dual_pairs().row_ids) == data.report["splits"]["dual"], "cost estimates still have every pair"
    assert len(data.val_dataloader().row_ids) == data.report["splits"]["val"]


def test_data_of_which_an_objective_keeps_nothing_are_refused_before_anything_loads(tmp_path: Path) -> None:
    module = aligned(SafeDPO())
    with pytest.raises(ValueError, match=r"leaves out all 7 training pairs.*unsafe/unsafe 8"):
        trainer(tmp_path, max_epochs=1).fit(module, pairs(Only(3)))
    assert module.pair.policy is None


def test_labels_of_dropped_pairs_may_be_anything(batch: PackedBatch) -> None:
    class Dropping(DPO):
        def __call__(self, logratio, label, multiplier):
            scored = super().__call__(logratio, label, multiplier)
            known = ~label.reward.chosen.isnan()
            return scored._replace(loss=scored.loss + label.reward.chosen, weight=known.float())

    module = loaded(aligned(Dropping()))
    reward = batch.label.reward.chosen.clone()
    reward[2] = math.nan
    unknown = batch._replace(label=batch.label._replace(reward=Pair(reward, batch.label.reward.rejected)))
    share = module.loss_share(unknown)
    assert share.item() == pytest.approx(5 / 6 * (math.log(2) + 1), abs=1e-5)
    assert gradient(module, share).isfinite().all()


def test_filler_rows_count_for_nothing(batch: PackedBatch) -> None:
    absent = torch.tensor([True, True, False, True, False, True])
    wild = Pair(*(torch.where(absent, side, math.nan) for side in batch.label.reward))
    label = batch.label._replace(reward=wild)
    filled = batch._replace(present=absent, label=label, pairs_in_step=torch.tensor(4))
    true = take_pairs(batch, [0, 1, 3, 5])._replace(pairs_in_step=torch.tensor(4))
    one, other = loaded(aligned(ConstrainedDPO(), multiplier=1.0)), loaded(aligned(ConstrainedDPO(), multiplier=1.0))
    shares = one.loss_share(filled), other.loss_share(true)
    torch.testing.assert_close(*shares)
    torch.testing.assert_close(gradient(one, shares[0]), gradient(other, shares[1]), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(one.train_means.compute(), other.train_means.compute())


def test_a_reference_scored_beforehand_takes_the_reference_models_place(batch: PackedBatch) -> None:
    class NoReference(PolicyReference):
        def reference_logp(self, sequences):
            raise AssertionError("not to be asked")

    module = loaded(aligned(pair=NoReference(TinyLlama())))
    logp_N = module.pair.policy_logp(batch.sequences).detach()
    given = batch._replace(reference_logp=Pair(logp_N[0::2] - 2, logp_N[1::2] + 3))
    _, logratio, scored = module(given)
    torch.testing.assert_close(logratio.margin, torch.full((6,), 5.0))
    torch.testing.assert_close(scored.loss, torch.full((6,), math.log1p(math.exp(-0.5))))


@pytest.mark.parametrize("adaptation", [LastLayers(1), LoRA(r=2)], ids=["last layers", "adapter"])
def test_a_frozen_head_is_gone_through_once_and_the_step_is_the_same(adaptation: Any, batch: PackedBatch) -> None:
    class Apart(PolicyReference):
        def both_logp(self, sequences):
            return SequenceLogp(self.policy_logp(sequences), self.reference_logp(sequences))

    steps = []
    for kind in (PolicyReference, Apart):
        module = loaded(aligned(SafeDPO(), pair=kind(TinyLlama(), adaptation, backend="chunked")))
        with torch.no_grad():
            for p in module.parameters():  # away from the reference, and from the adapter's start at zero
                p += 0.05 * torch.sin(torch.arange(p.numel())).view_as(p) * p.requires_grad
        share = module.loss_share(batch)
        steps.append((share.detach(), gradient(module, share)))
    torch.testing.assert_close(*steps, rtol=1e-4, atol=1e-6)


# -- what is done with a gradient


def test_a_long_gradient_is_shortened_to_its_bound(tmp_path: Path) -> None:
    begin = weights(loaded(aligned()))
    for bound in (0.01, None):
        module = PreferenceAlignment(PolicyReference(TinyLlama()), DPO(), SGD, gradient_clip_norm=bound)
        run = one_step(module, tmp_path)
        moved, norm = (weights(module) - begin).norm().item(), run.callback_metrics["train/grad_norm"].item()
        assert norm > 0.05
        assert moved == pytest.approx(bound or norm, rel=1e-3)


def test_a_gradient_that_is_not_finite_stops_the_run_and_steps_nothing(tmp_path: Path) -> None:
    class Broken(DPO):
        def __call__(self, logratio, label, multiplier):
            scored = super().__call__(logratio, label, multiplier)
            return scored._replace(loss=scored.loss * math.inf)

    module = aligned(Broken())
    with pytest.raises(FloatingPointError, match=r"gradient norm is \w+ at optimizer step 0"):
        one_step(module, tmp_path)
    assert torch.equal(weights(module), weights(loaded(aligned())))


# -- what is asked of a user


def test_a_negative_multiplier_is_refused() -> None:
    with pytest.raises(ValueError, match="multiplier must be >= 0"):
        aligned(multiplier=-1.0)


# -- whole fits


def test_every_promised_curve_stands_in_the_event_file_and_the_checkpoint_holds_plain_values(tmp_path: Path) -> None:
    module = aligned(SafeDPO())
    callbacks = [RunFolder(), DualAscent(), RunCheckpoint()]
    run = trainer(
        tmp_path / "run",
        max_epochs=1,
        logger=[TensorBoardRun()],
        callbacks=callbacks,
        enable_checkpointing=True,
        limit_val_batches=1.0,
    )
    run.fit(module, pairs())
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    curves = {tag: [e.step for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    every = list(range(1, run.global_step + 1))
    for name in ("loss", "rewards/margins", "logps/chosen", "lengths/rejected", "pairs/dropped", "grad_norm"):
        assert curves[f"train/{name}"] == every
    for name in (*PAIR_NAMES, "learning_rate", "epoch", *(f"perf/{n}" for n in ("tokens_per_s", "rows_per_s"))):
        # a stratum's only where it occurs, and SafeDPO trains on no pair of two unsafe responses
        assert bool(curves.get(f"train/{name}")) == (name != "rewards/accuracies/unsafe_unsafe"), name
    for name in PAIR_NAMES:
        if not name.startswith("rewards/accuracies/"):  # of four held-out pairs, not every stratum has one
            assert curves[f"eval/{name}"] == [run.global_step], name
    assert not any("multiplier" in tag for tag in curves), "SafeDPO does not read it"
    assert curves["train/perf/peak_gib"] == every

    stored = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert stored["global_step"] == run.global_step
    assert not any("reference" in name for name in stored["state_dict"])
    fresh = loaded(aligned(SafeDPO()))
    fresh.load_state_dict(stored["state_dict"])
    assert torch.equal(weights(fresh), weights(module))


def test_a_few_pairs_are_learned_by_heart(tmp_path: Path) -> None:
    module = aligned(lr=3e-3)
    losses, run = [], trainer(tmp_path, max_epochs=20)
    log = module.publish
    module.publish = lambda prefix, values: (losses.append(float(values["loss"])), log(prefix, values))
    run.fit(module, pairs(Fruit(6), pairs_per_step=8, micro_batch_pairs=4))
    assert run.global_step == 20
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < losses[0] / 2
    assert run.callback_metrics["train/rewards/accuracies"] == 1


def test_means_of_validation_do_not_depend_on_how_it_is_batched(tmp_path: Path) -> None:
    found = []
    for size in (1, 3, 8):
        run = trainer(tmp_path, limit_val_batches=1.0)
        run.validate(aligned(SafeDPO()), pairs(eval_batch_pairs=size), verbose=False)
        found.append({k: v.item() for k, v in run.callback_metrics.items()})
    assert found[0]["eval/rewards/accuracies"] == 0.5  # every margin ties at step 0
    assert found[1] == pytest.approx(found[0], rel=1e-5, abs=1e-6)
    assert found[2] == pytest.approx(found[0], rel=1e-5, abs=1e-6)
