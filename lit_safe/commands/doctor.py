"""Checks a model and its data before training: a policy, or a score model."""

import logging
from typing import Any

import torch
from lightning import Trainer
from rich.console import Console
from rich.table import Table

from lit_safe.commands.loading import make_ready
from lit_safe.commands.sizes import check_sizes
from lit_safe.doctor import checks, score_checks
from lit_safe.doctor.patient import Patient, take_pairs
from lit_safe.errors.message import SettingError
from lit_safe.precision import compute_dtype, run_precision
from lit_safe.training.memory_plan import plan_memory
from lit_safe.training.micro_batch import choose_micro_batch, ranks_on
from lit_safe.training.module import PreferenceAlignment
from lit_safe.training.reference_plan import memory_of_a_step
from lit_safe.training.score_model import ScoreModel
from lit_safe.training.stepping import StepModule
from lit_safe.types import PackedBatch

log = logging.getLogger(__name__)

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 1.0, torch.float16: 0.2}
"""By dtype: the difference in nats that rounding can cause over a response of a few hundred tokens."""


def doctor(
    module: StepModule,
    data: Any,
    *,
    trainer: Trainer | None = None,
    pairs: int = 4,
    tolerance: float | None = None,
    device: str = "auto",
) -> int:
    """Check your model and data before a run: step-0 loss, padding, packing, accumulation, stop tokens, reference.

    A score model (configs/score/) has checks of its own: labels of each output, hidden states, what trains. All checks
    run in the precision of ``--trainer``. The settings of the ``dual`` group are checked as ``fit`` does.

    Args:
        module: From ``--model``.
        data: From ``--data``.
        trainer: From ``--trainer``. Its precision, device and callbacks are used.
        pairs: Number of training pairs to check. The accumulation check holds a second copy of the gradient in memory.
        tolerance: Largest difference in nats that counts as rounding. The default depends on the dtype of the matrix
            products.
        device: Where to run: auto (the trainer's device), cpu, cuda, cuda:1 or mps.

    Returns:
        The exit status: 0 if every check passed, 1 otherwise.

    Raises:
        SettingError: If the module trains neither on preferences nor scores.
    """
    check_sizes(pairs=pairs)
    if not isinstance(module, PreferenceAlignment | ScoreModel):
        raise SettingError(
            f"doctor checks preference training and score models, not {type(module).__name__}: check the model with "
            "configs/base.yaml and a data set of pairs"
        )
    place = make_ready(module, data, device, trainer, stage="fit")
    module.train()
    with run_precision(module, place):
        return _examine(module, data, trainer, place, pairs, tolerance)


def _examine(
    module: PreferenceAlignment | ScoreModel,
    data: Any,
    trainer: Trainer | None,
    device: torch.device,
    pairs: int,
    tolerance: float | None,
) -> int:
    facts = module.pair.facts()
    log.info("model %s, reference %s, %.1f M parameters (%.1f M train), %s, log-probs by %s", facts.source,
             facts.reference, facts.parameters / 1e6, facts.trainable / 1e6, facts.dtype, facts.backend)  # fmt: skip
    for layer in _adapter_dropout(module.pair):
        layer.eval()  # the user configured it: it must not fail the checks
    products = compute_dtype(device)
    dtype = next(module.parameters()).dtype if products == "weights" else getattr(torch, products)
    batch = _first_pairs(data, pairs, device)
    ranks = 1 if trainer is None else ranks_on(device, trainer.num_devices)
    choose_micro_batch(module.pair, data, device, ranks)
    needed = memory_of_a_step(module, trainer, data)
    if trainer is not None and trainer.world_size > 1:  # the doctor runs in one process
        needed = needed._replace(buckets=needed.gradients)
    plan = plan_memory(needed, data, device, ranks)
    facts_of = (
        batch if trainer is None else trainer.precision_plugin.convert_input(batch),
        data.stop_ids,
        TOLERANCE.get(dtype, 1e-3) if tolerance is None else tolerance,
        plan,
        data,
        trainer,
    )
    if isinstance(module, ScoreModel):
        findings = score_checks.examine(Patient(module, *facts_of))
    else:
        findings = checks.examine(Patient(module, *facts_of))
    table = Table("check", "", "seen", title="doctor")
    failed = 0
    for finding in findings:
        failed += not finding.passed
        table.add_row(finding.check, "ok" if finding.passed else "[bold red]FAILED[/]", finding.seen)
    Console(width=160).print(table)
    log.info("%s", "every check passed" if not failed else f"{failed} checks failed")
    return int(failed > 0)


def _first_pairs(data: Any, pairs: int, device: torch.device) -> PackedBatch:
    for micro_batches in data.train_dataloader():
        for batch in micro_batches:
            present = batch.present.nonzero().flatten().tolist()[:pairs]
            if present:
                taken = take_pairs(batch, present)
                return _to(taken._replace(pairs_in_step=torch.tensor(len(present))), device)
    raise ValueError("the training split has no pairs")


def _adapter_dropout(pair: Any) -> list[torch.nn.Module]:
    """Dropout layers that are on although the model's own dropout is off: those of an adapter."""
    if not getattr(pair, "disable_dropout", False):
        return []
    return [m for m in pair.modules() if isinstance(m, torch.nn.modules.dropout._DropoutNd) and m.p > 0]


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return type(value)(*(_to(item, device) for item in value))
    return value
