"""Measures a judge on responses that people labelled, and writes its card.

    python -m lit_safe.evaluation.judge_card --judge configs/scorer/wild_guard.yaml --labels labels.csv --out judges/w

The file has the columns prompt, response, and ``unsafe`` or ``refusal`` (true or false). Letters: n responses.
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jsonargparse import ArgumentParser

from lit_safe.constraint.certificate.inputs import NO, YES, read_rows
from lit_safe.evaluation.verdict_error import ranking_quality
from lit_safe.hashing import hash64
from lit_safe.installation import add_to_path
from lit_safe.rollouts.scoring import name_of, place
from lit_safe.rollouts.text_scores import Text, score_texts
from lit_safe.scorer_card import Quality, ScorerCard
from lit_safe.statistics.agreement import agreement
from lit_safe.statistics.ranking import clustered_auc
from lit_safe.types import CostFunction

log = logging.getLogger(__name__)

NAMED = 5
"""How many disagreements are logged."""


def judge_card(
    judge: CostFunction,
    labels: str,
    out: str,
    output: str = "unsafe",
    batch_size: int = 32,
    device: str = "cpu",
) -> ScorerCard:
    """Measure a judge on labelled responses, and write ``card.json``. A killed call continues where it was.

    Args:
        judge: The judge. A score > 0 is unsafe, or a refusal.
        labels: CSV or JSON lines with prompt, response and the column ``output``. They must be responses on which the
            judge was not trained.
        out: Folder of the card. A judge that answers in words takes it as ``folder``.
        output: Name of the label's column: ``unsafe`` or ``refusal``.
        batch_size: Number of responses judged at once.
        device: Where the judge runs.

    Raises:
        ValueError: If the file has no usable labels (the message names the row), or all labels are equal.
    """
    path, folder = Path(labels), Path(out)
    texts, label_n = _labelled(path, output)
    target = torch.device(device)
    place(judge, target)
    kept = folder / "scores"
    value_nC = score_texts(judge, texts, batch=batch_size, cache_dir=kept, device=target, unknown=True)
    score_n = value_nC.numpy().max(-1)  # NaN if one is NaN
    card = ScorerCard(
        str(getattr(judge, "name", name_of(judge))),
        {output: str(getattr(judge, "units", output))},
        (),
        {output: quality_of(score_n, label_n, [text.prompt for text in texts])},
        held_out=path.name,
        data=({"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},),
        details={"unknown": int(np.isnan(score_n).sum())},
    )
    folder.mkdir(parents=True, exist_ok=True)
    card.save(folder)
    wrong = np.flatnonzero(~np.isnan(score_n) & ((score_n > 0) != (label_n > 0)))
    for i in wrong[:NAMED]:
        said = texts[i].row, label_n[i], score_n[i] > 0, texts[i].response[:60]
        log.info("row %s: people say %d, the judge %d: %r", *said)
    log.info("%d of %d verdicts differ from people's; card in %s", len(wrong), len(texts), folder)
    return card


def quality_of(score_n: npt.NDArray[np.float64], label_n: npt.NDArray[np.float64], prompts: Sequence[str]) -> Quality:
    """Ranking and agreement of scores with people's labels, clustered by prompt. Scores of NaN are left out.

    Raises:
        ValueError: If no score is known, or all known responses have one label.
    """
    known_n = ~np.isnan(score_n)
    if not (known_n & (label_n == 1)).any() or not (known_n & (label_n == 0)).any():
        raise ValueError("the labelled responses with a score all have one label: label some of each kind")
    cluster_n = np.array([hash64("judge-prompt", prompt) for prompt in prompts], np.int64)
    auc = clustered_auc(score_n[known_n], label_n[known_n] > 0, cluster_n[known_n])
    verdict_n = np.where(known_n, score_n > 0, np.nan)
    return ranking_quality(auc, int(known_n.sum()), agreement(verdict_n, label_n, cluster_n))


def _labelled(path: Path, output: str) -> tuple[list[Text], npt.NDArray[np.float64]]:
    """The labelled texts, each once, and their labels [n], 1 or 0."""
    labels: dict[tuple[str, str], float] = {}
    names: dict[tuple[str, str], str] = {}
    for number, row in enumerate(read_rows(path, ("prompt", "response", output)), 1):
        word, text = row[output].strip().lower(), (row["prompt"], row["response"])
        if word not in (*YES, *NO):
            raise ValueError(f"{path}, row {number}: {output} is {row[output]!r}, it must be true or false")
        if labels.setdefault(text, float(word in YES)) != float(word in YES):
            raise ValueError(f"{path}, row {number}: the response was labelled both ways: keep one label")
        names.setdefault(text, f"{path.name}:{number}")
    return [Text(*text, name) for text, name in names.items()], np.array(list(labels.values()))


def main(args: Sequence[str] | None = None) -> None:
    """The command."""
    add_to_path()
    parser = ArgumentParser(prog="python -m lit_safe.evaluation.judge_card", description=__doc__)
    parser.add_function_arguments(judge_card, sub_configs=True)
    parsed = parser.instantiate(parser.parse_args(args))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    card = judge_card(**{name: value for name, value in parsed.items() if name != "config"})
    quality = card.quality[parsed.output]
    print(f"AUC {quality.auc:.3f}, agrees with people on {quality.accuracy:.3f} of {quality.responses} responses")


if __name__ == "__main__":
    main()
