"""Checks before the first step of ``fit`` whether the limit is in reach, and gives the multiplier its start value."""

import logging
from pathlib import Path

from lightning import Callback, LightningModule, Trainer

from lit_safe.constraint.dual_ascent import DualAscent, dual_of
from lit_safe.constraint.reachability.reach import Reach
from lit_safe.constraint.reachability.survey import STEM, scorer, survey
from lit_safe.constraint.reachability.words import findings, suggestions
from lit_safe.errors.message import SettingError
from lit_safe.execution.ranks import failing_together
from lit_safe.protocols.trainer import connected
from lit_safe.training.module import PreferenceAlignment
from lit_safe.types import CostFunction

log = logging.getLogger(__name__)


class Reachability(Callback):
    """Estimates before the first step which multiplier meets ``dual.limit``, from scored samples of the reference.

    It writes ``reach.md``, ``reach.json`` and ``reach.png`` into the run folder. With ``model.multiplier: auto`` the
    multiplier starts at the estimate. A resumed run repeats nothing. The scorers must be fitted beforehand.

    Args:
        reward: Scores text; larger is better, in nats of Bradley-Terry. Null tilts by cost alone (r = 0).
        cost: Scores text; > 0 is unsafe. Null takes the scorer of ``dual.estimator``.
        prompts: Number of prompts of the dual split; null takes all.
        samples_per_prompt: Responses of the reference to each.
        max_new_tokens: Maximum length of a response in tokens.
        batch_size: Number of responses generated at once.
        stop: End the run before it trains if a limit is out of reach by more than the error of the estimate. If false,
            it only says so.
        seed: Of the draws; null takes the run's.

    Raises:
        ValueError: If a count is too small.
    """

    def __init__(
        self,
        reward: CostFunction | None = None,
        cost: CostFunction | None = None,
        prompts: int | None = 64,
        samples_per_prompt: int = 32,
        max_new_tokens: int = 64,
        batch_size: int = 32,
        stop: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        least = {"prompts": (prompts, 2), "samples_per_prompt": (samples_per_prompt, 2),
                 "max_new_tokens": (max_new_tokens, 1), "batch_size": (batch_size, 1)}  # fmt: skip
        for name, (value, smallest) in least.items():
            if value is not None and value < smallest:
                raise ValueError(f"{name} must be >= {smallest}, got {value}")
        self.reward = reward
        self.cost = cost
        self.prompts = prompts
        self.samples_per_prompt = samples_per_prompt
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.stop = stop
        self.found: Reach | None = None
        self.seed = seed

    def multiplier_start(self) -> tuple[float, ...] | None:
        """The multipliers that meet the limits (``lit_safe.protocols.run.StartsMultiplier``). None before training."""
        return None if self.found is None else self.found.optimum.multiplier

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the settings.

        Raises:
            SettingError: If the objective does not read the multiplier, or there is no cost function.
        """
        if stage != "fit":
            return
        module, dual = _parts(trainer, pl_module)
        if not module.objective.reads_multiplier:
            raise SettingError(
                f"Reachability is about the multiplier, and {type(module.objective).__name__} does not read it: remove "
                "the callback, or name an objective that reads it (configs/objective/c_dpo.yaml)"
            )
        scorer(self.cost, dual)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Estimate, write and say what was found; start the multiplier; stop if a limit is out of reach.

        Raises:
            SettingError: If a limit is out of reach and ``stop`` is set.
        """
        if trainer.ckpt_path is not None or connected(trainer).fast_dev_run:
            return
        module, dual = _parts(trainer, pl_module)
        data = connected(trainer).datamodule
        seed = module.seed if self.seed is None else self.seed
        with failing_together():
            found = survey(
                module, data, dual, cost=self.cost, reward=self.reward, prompts=self.prompts,
                samples_per_prompt=self.samples_per_prompt, max_new_tokens=self.max_new_tokens,
                batch_size=self.batch_size, seed=seed,
            )  # fmt: skip
        folder = Path(trainer.default_root_dir)
        if trainer.is_global_zero:
            found.write(folder)
            found.say()
        self.found = result = found.found
        beyond = [c for c, verdict in enumerate(result.verdicts) if verdict == "not reached" and result.clear[c]]
        if self.stop and beyond:
            advice = " ".join([findings(result)[beyond[0]], *suggestions(result)[:1]])
            raise SettingError(f"{advice} See {folder / STEM}.md; Reachability's stop: false trains nevertheless")
        if module.multiplier_auto:
            start = module.multiplier.new_tensor(result.optimum.multiplier).reshape(module.multiplier.shape)
            start = start.maximum(dual.controller.minimum.to(start))
            module.multiplier.copy_(dual.controller.start(start, module.objective.beta))
            log.info("the multiplier starts at %s", ", ".join(f"{v:.3g}" for v in module.multiplier.flatten().tolist()))


def _parts(trainer: Trainer, module: LightningModule) -> tuple[PreferenceAlignment, DualAscent]:
    dual = dual_of(trainer)
    if not isinstance(module, PreferenceAlignment) or dual is None:
        raise SettingError("Reachability needs a PreferenceAlignment and the settings of the dual group")
    return module, dual
