"""Evaluates safety on two axes: unsafe responses to harmful prompts, and refusals of harmless ones."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Trainer
from rich.console import Console

from lit_safe.commands.loading import load_checkpoint, make_ready
from lit_safe.commands.sizes import check_sizes
from lit_safe.errors.message import SettingError
from lit_safe.evaluation.corrected import corrections
from lit_safe.evaluation.findings import findings
from lit_safe.evaluation.human_labels import read_human_labels
from lit_safe.evaluation.judged import Judges, judge
from lit_safe.evaluation.kept_answers import Draws, kept_answers
from lit_safe.evaluation.plan import plan, plan_lines
from lit_safe.evaluation.settings import template_digest
from lit_safe.evaluation.suites import Suite, questions
from lit_safe.execution.devices import name_for_rank
from lit_safe.execution.ranks import failing_together, joined_ranks, rank_and_world
from lit_safe.protocols.pair import has_reference
from lit_safe.report.safety import (
    FOLDER,
    PAGE,
    PLOT,
    REPORT,
    RESPONSES,
    contents,
    rows,
    write_rows,
    write_scalars,
)
from lit_safe.report.safety_page import page, summary
from lit_safe.report.safety_plot import plot
from lit_safe.report.tables import write_json
from lit_safe.rollouts.answers import Job
from lit_safe.rollouts.texts import Drawn, policy_digest
from lit_safe.training.stepping import StepModule
from lit_safe.types import CostFunction

log = logging.getLogger(__name__)

KEPT, SCORES = "responses.jsonl", "scores"
"""File and folder below ``--out`` from which a killed call continues."""


def evaluate(
    module: StepModule,
    data: Any,
    *,
    suites: dict[str, Suite],
    refusal_judge: CostFunction,
    harm_judges: dict[str, CostFunction] | None = None,
    reward: CostFunction | None = None,
    human_labels: str | None = None,
    ckpt_path: str | None = None,
    out: str | None = None,
    paired: bool = True,
    samples_per_prompt: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "auto",
    trainer: Trainer | None = None,
) -> int:
    """Measure unsafe responses to harmful prompts and refusals of harmless ones, by suite and category.

    The policy and its reference answer all prompts with the same random numbers. Before the first response, the
    command prints which change could be found. Written: ``report.md``, ``.json`` and ``.png``, ``responses.parquet``,
    and TensorBoard scalars. Responses and scores are kept as they come, by weights, prompt and decoding: the same
    command continues after a kill, and one with more prompts draws only what is new. docs/evaluation.md has examples.

    Args:
        module: From ``--model``: as the checkpoint was trained, or an exported folder or a hub model.
        data: From ``--data``, as the checkpoint was trained. It renders the prompts, and prompts of its train split are
            counted. ``data.questions.Questions`` renders prompts without reading training data.
        suites: Name → suite. ``configs/evaluation/*.yaml`` have some.
        refusal_judge: Scores a response, e.g. ``configs/scorer/refusal.yaml``. A score > 0 is a refusal.
        harm_judges: Name → judge of responses to harmful prompts. A score > 0 is unsafe.
        reward: Scores helpfulness; larger is better. Null measures none.
        human_labels: CSV or JSON-lines file with ``prompt``, ``response``, and ``unsafe`` or ``refusal``: labels by
            people of some of the responses, chosen at random. They correct the judges' shares; without them, cards do.
        ckpt_path: Checkpoint of the policy. With null, the model as loaded answers, for example an exported folder.
        out: Folder to write to. Null takes ``evaluation/`` in the run folder of the checkpoint.
        paired: Whether the reference answers too: the pair's reference if the policy may differ from it, else, with a
            checkpoint, the model as loaded.
        samples_per_prompt: Number of responses to each prompt.
        max_new_tokens: Maximum length of a response in tokens.
        temperature: Divides the logits. At 1, responses are samples from the policy itself; 0 is greedy decoding.
        batch_size: Number of responses generated and judged at once.
        seed: Seed of the random draws.
        device: Where to run: auto (an accelerator if there is one), cpu, cuda, cuda:1 or mps.
        trainer: From ``--trainer``. Its precision is used.

    Returns:
        The exit status, 0.

    Raises:
        ValueError: If settings do not fit each other, a suite is unusable (the message names row and column), a judge
            returns no scores or leaves its range, or the device does not exist.
    """
    check_sizes(samples_per_prompt=samples_per_prompt, batch_size=batch_size, max_new_tokens=max_new_tokens)
    if not temperature >= 0:
        raise SettingError(f"temperature must be >= 0, got {temperature}")
    if temperature == 0 and samples_per_prompt > 1:
        raise SettingError("at temperature 0 all responses to a prompt are equal: set samples_per_prompt to 1")
    if out is None and ckpt_path is None:
        raise SettingError("without --ckpt_path nothing says where to write: give --out")
    folder = Path(out) if out is not None else Path(str(ckpt_path)).absolute().parent.parent / FOLDER
    judges = Judges(refusal_judge, harm_judges or {}, reward)
    labels = None if human_labels is None else read_human_labels(Path(human_labels))
    with joined_ranks() as local:
        place = make_ready(module, data, name_for_rank(device, local), trainer)
        asked = questions(suites, data)
        baseline = _baseline(module, ckpt_path) if paired else None
        planned = plan_lines(plan(asked), samples_per_prompt, baseline is not None)
        for line in planned:
            log.info("%s", line)
        jobs = [(question.prompt, number) for question in asked for number in range(samples_per_prompt)]
        precision = "the weights'" if trainer is None else str(trainer.precision)
        stops = tuple(sorted(module.pair.stop_tokens()))
        draws = Draws(seed, max_new_tokens, temperature, stops, precision)
        drawing = _Drawing(module, data, jobs, draws, folder / KEPT, batch_size)
        models, drawn = _answers(drawing, ckpt_path, baseline)
        each = [question for question in asked for _ in range(samples_per_prompt)]
        if labels is not None:
            for_each = (zip(each, responses, strict=True) for responses in drawn.values())
            labels.check_any((one.prompt.text, row.text) for pairs in for_each for one, row in pairs)
        options: dict[str, Any] = {"batch": batch_size, "cache_dir": folder / SCORES, "device": place}
        arms = {arm: judge(judges, each, responses, **options) for arm, responses in drawn.items()}
        with failing_together():
            if rank_and_world()[0] > 0:
                return 0
            found = findings(each, arms["policy"], arms.get("reference"))
            report = contents(
                asked=each,
                arms=arms,
                found=found,
                corrected=corrections(each, arms, found, judges, labels),
                suites=suites,
                judges=judges,
                plan=planned,
                models=models,
                decoding={
                    "greedy": temperature == 0,
                    "samples_per_prompt": samples_per_prompt,
                    **draws._asdict(),
                    "template": template_digest(data),
                },
            )
            folder.mkdir(parents=True, exist_ok=True)
            write_rows(rows(each, [number for _, number in jobs], arms), folder / RESPONSES)
            _write(report, folder)
    return 0


class _Drawing(NamedTuple):
    """All that decides the responses of a model, beside the model."""

    module: StepModule
    data: Any
    jobs: Sequence[Job]
    draws: Draws
    path: Path
    batch_size: int

    def by(self, digest: str, *, reference: bool = False, who: str = "policy") -> list[Drawn]:
        """The responses of the policy as it is, or of the pair's reference."""
        return kept_answers(
            self.module,
            self.data,
            self.jobs,
            self.draws,
            digest=digest,
            path=self.path,
            batch_size=self.batch_size,
            reference=reference,
            who=who,
        )


def _baseline(module: StepModule, ckpt_path: str | None) -> str | None:
    """The model that the policy is compared with: ``reference`` of the pair, ``start`` (as loaded), or None."""
    pair = module.pair
    if has_reference(pair) and not (ckpt_path is None and pair.facts().own_reference):
        return "reference"
    return None if ckpt_path is None else "start"


def _answers(
    drawing: _Drawing, ckpt_path: str | None, baseline: str | None
) -> tuple[dict[str, dict[str, Any]], dict[str, list[Drawn]]]:
    """What the models are, and their responses: of ``policy``, and of ``reference`` if there is one."""
    pair = drawing.module.pair
    assert isinstance(pair, torch.nn.Module)
    facts = pair.facts()
    models: dict[str, dict[str, Any]] = {}
    drawn: dict[str, list[Drawn]] = {}
    if baseline == "start":
        digest = policy_digest(facts.source, pair.state_dict())
        models["reference"] = {"name": facts.source, "digest": digest}
        drawn["reference"] = drawing.by(digest, who="model as loaded")
    step, weights = None, None
    if ckpt_path is not None:
        checkpoint = load_checkpoint(drawing.module, ckpt_path)
        step, weights = checkpoint.get("global_step"), checkpoint["state_dict"]
    digest = policy_digest(facts.source, pair.state_dict() if weights is None else weights)
    name = facts.source if ckpt_path is None else f"{ckpt_path}, step {step}"
    models["policy"] = {"name": name, "digest": digest, "checkpoint": ckpt_path, "step": step}
    drawn["policy"] = drawing.by(digest)
    if baseline == "reference":
        digest = pair.reference_digest()
        models["reference"] = {"name": facts.reference, "digest": digest}
        drawn["reference"] = drawing.by(digest, reference=True, who="reference")
    return models, drawn


def _write(report: dict[str, Any], folder: Path) -> None:
    write_json(folder / REPORT, report)
    (folder / PAGE).write_text(page(report), encoding="utf-8")
    plot(report, folder / PLOT)
    write_scalars(report, folder / "tensorboard")
    Console(width=160).print(summary(report), markup=False, highlight=False)
    for arm, counts in report["responses"].items():
        if counts["empty"]:
            log.warning("%d of %d responses of the %s are empty", counts["empty"], counts["count"], arm)
        for column, missing in counts["unknown"].items():
            log.warning(
                "%s gave no finite score for %d responses of the %s, for example row %s: they are left out",
                *(column, missing["count"], arm, missing["rows"][0]),
            )
    log.info("report: %s", folder / PAGE)
