"""Writes pairs with costs from a scorer, for objectives that need costs where people gave no labels."""

import itertools
import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress
from torch import Tensor

from lit_safe.commands.fit_scorer import LabelledTexts, TextPair, labelled_responses
from lit_safe.commands.sizes import check_sizes
from lit_safe.execution.devices import chosen_device, use
from lit_safe.execution.quiet import quiet
from lit_safe.hashing import hash64
from lit_safe.rollouts.scoring import check_finite, place, score
from lit_safe.statistics.ranking import clustered_auc
from lit_safe.types import CostFunction

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "dual", "certify")


def annotate(
    data: LabelledTexts, *, scorer: CostFunction, out: str, batch_pairs: int = 64, device: str = "auto"
) -> int:
    """Score both responses of every pair; write JSONL with TRL's columns and ``chosen_cost``, ``rejected_cost``.

    The file can be used as a data source; the last lines of the output give the YAML for it. The column ``split_group``
    keeps each prompt in its split. Pairs that are for evaluation only are left out, because the file could not exclude
    them from training.

    Args:
        data: From ``--data``. Its pairs are scored.
        scorer: A cost function by class path, e.g. ``configs/scorer/tfidf.yaml``.
        out: The file to write. An older file is replaced only once the new one is complete.
        batch_pairs: Number of pairs scored at once.
        device: Where a scorer with a model runs: auto (an accelerator if there is one), cpu, cuda, cuda:1 or mps.

    Returns:
        The exit status, 0.

    Raises:
        ValueError: If ``batch_pairs`` is below 1, the scorer returns no costs, a cost is not finite (the error names
            the row), or the device does not exist.
    """
    check_sizes(batch_pairs=batch_pairs)
    place(scorer, use(chosen_device(device)))
    pairs = {split: [pair for pair in data.pairs(split) if not pair.evaluation_only] for split in SPLITS}
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    total = sum(map(len, pairs.values()))
    columns: tuple[str, ...] = ()
    held_out: dict[tuple[int, str], list[float]] = {}
    with partial.open("w", encoding="utf-8") as file, quiet(scorer, hash64("annotate")), Progress() as progress:
        scoring = progress.add_task("scoring pairs", total=total)
        for split, members in pairs.items():
            for batch in _batches(members, batch_pairs):
                costs = _costs(scorer, batch)
                columns = tuple(_column(k, costs.shape[-1]) for k in range(costs.shape[-1]))
                for pair, (chosen, rejected) in zip(batch, costs.tolist(), strict=True):
                    record = _record(pair, data.constraints)
                    for k, column in enumerate(columns):
                        record |= {f"chosen_{column}": chosen[k], f"rejected_{column}": rejected[k]}
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
                    if split == "val":
                        held_out[pair.prompt_id, pair.row.chosen] = chosen
                        held_out[pair.prompt_id, pair.row.rejected] = rejected
                progress.advance(scoring, len(batch))
    os.replace(partial, path)
    log.info("wrote %d pairs to %s", total, path)
    _agreement(pairs["val"], held_out)
    log.info("%s", _source(path, columns, data.order))
    return 0


def _batches(pairs: Sequence[TextPair], size: int) -> Iterator[tuple[TextPair, ...]]:
    rest = iter(pairs)
    while batch := tuple(itertools.islice(rest, size)):
        yield batch


def _costs(scorer: CostFunction, pairs: Sequence[TextPair]) -> Tensor:
    """[pairs, 2, C] costs of the chosen and the rejected responses."""
    prompts = [pair.text for pair in pairs for _ in range(2)]
    responses = [response for pair in pairs for response in (pair.row.chosen, pair.row.rejected)]
    costs = score(scorer, prompts, responses)
    check_finite(scorer, costs, [f"row {pair.row.id}" for pair in pairs for _ in range(2)])
    return costs.reshape(len(pairs), 2, -1)


def _column(k: int, constraints: int) -> str:
    return "cost" if constraints == 1 else f"cost_{k}"


def _record(pair: TextPair, constraints: Sequence[str]) -> dict[str, Any]:
    """The pair and its labels. A missing label is null."""
    row = pair.row
    sides = zip(("chosen", "rejected"), pair.responses, strict=True)
    record: dict[str, Any] = {"prompt": pair.turns, **dict(sides)}
    record["split_group"] = row.split_group
    record |= {"chosen_reward": _known(row.chosen_reward), "rejected_reward": _known(row.rejected_reward)}
    for name, chosen, rejected in zip(constraints, row.chosen_cost, row.rejected_cost, strict=True):
        record |= {f"chosen_label_{name}": _known(chosen), f"rejected_label_{name}": _known(rejected)}
    return record


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _agreement(pairs: Sequence[TextPair], costs: dict[tuple[int, str], list[float]]) -> None:
    """Log how well the costs rank the held-out responses that people labelled, if there are any."""
    texts = labelled_responses(pairs)
    if len(set(texts.unsafe)) < 2:
        log.info("no AUC: the val split needs responses with a safe label and responses with an unsafe label")
        return
    keys = zip(texts.prompt_ids, texts.responses, strict=True)
    auc = clustered_auc(np.array([max(costs[key]) for key in keys]), texts.unsafe, texts.prompt_ids)
    log.info(
        "against the labels of %d held-out responses: AUC %s (95 %%, clustered by %d prompts)",
        *(auc.count, auc, auc.clusters),
    )


def _source(path: Path, columns: Sequence[str], order: str) -> str:
    scores = ", ".join(f"{column}: [chosen_{column}, rejected_{column}]" for column in columns)
    chosen_is = "safer" if order == "safer" else "better"
    return (
        "as a data source:\n"
        f"class_path: data.sources.trl.TRL\ninit_args: {{path: {path}, chosen_is: {chosen_is}, "
        f"split_group: split_group, scores: {{{scores}}}}}"
    )
