"""Estimates before training whether a cost limit is in reach, and by which multiplier."""

import logging
from pathlib import Path
from typing import Any

from lightning import Trainer

from lit_safe.commands.loading import make_ready
from lit_safe.commands.sizes import check_sizes
from lit_safe.constraint.dual_ascent import dual_of
from lit_safe.constraint.reachability.survey import STEM, scorer, survey
from lit_safe.errors.message import SettingError
from lit_safe.training.module import PreferenceAlignment
from lit_safe.types import CostFunction

log = logging.getLogger(__name__)


def reach(
    module: PreferenceAlignment,
    data: Any,
    *,
    trainer: Trainer,
    reward: CostFunction | None = None,
    cost: CostFunction | None = None,
    prompts: int | None = None,
    samples_per_prompt: int = 32,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "auto",
) -> int:
    """Estimate before training whether ``--dual.limit`` is in reach, and which multiplier meets it.

    The reference answers the prompts of the dual split. Its responses are scored and reweighted to the optimum of the
    objective at multipliers up to ``--dual.maximum``. ``reach.md``, ``reach.json`` and ``reach.png`` in the run folder
    show E[c] with its error, KL and effective sample size for each multiplier.

    Args:
        module: From ``--model``. Its reference answers, and ``beta`` of its objective is used.
        data: From ``--data``.
        trainer: From ``--trainer``. Its precision and run folder are used.
        reward: Scores a response, larger is better, in nats. With null, only the cost counts (r = 0).
        cost: Scores a response, > 0 is unsafe. With null, the scorer of ``--dual.estimator`` is used.
        prompts: Number of prompts of the dual split. With null, all are used.
        samples_per_prompt: Responses to each prompt, at least 2.
        max_new_tokens: Maximum length of a response in tokens.
        batch_size: Number of responses generated at once.
        seed: Seed of the random draws.
        device: Where to run: auto (an accelerator if there is one), cpu, cuda, cuda:1 or mps.

    Returns:
        The exit status: 0 if every limit is in reach, 1 otherwise.

    Raises:
        ValueError: If a size is too small, there is no cost function, or the dual split has too few prompts.
    """
    check_sizes(batch_size=batch_size, max_new_tokens=max_new_tokens)
    if samples_per_prompt < 2 or (prompts is not None and prompts < 2):
        raise SettingError(f"prompts and samples_per_prompt must be >= 2, got {prompts} and {samples_per_prompt}")
    dual = dual_of(trainer)
    assert dual is not None  # the command line adds it to every trainer
    scorer(cost, dual)
    make_ready(module, data, device, trainer)
    found = survey(
        module, data, dual, cost=cost, reward=reward, prompts=prompts, samples_per_prompt=samples_per_prompt,
        max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    folder = Path(trainer.default_root_dir)
    found.write(folder)
    found.say()
    log.info("details in %s", folder / f"{STEM}.md")
    return 0 if found.found.reachable else 1
