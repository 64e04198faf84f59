"""A safety evaluation as JSON values, as rows of its responses, and as scalars for TensorBoard."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from lit_safe.constraint.certificate.holm import holm
from lit_safe.constraint.certificate.scorers import scorer_facts
from lit_safe.evaluation.corrected import Corrected, Corrections
from lit_safe.evaluation.findings import CUT, EMPTY, Finding, agreements
from lit_safe.evaluation.judged import Judged, Judges, judges_question
from lit_safe.evaluation.suites import Question, Suite
from lit_safe.report.tables import estimate_to_json
from lit_safe.statistics.sign_flip import LEVEL

FOLDER = "evaluation"
"""The folder below a run folder."""
REPORT, PAGE, PLOT, RESPONSES = "report.json", "report.md", "report.png", "responses.parquet"
KIND = "safety evaluation"
NAMED = 5
"""How many rows a report names that have no text, or no score."""

NOT_CORRECTED = Corrections({}, {})

Arms = Mapping[str, Judged]
"""``policy``, and ``reference`` if there is one: their judged responses [n] to the same questions."""


def contents(
    *,
    asked: Sequence[Question],
    arms: Arms,
    found: Sequence[Finding],
    suites: Mapping[str, Suite],
    judges: Judges,
    plan: Sequence[str],
    models: Mapping[str, Mapping[str, Any]],
    decoding: Mapping[str, Any],
    corrected: Corrections = NOT_CORRECTED,
) -> dict[str, Any]:
    """The content of ``report.json``."""
    return {
        "kind": KIND,
        "version": 1,
        "policy": dict(models["policy"]),
        "reference": dict(models["reference"]) if "reference" in models else None,
        "decoding": dict(decoding),
        "suites": {name: _suite(name, suite, asked) for name, suite in suites.items()},
        "judges": {column: _judge(judge) for column, judge in judges.named().items()},
        "plan": list(plan),
        "level": LEVEL,
        "agreement": {name: str(one) for name, one in agreements(asked, arms["policy"]).items()},
        "findings": _findings(found, corrected),
        "not_corrected": dict(corrected.why_not),
        "responses": {arm: _counts(asked, judged) for arm, judged in arms.items()},
    }


def rows(asked: Sequence[Question], number: Sequence[int], arms: Arms) -> dict[str, list[Any]]:
    """The columns of ``responses.parquet``: one row for each response of each model. A score is null where unknown."""
    columns: dict[str, list[Any]] = {}
    for arm, judged in arms.items():
        part: dict[str, list[Any]] = {
            "model": [arm] * len(asked),
            "suite": [question.suite for question in asked],
            "row": [question.row for question in asked],
            "harmful": [question.harmful for question in asked],
            "category": [question.category for question in asked],
            "prompt_id": [question.prompt.prompt_id for question in asked],
            "trained_on": [question.trained_on for question in asked],
            "sample": list(number),
            "prompt": [question.prompt.text for question in asked],
            "response": [one.text for one in judged.drawn],
            "complete": [one.complete for one in judged.drawn],
            "tokens": [one.tokens for one in judged.drawn],
        }
        for column, score_n in judged.score.items():
            part[column] = [None if math.isnan(score) else score for score in score_n.tolist()]
        for name, values in part.items():
            columns.setdefault(name, []).extend(values)
    return columns


def write_rows(columns: Mapping[str, list[Any]], path: Path) -> None:
    """Write Parquet, atomically."""
    import pyarrow
    import pyarrow.parquet

    kinds = {"prompt_id": pyarrow.int64(), "sample": pyarrow.int64(), "tokens": pyarrow.int64()}
    kinds |= dict.fromkeys(("model", "suite", "row", "category", "prompt", "response"), pyarrow.string())
    kinds |= dict.fromkeys(("harmful", "trained_on", "complete"), pyarrow.bool_())
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.float64())) for name in columns])
    partial = path.with_name(f"{path.name}.partial")
    pyarrow.parquet.write_table(pyarrow.table(dict(columns), schema=schema), partial)
    os.replace(partial, path)


def write_scalars(report: Mapping[str, Any], folder: Path) -> None:
    """TensorBoard scalars ``evaluation/<suite>/<measure>/<model>`` at the policy's optimizer step; unknown ones not."""
    with SummaryWriter(str(folder)) as writer:
        for finding in report["findings"]:
            if finding["unseen"] or finding["category"] is not None:
                continue
            suite = finding["suite"] or f"all {_axis(finding)}"
            for arm in ("policy", "reference"):
                value = (finding[arm] or {}).get("mean")
                if value is not None:
                    tag = f"evaluation/{suite} {_axis(finding)}/{finding['measure']}/{arm}".replace(" ", "_")
                    writer.add_scalar(tag, value, report["policy"]["step"] or 0)


def _axis(finding: Mapping[str, Any]) -> str:
    return "harmful" if finding["harmful"] else "harmless"


def _suite(name: str, suite: Suite, asked: Sequence[Question]) -> dict[str, Any]:
    members = list({q.prompt.prompt_id: q for q in asked if q.suite == name}.values())
    return {
        "harmful": sum(question.harmful for question in members),
        "harmless": sum(not question.harmful for question in members),
        "trained_on": sum(question.trained_on for question in members),
        "licence": suite.source.licence,
        "source": suite.source.describe(),
    }


def _judge(judge: object) -> dict[str, Any]:
    facts = scorer_facts(judge)
    return {"name": facts.name, "units": facts.units, "quality": list(facts.quality)}


def _findings(found: Sequence[Finding], corrected: Corrections = NOT_CORRECTED) -> list[dict[str, Any]]:
    adjusted = _adjusted(found)
    rows = []
    for one in found:
        rows.append(
            {
                **one.group._asdict(),
                "measure": one.measure,
                **_estimates(one),
                "corrected": None if (by_people := corrected.of.get(one.key)) is None else _corrected(by_people),
                "p": one.p,
                "holm": adjusted.get(one.key),
                "unknown": one.unknown,
            }
        )
    return rows


def _estimates(of: Finding | Corrected) -> dict[str, Any]:
    return {
        name: None if (one := getattr(of, name)) is None else estimate_to_json(one)
        for name in ("policy", "reference", "difference")
    }


def _corrected(one: Corrected) -> dict[str, Any]:
    return {**_estimates(one), "by": one.by}


def _adjusted(found: Sequence[Finding]) -> dict[Any, dict[str, Any]]:
    """Holm's test of the categories, a family for each axis and measure."""
    families: dict[Any, dict[Any, float]] = {}
    for one in found:
        if one.group.category is not None and one.p is not None:
            families.setdefault((one.group.harmful, one.measure), {})[one.key] = one.p
    steps = [(key, step) for family in families.values() for key, step in holm(family, LEVEL).items()]
    return {key: {"level": step.level, "rejected": step.rejected} for key, step in steps}


def _counts(asked: Sequence[Question], judged: Judged) -> dict[str, Any]:
    empty = [question.row for question, one in zip(asked, judged.drawn, strict=True) if not one.text.strip()]
    found: dict[str, Any] = {
        "count": len(asked),
        CUT: sum(not one.complete for one in judged.drawn),
        EMPTY: len(empty),
        "empty_rows": empty[:NAMED],
        "unknown": {},
    }
    for column, score_n in judged.score.items():
        missing = [
            question.row
            for question, score in zip(asked, score_n.tolist(), strict=True)
            if judges_question(column, question) and math.isnan(score)
        ]
        if missing:
            found["unknown"][column] = {"count": len(missing), "rows": missing[:NAMED]}
    return found
