"""Certifies a cost limit: a verdict with a stated probability of error, on the certify split."""

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import Trainer
from rich.console import Console

from lit_safe.commands.loading import load_checkpoint, make_ready
from lit_safe.commands.sizes import check_sizes
from lit_safe.constraint.certificate.contents import CERTIFICATE, PAGE, PLOT, Measured, certificate
from lit_safe.constraint.certificate.inputs import read_labels, read_strata
from lit_safe.constraint.certificate.page import page
from lit_safe.constraint.certificate.plot import plot
from lit_safe.constraint.certificate.question import Question
from lit_safe.constraint.certificate.responses import (
    RESPONSES,
    Draws,
    choose,
    draw_responses,
    probe,
    responses_key,
    score_responses,
)
from lit_safe.constraint.certificate.scorers import ScorerFacts, check_certifies, scorer_facts, second_question
from lit_safe.constraint.certificate.uses import other_uses, record_use
from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.errors.message import SettingError
from lit_safe.execution.ranks import rank_and_world
from lit_safe.hashing import hash64
from lit_safe.protocols.trainer import connected
from lit_safe.rollouts.texts import policy_digest
from lit_safe.training.stepping import StepModule
from lit_safe.types import CostFunction

log = logging.getLogger(__name__)


def certify(
    module: StepModule,
    data: Any,
    *,
    ckpt_path: str | None = None,
    out: str | None = None,
    scorer: CostFunction | None = None,
    second_scorer: CostFunction | None = None,
    limit: float | list[float] | None = None,
    cost_range: list[float] | None = None,
    units: str | None = None,
    unsafe_limit: float | None = None,
    delta: float = 0.05,
    clip: bool = False,
    strata: str | None = None,
    human_labels: str | None = None,
    study: str | None = None,
    prompts: int | None = None,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "auto",
    trainer: Trainer | None = None,
) -> int:
    """Test on the certify split whether a policy keeps a cost limit, with a stated probability of error.

    The policy gives one response to each prompt, and the scorer gives it a cost. HOLDS means that the one-sided upper
    bound of the expectation is at most the limit, DOES NOT HOLD that the lower bound is above it. Otherwise the verdict
    is UNDECIDED, with the number of responses that would decide. Written: ``certificate.md``, ``.json`` and ``.png``,
    and the responses (``certificate_responses.jsonl``), from which a killed call continues. docs/certificate.md says
    what the verdicts promise.

    Args:
        module: From ``--model``, as the checkpoint was trained.
        data: From ``--data``, as the checkpoint was trained. The policy answers its certify split.
        ckpt_path: Checkpoint of the policy. With null, the model as loaded answers, for example an exported folder.
        out: Folder to write to. Null takes the run folder of the checkpoint.
        scorer: Scores responses; > 0 is unsafe. Null takes the cost function of the run's estimator.
        second_scorer: A scorer with other features and training prompts, to stand beside the first. Its E[cost] is
            compared with the limit only if its costs have the units of the limit.
        limit: Largest acceptable E[cost], one number or one for each constraint. Null takes the limit of the run.
        cost_range: Smallest and largest possible cost. Null takes the range that the scorer declares, if it does.
            E[cost] has no bound without a range.
        units: Units of limit and range. They are compared with those of the scorer.
        unsafe_limit: Largest acceptable share of unsafe responses, between 0 and 1. Null tests no share.
        delta: Probability of a wrong HOLDS, and of a wrong DOES NOT HOLD.
        clip: Whether costs outside ``cost_range`` are set to its ends. The certificate is then about clipped costs.
        strata: CSV or JSON-lines file with ``prompt`` and ``stratum``. Each stratum gets a verdict, and the worst is
            named.
        human_labels: CSV or JSON-lines file with ``prompt``, ``response`` and ``unsafe``: labels by people of some of
            the responses, chosen at random.
        study: Folder of the runs among which this one may be chosen. The certificate names their earlier uses of the
            prompts. Null takes the folder that holds the run folder.
        prompts: Number of prompts, chosen by hash. Null takes all of the certify split.
        max_new_tokens: Maximum length of a response in tokens.
        temperature: Divides the logits. At 1, responses are samples from the policy itself.
        batch_size: Number of responses generated at once.
        seed: Seed of the choice of prompts and of the random draws.
        device: Where to run: auto (an accelerator if there is one), cpu, cuda, cuda:1 or mps.
        trainer: From ``--trainer``. Its precision is used, and the limit and the estimator of its dual step.

    Returns:
        The exit status: 0, whatever the verdict.

    Raises:
        ValueError: If the settings do not fit each other or the scorer, a file does not fit the prompts, a cost is not
            finite or outside the range, or the split has no prompts.
    """
    sizes = {"prompts": 1 if prompts is None else prompts, "batch_size": batch_size}
    check_sizes(**sizes, max_new_tokens=max_new_tokens)
    if not temperature > 0:
        raise SettingError(f"temperature must be > 0, got {temperature}")
    if out is None and ckpt_path is None:
        raise SettingError("without --ckpt_path nothing says where to write: give --out")
    for path in (strata, human_labels):
        if path is not None and not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {path}")
    folder = Path(out) if out is not None else Path(str(ckpt_path)).absolute().parent.parent
    run = _dual(trainer)
    chosen, question = _settings(run, scorer, limit, cost_range, units, unsafe_limit, delta, clip)
    first = _Scorer(chosen, scorer_facts(chosen))
    second = None if second_scorer is None else _Scorer(second_scorer, scorer_facts(second_scorer))
    for each in (first, second) if second is not None else (first,):
        check_certifies(each.cost)
    if not getattr(data, "held_out", True):
        raise SettingError("data.held_out is false: the policy trained on every prompt, so nothing can be certified")
    place = make_ready(module, data, device, trainer)
    available = data.prompts("certify")
    asked = choose(available, seed, prompts)
    texts = [prompt.text for prompt in asked]
    groups = None if strata is None else read_strata(Path(strata), texts)
    constraints = probe(first.cost, texts[0], place)
    names = _names(data, constraints)
    question.limits(names)
    second_constraints = 1 if second is None else probe(second.cost, texts[0], place)
    if second is not None:  # a limit that does not fit it ends the command here
        second_question(question, second.facts, second_constraints, constraints)
    assert isinstance(module.pair, torch.nn.Module)
    step, weights = None, module.pair.state_dict()
    if ckpt_path is not None:
        checkpoint = load_checkpoint(module, ckpt_path)
        step, weights = checkpoint.get("global_step"), checkpoint["state_dict"]
    digest = policy_digest(module.pair.facts().source, weights)
    draws = Draws(seed, max_new_tokens, temperature)
    precision = "the weights'" if trainer is None else str(trainer.precision)
    key = responses_key(digest, precision, asked, draws)
    log.info("one response to each of %d prompts of the certify split (of %d)", len(asked), len(available))
    responses = draw_responses(module, data, asked, draws, path=folder / RESPONSES, key=key, batch_size=batch_size)
    costs = score_responses(first.cost, responses, constraints, batch_size, place).numpy()
    others = None
    if second is not None:
        others = score_responses(second.cost, responses, second_constraints, batch_size, place).numpy()
    labels = None
    if human_labels is not None:
        labels = read_labels(Path(human_labels), texts, [response.text for response in responses])
    measured = Measured(responses, costs, names, groups, first.facts, second and second.facts, others, labels)
    policy = {
        "name": f"{ckpt_path}, step {step}" if ckpt_path is not None else module.pair.facts().source,
        "checkpoint": ckpt_path,
        "step": step,
        "digest": digest,
    }
    found = certificate(measured, question, policy, draws, len(available))
    if rank_and_world()[0] == 0:
        _write(folder, Path(study) if study else folder.absolute().parent, found, key, [p.prompt_id for p in asked])
    return 0


class _Scorer(NamedTuple):
    cost: CostFunction
    facts: ScorerFacts


def _dual(trainer: Trainer | None) -> DualAscent | None:
    """The dual step of the run's configuration, if it estimates a cost."""
    callbacks = () if trainer is None else connected(trainer).callbacks
    found = next((callback for callback in callbacks if isinstance(callback, DualAscent)), None)
    return None if found is None or found.estimator is None else found


def _settings(
    run: DualAscent | None,
    scorer: CostFunction | None,
    limit: float | list[float] | None,
    cost_range: list[float] | None,
    units: str | None,
    unsafe_limit: float | None,
    delta: float,
    clip: bool,
) -> tuple[CostFunction, Question]:
    """The cost function and the limits: those typed, else those of the run."""
    own = getattr(run.estimator, "cost", None) if run is not None else None
    chosen = scorer if scorer is not None else own
    if chosen is None:
        raise SettingError(
            "there is no scorer: give --scorer, e.g. configs/scorer/tfidf.yaml (dual.estimator has none of texts)"
        )
    facts = scorer_facts(chosen)
    if units is not None and facts.units is not None and units != facts.units:
        raise SettingError(
            f"--units is {units}, and the costs of {facts.name} are in {facts.units}: state the limit so"
        )
    values = None if limit is None else tuple(limit) if isinstance(limit, list) else (limit,)
    if values is None and run is not None and not (cost_range is None and unsafe_limit is not None):
        if scorer is not None and (own is None or scorer_facts(own)[:2] != facts[:2]):
            raise SettingError(
                f"the limit of the run is one of its own cost function, not of {facts.name}: give --limit in the units "
                f"of {facts.name}"
            )
        values = tuple(run.limit.reshape(-1).tolist())
    if cost_range is not None and len(cost_range) != 2:
        raise SettingError(f"cost_range has {len(cost_range)} numbers, it needs the smallest and the largest cost")
    bounds = facts.range if cost_range is None else (cost_range[0], cost_range[1])
    return chosen, Question(values, bounds, units or facts.in_units, unsafe_limit, delta, clip)


def _names(data: Any, constraints: int) -> tuple[str, ...]:
    """Names of the constraints: those of the data, if there are as many."""
    named = tuple(getattr(data, "constraints", ()))
    if len(named) == constraints:
        return named
    return ("cost",) if constraints == 1 else tuple(f"cost_{k}" for k in range(constraints))


def _write(folder: Path, study: Path, found: dict[str, Any], key: str, prompt_ids: list[int]) -> None:
    """Write the certificate, record this use of the split, and print the verdict."""
    question, findings = found["question"], found["findings"]
    asked = {name: question[name] for name in ("limit", "cost_range", "units", "unsafe_limit", "delta", "clip")}
    use = f"{hash64(key, json.dumps([asked, found['scorer']['name']])):016x}"
    found["other_uses"] = other_uses(folder, study, use, prompt_ids)
    facts = {"policy": found["policy"]["name"], "scorer": found["scorer"]["name"], "verdict": findings["verdict"]}
    record_use(folder, use, prompt_ids, facts)
    (folder / CERTIFICATE).write_text(json.dumps(found, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    (folder / PAGE).write_text(page(found), encoding="utf-8")
    plot(found, folder / PLOT)
    Console(width=120).print(summary(found), markup=False, highlight=False)
    log.info("certificate: %s", folder / PAGE)


def summary(found: dict[str, Any]) -> str:
    """The verdict and each limit in a few lines, for a terminal."""
    findings = found["findings"]
    rows = dict((findings["cost"] or {"findings": {}})["findings"])
    if findings["unsafe"] is not None:
        rows["unsafe share"] = findings["unsafe"]
    lines = [f"{findings['verdict']} (each claim is wrong with probability at most {found['question']['delta']:g})"]
    for name, row in rows.items():
        needed = f"; about {row['needed']:,} responses would decide" if row["needed"] else ""
        lines.append(
            f"  {name}: {row['mean']:.4g}, bounds {row['lower']:.4g} to {row['upper']:.4g}, limit {row['limit']:.4g}: "
            f"{row['verdict']}, {row['count']} responses{needed}"
        )
    for key in ("cost_strata", "unsafe_strata"):
        if findings[key] is not None:
            worst = findings[key]["worst"]
            lines.append(f"  worst stratum: {worst}: {findings[key]['findings'][worst]['verdict']}")
    second = found["second"]
    if second is not None:
        share = second["unsafe_share"]["mean"]
        lines.append(
            f"  second scorer {second['name']}: unsafe share {share:.4g}"
            + (f"; {second['verdict']} on the same limits" if second["verdict"] else "")
            + (f"; E[cost] not compared: {second['not_compared']}" if second["not_compared"] else "")
        )
    if found["other_uses"]:
        lines.append("  these prompts were used before: choosing among runs on this split voids the level")
    return "\n".join(lines)
