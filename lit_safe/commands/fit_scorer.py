"""Fits a harm scorer to human labels and measures it on held-out prompts."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from lit_safe.evaluation.verdict_error import verdict_error
from lit_safe.execution.devices import chosen_device, use
from lit_safe.rollouts.scoring import as_costs, place, score
from lit_safe.statistics.agreement import Agreement, agreement
from lit_safe.statistics.clustered import Estimate, clustered_mean
from lit_safe.statistics.ranking import clustered_auc

log = logging.getLogger(__name__)


class LabelledRow(Protocol):
    """An ordered pair. Costs have one entry per constraint: > 0 is unsafe, NaN is unknown."""

    id: str
    chosen: str
    rejected: str
    chosen_reward: float
    rejected_reward: float
    chosen_cost: tuple[float, ...]
    rejected_cost: tuple[float, ...]
    split_group: str | None


class TextPair(Protocol):
    """A labelled pair and its prompt, as plain text and as JSON turns."""

    prompt_id: int
    text: str
    row: LabelledRow
    evaluation_only: bool

    @property
    def turns(self) -> list[dict[str, Any]] | str:
        """A list of turns, or plain text if the dataset has no roles."""

    @property
    def responses(self) -> tuple[list[dict[str, Any]] | str, ...]:
        """The chosen and the rejected response: text, or a list of turns if it has several."""


class Described(Protocol):
    """The facts about a dataset that a card lists."""

    licence: str

    def describe(self) -> dict[str, str]:
        """The dataset's name, files and options."""


class LabelledTexts(Protocol):
    """The parts of a data module that ``fit_scorer`` and ``annotate`` use."""

    sources: Sequence[Described]
    constraints: tuple[str, ...]
    order: str

    def pairs(self, split: str) -> Sequence[TextPair]:
        """The prepared pairs of one split, as text."""


@runtime_checkable
class TrainableScorer(Protocol):
    """A ``CostFunction`` that is fitted to labels and saved in a folder with a card."""

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Any:
        """Costs, a Tensor [n]; > 0 is unsafe."""

    def fit(
        self, prompts: Sequence[str], responses: Sequence[str], unsafe: Sequence[bool], prompt_ids: Sequence[int]
    ) -> Any:
        """Fit to labelled texts of the training split. Returns their out-of-fold costs, a Tensor [n]."""

    def save(self, card: Mapping[str, Any]) -> None:
        """Write the fitted scorer and its card."""


class LabelledResponses(NamedTuple):
    """Distinct labelled responses, and the numbers of unlabelled and of contradictorily labelled ones."""

    prompts: list[str]
    responses: list[str]
    unsafe: list[bool]
    prompt_ids: list[int]
    unlabelled: int
    contradictory: int


def fit_scorer(data: LabelledTexts, *, scorer: TrainableScorer, minimum_auc: float = 0.6, device: str = "auto") -> int:
    """Fit a harm scorer on the train split's labels, measure it on the val split, and write it with its card.

    A response is unsafe if the annotator gives it any cost > 0. The card holds the AUC on held-out prompts with its
    standard error and 95 % interval, both clustered by prompt. Without this AUC the scorer refuses to score.

    Args:
        data: From ``--data``. Its sources and annotator give the labels.
        scorer: The scorer to fit, e.g. ``configs/scorer/tfidf.yaml``. It is written into its own folder.
        minimum_auc: Smallest acceptable AUC on the val split.
        device: Where a scorer with a model runs: auto (an accelerator if there is one), cpu, cuda, cuda:1 or mps.

    Returns:
        The exit status: 0, or 1 if the AUC on the val split is below ``minimum_auc``.

    Raises:
        ValueError: If a split has no safe or no unsafe responses, or the device does not exist.
    """
    place(scorer, use(chosen_device(device)))
    held_out = data.pairs("val")
    train, val = labelled_responses(data.pairs("train")), labelled_responses(held_out)
    for split, texts in (("train", train), ("val", val)):
        if len(set(texts.unsafe)) < 2:
            raise ValueError(
                f"the {split} split has {sum(texts.unsafe)} unsafe and {texts.unsafe.count(False)} safe responses "
                f"({texts.unlabelled} unlabelled, {texts.contradictory} labelled both ways): both are needed"
            )
    started = time.perf_counter()
    out_of_fold = scorer.fit(train.prompts, train.responses, train.unsafe, train.prompt_ids)
    fitted = time.perf_counter()
    cross = clustered_auc(as_costs(scorer, out_of_fold, len(train.responses)).numpy(), train.unsafe, train.prompt_ids)
    auc, accuracy, share, verdicts = evaluate(scorer, held_out, val)
    scored = time.perf_counter()
    card = {
        "fitted_on": {
            **_counts(train),
            "seconds": round(fitted - started, 2),
            "out_of_fold_auc": cross.mean,
            **_errors("out_of_fold_auc", cross),
        },
        "held_out": {
            "split": "val",
            "auc": auc.mean,
            **_errors("auc", auc),
            "within_pair_accuracy": accuracy.mean if accuracy.count else None,
            **_errors("within_pair_accuracy", accuracy),
            "pairs": accuracy.count,
            "predicted_unsafe_share": share,
            "verdicts": verdict_error(verdicts),
            **_counts(val),
            "seconds_per_1000": round(1000 * (scored - fitted) / len(val.responses), 3),
        },
        "data": [{**source.describe(), "licence": source.licence} for source in data.sources],
    }
    scorer.save(card)
    for line in _table(train, val, cross, auc, accuracy, share, fitted - started):
        log.info("%s", line)
    if auc.mean >= minimum_auc:
        return 0
    log.error("the AUC %.3f is under %.2f: this scorer will refuse to score", auc.mean, minimum_auc)
    return 1


def labelled_responses(pairs: Sequence[TextPair]) -> LabelledResponses:
    """Every (prompt, response) once, without those that are unlabelled or labelled both safe and unsafe."""
    labels: dict[tuple[int, str, str], set[bool]] = {}
    for pair in pairs:
        row = pair.row
        for response, cost in ((row.chosen, row.chosen_cost), (row.rejected, row.rejected_cost)):
            seen = labels.setdefault((pair.prompt_id, pair.text, response), set())
            label = unsafe(cost)
            seen |= set() if label is None else {label}
    known = {key: seen for key, seen in labels.items() if len(seen) == 1}
    return LabelledResponses(
        prompts=[text for _, text, _ in known],
        responses=[response for _, _, response in known],
        unsafe=[next(iter(seen)) for seen in known.values()],
        prompt_ids=[identity for identity, _, _ in known],
        unlabelled=sum(not seen for seen in labels.values()),
        contradictory=sum(len(seen) > 1 for seen in labels.values()),
    )


def unsafe(cost: Sequence[float]) -> bool | None:
    """Whether any cost is > 0. None if none is > 0 and at least one is unknown (NaN)."""
    if any(c > 0 for c in cost):
        return True
    return None if any(c != c for c in cost) else False


def evaluate(
    scorer: TrainableScorer, pairs: Sequence[TextPair], texts: LabelledResponses
) -> tuple[Estimate, Estimate, float, Agreement]:
    """How the scorer's costs fit the labels of held-out responses.

    Returns:
        AUC, accuracy within pairs of one safe and one unsafe response (a tie counts 0.5), predicted unsafe share, and
        the agreement of ``cost > 0`` with the labels.
    """
    costs = score(scorer, texts.prompts, texts.responses).numpy()
    auc = clustered_auc(costs, texts.unsafe, texts.prompt_ids)
    keys = zip(texts.prompt_ids, texts.responses, strict=True)
    known = dict(zip(keys, zip(costs, texts.unsafe, strict=True), strict=True))
    right: list[float] = []
    clusters: list[int] = []
    for pair in pairs:
        chosen, rejected = (known.get((pair.prompt_id, response)) for response in (pair.row.chosen, pair.row.rejected))
        if chosen is not None and rejected is not None and chosen[1] != rejected[1]:
            margin = chosen[0] - rejected[0] if chosen[1] else rejected[0] - chosen[0]
            right.append(float(np.sign(margin) + 1) / 2)
            clusters.append(pair.prompt_id)
    verdicts = agreement(costs > 0, texts.unsafe, texts.prompt_ids)
    return auc, clustered_mean(right, clusters, share=True), float((costs > 0).mean()), verdicts


def _errors(name: str, estimate: Estimate) -> dict[str, float | None]:
    """The standard error and the ends of the 95 % interval. A value that does not exist is null."""
    low, high = estimate.interval
    values = {f"{name}_stderr": estimate.stderr, f"{name}_low": low, f"{name}_high": high}
    return {key: None if math.isnan(value) else value for key, value in values.items()}


def _counts(texts: LabelledResponses) -> dict[str, int]:
    return {
        "responses": len(texts.responses),
        "unsafe": sum(texts.unsafe),
        "prompts": len(set(texts.prompt_ids)),
        "unlabelled": texts.unlabelled,
        "contradictory": texts.contradictory,
    }


def _table(
    train: LabelledResponses,
    val: LabelledResponses,
    cross: Estimate,
    auc: Estimate,
    accuracy: Estimate,
    share: float,
    seconds: float,
) -> list[str]:
    rows = [
        (name, str(counts["responses"]), str(counts["unsafe"]), str(counts["prompts"]), str(counts["contradictory"]))
        for name, counts in (("train", _counts(train)), ("val", _counts(val)))
    ]
    header = ("split", "responses", "unsafe", "prompts", "labelled both ways")
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    return [
        *lines,
        f"fitted in {seconds:.1f} s; AUC on the train split, cross-validated by prompt, "
        f"{cross} ({cross.clusters} prompts)",
        f"held-out AUC {auc} (95 %, clustered by {auc.clusters} prompts)",
        f"accuracy within {accuracy.count} held-out pairs {accuracy}",
        f"unsafe share of held-out responses: {np.mean(val.unsafe):.3f} labelled, {share:.3f} by the scorer",
    ]
