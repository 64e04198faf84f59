"""In every precision that is allowed a policy starts as its reference, moves as in fp32, and lambda is exact."""

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from lightning import Callback
from lightning.pytorch.callbacks import StochasticWeightAveraging

from lit_safe.anchors.reference_mass import ReferenceMass
from lit_safe.constraint.costs import labelled_rows
from lit_safe.constraint.costs.importance import ImportanceCost
from lit_safe.constraint.costs.rollout import RolloutCost
from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.evaluation.evaluate import evaluate
from lit_safe.objectives import DPO, ConstrainedDPO
from lit_safe.precision import TRAINER_PRECISIONS, check_trainer_precision
from lit_safe.training.module import PreferenceAlignment
from lit_safe.types import PackedBatch, PackedSequences, Pair, Scored
from models.adaptation import Full, LastLayers, LoRA
from models.pair import PolicyReference
from models.reference import AdapterOff, Checkpoint, FrozenCopy
from models.sources import TinyLlama
from tests.lit_safe.pair_world import adamw, aligned, pairs, trainer, weights

ROUNDING = {"32-true": 1e-4, "bf16-mixed": 1e-2}
"""Nats between one response's log-probs from two computations, in batches of other shapes, on the tiny model."""


class InBf16(TinyLlama):
    """As a checkpoint that was published in bf16."""

    def load_model(self) -> transformers.PreTrainedModel:
        return super().load_model().bfloat16()


RUNS: dict[str, tuple[str, Any]] = {
    "fp32": ("32-true", lambda: (TinyLlama(),)),
    "fp32 checkpoint, bf16-mixed": ("bf16-mixed", lambda: (TinyLlama(),)),
    "bf16 checkpoint, fp32": ("32-true", lambda: (InBf16(), Full(), FrozenCopy())),
    "bf16 checkpoint, bf16-mixed": ("bf16-mixed", lambda: (InBf16(), Full(), FrozenCopy())),
    "bf16 checkpoint against itself": ("bf16-mixed", lambda: (InBf16(), Full(), Checkpoint(InBf16()))),
    "bf16 base + LoRA": ("bf16-mixed", lambda: (InBf16(), LoRA(r=2), AdapterOff())),
    "bf16 base + LoRA + copy": ("bf16-mixed", lambda: (InBf16(), LoRA(r=2), FrozenCopy())),
    "bf16 trunk": ("bf16-mixed", lambda: (InBf16(), LastLayers(1), FrozenCopy())),
}


class Watched(PreferenceAlignment):
    """Keeps what the first training micro-batch was given and gave."""

    first: Any = None

    def forward(self, batch: PackedBatch, own_reference: bool = False) -> tuple[Pair, Pair, Scored]:
        found = super().forward(batch, own_reference)
        if self.first is None and self.trainer.training:
            self.first = batch, Pair(*(side.detach() for side in found[1])), Scored(*(v.detach() for v in found[2]))
        return found


class Counting(PolicyReference):
    scored = 0

    def reference_logp(self, sequences: PackedSequences) -> torch.Tensor:
        self.scored += len(sequences.cu_seqlens) - 1
        return super().reference_logp(sequences)


@pytest.fixture(scope="module")
def fruit() -> Any:
    return pairs(micro_batch_pairs=2)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("where", ["online", "precomputed", "on disk"])
@pytest.mark.parametrize("run", RUNS)
def test_before_the_first_step_the_policy_is_its_reference(
    run: str, where: str, layout: Any, tmp_path: Path, fruit: Any
) -> None:
    precision, made = RUNS[run]
    for _ in range(2 if where == "on disk" else 1):
        pair = Counting(*made(), layout=layout)
        kept = str(tmp_path / "kept") if where == "on disk" else None
        module = Watched(pair, DPO(), adamw(1e-6), precompute_reference=where != "online", reference_cache_dir=kept)
        trainer(tmp_path, max_steps=1, precision=precision).fit(module, fruit)
    _, logratio, scored = module.first
    bound = 1e-6 if where == "online" else ROUNDING[precision]
    assert max(float(side.abs().max()) for side in logratio) <= bound
    torch.testing.assert_close(scored.loss, torch.full_like(scored.loss, math.log(2)), rtol=0, atol=1e-6 + 0.1 * bound)
    assert pair.scored == 0 if where == "on disk" else True
    assert {p.dtype for p in module.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("run", ["bf16 checkpoint, fp32", "bf16 checkpoint, bf16-mixed", "bf16 trunk"])
def test_the_copy_of_a_bf16_checkpoint_takes_bf16_for_matrices_while_products_are_made_in_it(run: str) -> None:
    precision, made = RUNS[run]
    pair = PolicyReference(*made())
    pair.load()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"), pair._open_reference() as reference:
        matrices = {m.weight.dtype for n, m in reference.named_modules() if type(m) is torch.nn.Linear and "proj" in n}
    assert matrices == {torch.bfloat16 if precision == "bf16-mixed" else torch.float32}


# -- lambda, labels, weights


@pytest.mark.parametrize("precision", TRAINER_PRECISIONS)
def test_labels_and_multiplier_reach_the_objective_as_they_are(precision: str, tmp_path: Path) -> None:
    module = Watched(PolicyReference(InBf16()), ConstrainedDPO(), adamw(1e-6), multiplier=2.0)
    third = 1 / 3  # not a number of bf16
    module.multiplier.fill_(2 + third / 64)
    data = pairs(micro_batch_pairs=2)
    trainer(tmp_path, max_steps=1, precision=precision).fit(module, data)
    batch, logratio, _ = module.first
    assert float(module.multiplier) == pytest.approx(2 + third / 64, abs=1e-7)
    for tensor in (module.multiplier, *logratio, *batch.label.reward, *batch.label.cost, batch.label.draw):
        assert tensor.dtype.itemsize >= 4
    assert len(batch.label.draw.bfloat16().double().sub(batch.label.draw.double()).nonzero()), "coins keep their bits"


class Untouched(TinyLlama):
    def load_model(self) -> transformers.PreTrainedModel:
        raise AssertionError("read before it was refused")


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "16-mixed"])
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_precision_that_would_round_weights_or_labels_is_refused_before_anything_is_read(
    precision: Any, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pairs()
    monkeypatch.setattr(data, "setup", lambda stage: pytest.fail("data were read"))
    run = trainer(tmp_path, max_steps=1)
    monkeypatch.setattr(run.precision_plugin, "precision", precision)  # 16-mixed itself asks for a GPU
    with pytest.raises(ValueError, match=f"'{precision}' is not supported: use bf16-mixed") as caught:
        getattr(run, command)(aligned(pair=PolicyReference(Untouched())), data)
    assert "\n" not in str(caught.value)


def test_a_callback_that_replaces_the_schedule_is_refused_by_name(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=1, callbacks=[StochasticWeightAveraging(1e-3)])
    with pytest.raises(ValueError, match="StochasticWeightAveraging is not supported"):
        run.fit(aligned(pair=PolicyReference(Untouched())), pairs())


class Cast(PolicyReference):
    """Somebody cast the policy after it was loaded."""

    def load(self) -> None:
        super().load()
        self.to(torch.bfloat16)


def test_a_weight_below_fp32_trains_only_where_that_was_asked_for_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pair\.policy\..* trains in bfloat16.*trainable_dtype: bfloat16"):
        trainer(tmp_path, max_steps=1, precision="bf16-mixed").fit(aligned(pair=Cast(TinyLlama())), pairs())
    module = aligned(pair=PolicyReference(InBf16(), trainable_dtype="bfloat16"))
    trainer(tmp_path, max_steps=1, precision="bf16-mixed").fit(module, pairs())
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    with pytest.raises(ValueError, match="trainable_dtype must be one of"):
        PolicyReference(TinyLlama(), trainable_dtype="float8")  # type: ignore[arg-type]


def test_fifty_small_steps_from_a_bf16_checkpoint_move_what_they_move_in_fp32(tmp_path: Path, fruit: Any) -> None:
    moved, margins = {}, {}
    for precision in ("32-true", "bf16-mixed"):
        module = aligned(lr=1e-6, pair=PolicyReference(InBf16()))
        module.configure_model()
        before = weights(module)
        trainer(tmp_path, max_steps=50, max_epochs=-1, precision=precision).fit(module, fruit)
        moved[precision] = float((weights(module) != before).float().mean())
        with torch.no_grad():
            found = [module(batch)[1].margin for (batch, *_) in fruit.train_dataloader()]
        margins[precision] = float(torch.cat(found).mean())
    assert moved["32-true"] > 0.8
    assert moved["bf16-mixed"] >= 0.95 * moved["32-true"]
    assert margins["32-true"] > 1e-3
    assert margins["bf16-mixed"] == pytest.approx(margins["32-true"], rel=0.05)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_heads_gradient_is_that_of_fp32(precision: Any, tmp_path: Path, fruit: Any) -> None:
    module = aligned(lr=0.0, pair=PolicyReference(TinyLlama(), LastLayers(1, head=True)))
    trainer(tmp_path, max_steps=1, precision=precision).fit(module, fruit)
    gradient = module.pair.policy.head.weight_VD.grad
    rounded = gradient.bfloat16().float() == gradient
    assert rounded[gradient != 0].float().mean() < 0.1, "a product in bf16 has only numbers that bf16 holds"


# -- everything beside the training step


class UnderAutocast(PolicyReference):
    """Notes for each pass whether it ran in the run's precision, in evaluation mode and without gradient."""

    def load(self) -> None:
        super().load()
        self.passes: list[tuple[str, bool]] = []

    def note(self, name: str) -> None:
        quietly = not torch.is_grad_enabled() and not self.policy.training
        self.passes.append((name, torch.is_autocast_enabled("cpu") and quietly))

    def reference_logp(self, sequences: PackedSequences) -> torch.Tensor:
        if not torch.is_grad_enabled():
            self.note("reference_logp")
        return super().reference_logp(sequences)

    def generate(self, *given: Any, **named: Any) -> list[list[int]]:
        self.note("generate")
        return super().generate(*given, **named)

    def sequence_stats(self, sequences: PackedSequences) -> Any:
        self.note("sequence_stats")
        return super().sequence_stats(sequences)


def length(prompts: Any, responses: Any) -> torch.Tensor:
    return torch.tensor([len(text) / 10 - 1 for text in responses])


class Evaluates(Callback):
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        evaluate(pl_module, trainer.datamodule, cost=length, prompts=2, max_new_tokens=2)


@pytest.mark.parametrize(
    ("options", "callbacks", "expected"),
    [
        ({"precompute_reference": True}, lambda: [], {"reference_logp"}),
        (
            {"anchor": ReferenceMass(samples_per_prompt=2, samples_per_step=2, max_prompts=2, max_new_tokens=2)},
            lambda: [],
            {"generate", "reference_logp"},
        ),
        (
            {},
            lambda: [DualAscent(estimator=RolloutCost(length, prompts=2, max_new_tokens=2))],
            {"generate", "sequence_stats"},
        ),
        (
            {},
            lambda: [Evaluates()],
            {"generate", "sequence_stats"},
        ),
    ],
    ids=["reference cache", "anchor", "dual estimator", "evaluation"],
)
def test_what_runs_beside_the_step_runs_in_its_precision(
    options: Any, callbacks: Any, expected: set[str], tmp_path: Path
) -> None:
    pair = UnderAutocast(InBf16())
    module = aligned(pair=pair, **options)
    trainer(tmp_path, max_epochs=1, limit_train_batches=2, precision="bf16-mixed", callbacks=callbacks()).fit(
        module, pairs()
    )
    assert {name for name, _ in pair.passes} >= expected
    assert all(right for _, right in pair.passes), pair.passes


def test_importance_weights_of_a_policy_that_has_not_moved_are_one_in_the_runs_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen = labelled_rows._rows, []

    def noted(module: Any, batch: Any, device: Any) -> Any:
        rows = original(module, batch, device)
        seen.append((rows[0], torch.is_autocast_enabled("cpu")))
        return rows

    monkeypatch.setattr(labelled_rows, "_rows", noted)
    estimator = ImportanceCost(minimum_effective=2)
    data = pairs()
    data.__class__ = type("FromReference", (type(data),), {"responses_from": {"reference"}})
    dual = DualAscent(estimator=estimator)
    trainer(tmp_path, max_epochs=1, precision="bf16-mixed", callbacks=[dual]).fit(
        aligned(lr=0.0, pair=PolicyReference(InBf16())), data
    )
    logratio_N, autocast = seen[-1]
    assert autocast
    assert logratio_N.abs().max() <= 1e-6


def test_stored_log_probs_are_named_by_the_type_of_their_products(tmp_path: Path, fruit: Any) -> None:
    for precision in ("32-true", "bf16-mixed"):
        module = aligned(
            pair=PolicyReference(TinyLlama()), precompute_reference=True, reference_cache_dir=str(tmp_path / "kept")
        )
        trainer(tmp_path, max_steps=1, precision=precision).fit(module, fruit)
    assert len(list((tmp_path / "kept").glob("*.npz"))) == 2


def test_a_gpu_without_bf16_is_named_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    with pytest.raises(ValueError, match=r"^trainer.precision bf16-mixed: Tesla T4 has no products in bf16: set --tr"):
        check_trainer_precision("bf16-mixed", torch.device("cuda", 0))
    assert asked == [False]
    check_trainer_precision("32-true", torch.device("cuda", 0))
    check_trainer_precision("bf16-mixed", torch.device("cpu"))
