"""Measures a trained score model on held-out pairs, calibrates it, and writes it with its card.

Letters: B pairs, N = 2B sequences, P pairs of the split, D hidden width, K outputs, C constraints.
"""

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from lit_safe.evaluation.score_quality import HeldOutScores, Measured, measure
from lit_safe.execution.quiet import quiet
from lit_safe.execution.ranks import gather, merge
from lit_safe.export.folder_check import first
from lit_safe.protocols.trainer import connected
from lit_safe.report.reliability import plot_reliability
from lit_safe.scorer_card import Quality, ScorerCard
from lit_safe.training.feature_cache import keys_of
from lit_safe.training.score_losses import REWARD
from lit_safe.types import PackedBatch, PackedSequences

log = logging.getLogger(__name__)

FOLDER = "score_model"
PICTURE = "reliability.png"
RIDGE = 1e-6
"""Penalty on the constant direction, in units of the mean square of hidden states."""
CHECKED = 4  # held-out sequences on which the written folder is compared


class ScoreReport(Callback):
    """After training, writes ``<run folder>/score_model``: the calibrated model, ``card.json`` and ``reliability.png``.

    A cost is calibrated to log-odds of being unsafe by a slope and an intercept (Platt 1999), on the labels of the val
    split. A slope alone could not move the zero, on which a limit stands. Prompts that are for evaluation only are
    left out. A Hugging Face classifier has no bias, so the intercept is a weight too: ``intercept * a``, where ``a @
    hidden`` is 1 up to an error that the card states. ``a`` is the least-squares fit of 1 to hidden states of the train
    split, with a small penalty.

    If this fails, the trained checkpoint stays, one line says so, and the run ends with status 1. A resumed run
    (``--ckpt_path last``) repeats it.
    """

    def __init__(self) -> None:
        self.failed: str | None = None
        self._trained = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that there will be something to report."""
        self._trained = not connected(trainer).fast_dev_run

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, calibrate and write."""
        self.failed = None
        if not self._trained:
            return
        try:
            self._finish(trainer, pl_module)
        except Exception as error:  # whatever it is, training is over and saved
            reason = str(error).strip().partition("\n")[0]
            self.failed = (
                f"no score model is written ({type(error).__name__}: {reason}). The trained weights are in the "
                "checkpoint; continue with --ckpt_path last to try again"
            )
            if trainer.is_global_zero:
                log.error("%s", self.failed)
            log.debug("", exc_info=True)

    def acts_after_training(self) -> bool:
        """Whether a score model is to be written."""
        return self._trained

    def _finish(self, trainer: Trainer, module: Any) -> None:
        data = connected(trainer).datamodule
        with quiet(module, seed=0) as device:
            constant_D, error = _constant(module, data.batches_of("train"), device)
            held_out = _held_out(module, data.batches_of("val"), constant_D, device)
            some = next(iter(data.batches_of("val")))
            hidden_nD = _features(module, some, device)[:CHECKED]
        if not trainer.is_global_zero:
            return
        barred = {pair.prompt_id for pair in data.pairs("val") if pair.evaluation_only}
        own_P = torch.tensor([int(prompt) not in barred for prompt in held_out.prompt_P]).numpy().astype(bool)
        outputs: tuple[str, ...] = module.pair.outputs
        found = {name: measure(held_out.keep(own_P), outputs, k) for k, name in enumerate(outputs)}
        others = held_out.keep(~own_P) if barred else None
        also = {} if others is None else {name: measure(others, outputs, k).quality for k, name in enumerate(outputs)}
        for one in found.values():
            log.info("%s", one.words)
        weight_KD = calibrated(module.pair.weight_KD.cpu(), constant_D.cpu(), list(found.values()))
        place = Path(trainer.default_root_dir) / FOLDER
        draft = place.with_name(f".{FOLDER}.unfinished")
        shutil.rmtree(draft, ignore_errors=True)
        try:
            module.pair.save_pretrained(str(draft), weight_KD=weight_KD)
            _compare(draft, first(some.sequences, CHECKED), hidden_nD, weight_KD, str(trainer.precision))
            curves = {name: one.reliability for name, one in found.items() if one.reliability is not None}
            if curves:
                plot_reliability(curves, draft / PICTURE)
            self._card(trainer, module, data, found, also, error).save(draft)
            shutil.rmtree(place, ignore_errors=True)
            draft.rename(place)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        log.info("score model: %s", place)

    @staticmethod
    def _card(
        trainer: Trainer, module: Any, data: Any, found: dict[str, Measured], also: dict[str, Quality], error: float
    ) -> ScorerCard:
        name = Path(trainer.default_root_dir).absolute().name
        return ScorerCard(
            name=name,
            units={output: "nats" if output == REWARD else "log_odds" for output in found},
            trained_on=("train",) if data.report.get("held_out", True) else ("train", "val", "dual", "certify"),
            quality={output: one.quality for output, one in found.items()},
            calibration={output: one.calibration() for output, one in found.items()},
            data=tuple({**source.describe(), "licence": source.licence} for source in data.sources),
            details={
                "model": module.pair.facts().source,
                "trains": "the heads alone" if module.pair.frozen else "heads and trunk",
                "optimizer_steps": trainer.global_step,
                "max_length": getattr(data, "max_length", None),
                "constant_error": error,
                "evaluation_only": {output: vars(quality) for output, quality in also.items()},
            },
        )


def calibrated(weight_KD: Tensor, constant_D: Tensor, found: list[Measured]) -> Tensor:
    """[K, D] float64 head weights of ``slope * score + intercept``: ``slope * weight + intercept * constant``."""
    slope_K = torch.tensor([one.slope for one in found], dtype=torch.float64)
    intercept_K = torch.tensor([one.intercept for one in found], dtype=torch.float64)
    return slope_K[:, None] * weight_KD.double() + intercept_K[:, None] * constant_D.double()


def constant_direction(square_DD: Tensor, sum_D: Tensor, count: float) -> Tensor:
    """[D] float64: the ridge regression of 1 on hidden states without an intercept.

    ``argmin_a mean((hidden @ a - 1)^2) + RIDGE * m * |a|^2`` with m the mean square of the hidden units.

    Args:
        square_DD: Sum of hidden^T hidden.
        sum_D: Sum of hidden.
        count: Number of hidden states.
    """
    square_DD, sum_D = square_DD.double() / count, sum_D.double() / count
    penalty = RIDGE * square_DD.diagonal().mean().clamp(min=1e-30)
    eye_DD = torch.eye(len(sum_D), dtype=torch.float64)
    return torch.linalg.solve(square_DD + penalty * eye_DD, sum_D)


def _features(module: Any, batch: PackedBatch, device: torch.device) -> Tensor:
    """[N, D] hidden states of a batch on the host."""
    compute = lambda sequences: module.pair.features(move_data_to_device(sequences, device)).cpu()  # noqa: E731
    found: Tensor = compute(batch.sequences) if module.cache is None else module.cache.of(batch, compute)
    return found


def _constant(module: Any, batches: Iterable[PackedBatch], device: torch.device) -> tuple[Tensor, float]:
    """The constant direction [D] of this rank's and all other ranks' hidden states, and its root mean square error."""
    square_DD, sum_D, count = torch.zeros(0), torch.zeros(0), torch.zeros(1, dtype=torch.float64)
    for batch in batches:
        hidden_nD = _features(module, batch, device)[batch.present.repeat_interleave(2)].double()
        if not len(sum_D):
            width = hidden_nD.shape[1]
            square_DD, sum_D = (torch.zeros(*shape, dtype=torch.float64) for shape in ((width, width), (width,)))
        square_DD += hidden_nD.T @ hidden_nD
        sum_D += hidden_nD.sum(0)
        count += len(hidden_nD)
    square_DD, sum_D, count = (merge(part, device) for part in (square_DD, sum_D, count))
    constant_D = constant_direction(square_DD, sum_D, float(count))
    # mean((h @ a - 1)^2) from the same sums
    square = constant_D @ (square_DD / float(count)) @ constant_D - 2 * constant_D @ (sum_D / float(count)) + 1
    return constant_D, float(square.clamp(min=0).sqrt())


def _held_out(module: Any, batches: Iterable[PackedBatch], constant_D: Tensor, device: torch.device) -> HeldOutScores:
    """Scores and labels of all ranks' held-out pairs."""
    columns: list[Tensor] = []
    keys: list[Tensor] = []
    for batch in batches:
        hidden_ND = _features(module, batch, device)
        score_NK = module.pair.score_features(hidden_ND.to(device)).double().cpu()
        one_N = hidden_ND.double() @ constant_D
        key_B2 = torch.tensor(keys_of(batch.sequences)).reshape(-1, 2)
        cost_B2C = torch.stack([side.reshape(len(side), -1) for side in batch.label.cost], 1).double()
        flat = [one_N.reshape(-1, 2), batch.label.reward.margin.double()[:, None], score_NK.reshape(len(key_B2), -1)]
        columns.append(gather(torch.cat([*flat, cost_B2C.flatten(1)], 1), device))
        keys.append(gather(torch.cat([key_B2, batch.prompt_id[:, None], batch.present.long()[:, None]], 1), device))
    key_P, column_P = torch.cat(keys), torch.cat(columns)
    here = key_P[:, 3].bool()
    key_P, column_P = key_P[here], column_P[here]
    outputs = len(module.pair.outputs)
    return HeldOutScores(
        prompt_P=key_P[:, 2].numpy(),
        key_P2=key_P[:, :2].numpy(),
        one_P2=column_P[:, :2].numpy(),
        reward_P=column_P[:, 2].numpy(),
        score_P2K=column_P[:, 3 : 3 + 2 * outputs].reshape(-1, 2, outputs).numpy(),
        cost_P2C=column_P[:, 3 + 2 * outputs :].reshape(len(column_P), 2, -1).numpy(),
    )


def _compare(folder: Path, sequences: PackedSequences, hidden_nD: Tensor, weight_KD: Tensor, precision: str) -> None:
    """Check that a stock sequence classifier computes the scores of the written folder's heads.

    The sequences are padded into one batch with the folder's pad token. The difference must be within the rounding of
    the sums: 1e-4 of the sum of absolute products, or 2e-2 if hidden states were computed in bf16.

    Raises:
        ValueError: If a score differs by more.
    """
    from transformers import AutoModelForSequenceClassification  # takes seconds to import

    model = AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True).float().eval()
    rows = sequences.input_ids.split(sequences.cu_seqlens.diff().tolist())
    pad = model.config.get_text_config().pad_token_id
    ids_nS = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=pad)
    mask_nS = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    with torch.no_grad():
        theirs_nK = model(input_ids=ids_nS, attention_mask=mask_nS).logits.double()
    ours_nK = hidden_nD.double() @ weight_KD.T
    size_nK = hidden_nD.double().abs() @ weight_KD.abs().T
    gap, bound = (ours_nK - theirs_nK).abs(), (2e-2 if precision.startswith("bf16") else 1e-4) * size_nK + 1e-6
    if not bool((gap <= bound).all()):
        raise ValueError(
            f"the written sequence classifier gives scores that are off by {float(gap.max()):.3g}; please report this "
            "with the model's name"
        )
