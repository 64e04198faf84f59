"""What a run says before it starts and after it ends."""

import logging
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_safe.stepping import StepModule

log = logging.getLogger(__name__)


class Announce(Callback):
    """Says what is about to happen (model, reference, rows, steps, memory), and where the results are."""

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The opening lines."""
        assert isinstance(pl_module, StepModule)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        facts = pl_module.pair.facts()
        log.info("model      %s: %.1f M parameters, %.1f M train, %s (licence: %s)", facts.source,
                 facts.parameters / 1e6, facts.trainable / 1e6, facts.dtype, facts.licence)  # fmt: skip
        log.info("reference  %s", facts.reference)
        objective = getattr(pl_module, "objective", None)
        if objective is not None:
            log.info("objective  %r", objective)
        tokens, scored = data.largest_micro_batch
        log.info("steps      %s in %s epochs, a micro-batch of at most %d tokens (%d scored)",
                 trainer.estimated_stepping_batches, trainer.max_epochs, tokens, scored)  # fmt: skip
        estimate = pl_module.pair.memory_estimate(tokens, scored)
        parts = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in estimate._asdict().items())
        log.info("memory     about %.1f GiB at most (%s)", estimate.total / 2**30, parts)

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Where the results are."""
        log.info("results in %s (tensorboard --logdir %s)", trainer.default_root_dir, trainer.default_root_dir)
