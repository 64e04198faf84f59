"""Writes pairs with rewards and costs from scorers, for objectives that need them where people gave no labels."""

import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lit_safe.commands.fit_scorer import LabelledTexts, TextPair, labelled_responses
from lit_safe.commands.sizes import check_sizes
from lit_safe.errors.message import SettingError
from lit_safe.execution.devices import chosen_device, name_for_rank, use
from lit_safe.execution.ranks import joined_ranks, rank_and_world
from lit_safe.rollouts.scoring import place
from lit_safe.rollouts.text_scores import Text, kept_beside, score_texts
from lit_safe.statistics.ranking import clustered_auc
from lit_safe.types import CostFunction

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "dual", "certify")
REWARD = "reward"
SUFFIXES = (".parquet", ".jsonl")


def annotate(
    data: LabelledTexts,
    *,
    scorer: CostFunction,
    out: str,
    reward: CostFunction | None = None,
    batch_pairs: int = 64,
    cache_dir: str | None = None,
    device: str = "auto",
) -> int:
    """Score both responses of every pair; write Parquet or JSONL with rewards and costs beside TRL's columns.

    The columns are ``chosen_cost``, ``rejected_cost`` (``chosen_cost_0`` ... for several costs) and, with a reward,
    ``chosen_reward``, ``rejected_reward``. The file can be used as a data source; the last lines of the output give the
    YAML for it. The column ``split_group`` keeps each prompt in its split. Pairs that are for evaluation only are left
    out, because the file could not exclude them from training.

    Each text is scored once. Scores are kept as they come, so the same command continues after a kill. Ranks that
    torchrun starts share the texts.

    Args:
        data: From ``--data``. Its pairs are scored.
        scorer: A cost function by class path, e.g. ``configs/scorer/score_folder.yaml``. If it names its ``outputs``
            and one is ``reward``, that one is the reward.
        out: The file to write, ``.parquet`` or ``.jsonl``. An older file is replaced only once the new one is complete.
        reward: Another scorer for the reward; larger is better. Null takes the scorer's own, or the data's labels.
        batch_pairs: Number of pairs scored at once. Scores are written after each batch.
        cache_dir: Folder that keeps scores by model and text for later commands. Null keeps them beside ``out`` until
            the file is complete.
        device: Where a scorer with a model runs: auto (an accelerator if there is one), cpu, cuda, cuda:1 or mps.

    Returns:
        The exit status, 0.

    Raises:
        ValueError: If ``batch_pairs`` is below 1, ``out`` has another suffix, the scorer returns no costs, a score is
            not finite (the error names the row), or the device does not exist.
    """
    check_sizes(batch_pairs=batch_pairs)
    path = Path(out)
    if path.suffix not in SUFFIXES:
        raise SettingError(f"--out {out}: the name must end in {' or '.join(SUFFIXES)}")
    with joined_ranks() as local:
        where = use(chosen_device(name_for_rank(device, local)))
        for one in (scorer, reward):
            place(one, where)
        pairs = {split: [pair for pair in data.pairs(split) if not pair.evaluation_only] for split in SPLITS}
        every = [pair for members in pairs.values() for pair in members]
        texts = [
            Text(pair.text, response, pair.row.id)
            for pair in every
            for response in (pair.row.chosen, pair.row.rejected)
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        with kept_beside(path, cache_dir) as kept:
            options: dict[str, Any] = {"batch": 2 * batch_pairs, "cache_dir": kept, "device": where}
            named = _columns(scorer, score_texts(scorer, texts, **options))
            if reward is not None:
                named[REWARD] = score_texts(reward, texts, **options)[:, 0]
            if rank_and_world()[0] > 0:
                return 0
            sides = {name: column.reshape(-1, 2).tolist() for name, column in named.items()}
            _write([_record(pair, data.constraints, sides, row) for row, pair in enumerate(every)], path)
            log.info("wrote %d pairs to %s", len(every), path)
    costs = [np.reshape(values, (len(every), 2)) for name, values in sides.items() if name != REWARD]
    first = len(pairs["train"])
    if costs:
        _agreement(pairs["val"], np.max(costs, 0)[first : first + len(pairs["val"])])
    log.info("%s", _source(path, list(named), data.order))
    return 0


def _columns(scorer: CostFunction, score_nC: Tensor) -> dict[str, Tensor]:
    """Scores [n] by column: ``cost`` or ``cost_0`` ..., and ``reward`` if the scorer has such an output."""
    outputs = tuple(getattr(scorer, "outputs", ()))
    rewards = [k for k, name in enumerate(outputs) if name == REWARD and len(outputs) == score_nC.shape[1]]
    costs = [k for k in range(score_nC.shape[1]) if k not in rewards]
    found = {"cost" if len(costs) == 1 else f"cost_{c}": score_nC[:, k] for c, k in enumerate(costs)}
    if rewards:
        found[REWARD] = score_nC[:, rewards[0]]
    return found


def _record(
    pair: TextPair, constraints: Sequence[str], sides: dict[str, list[list[float]]], index: int
) -> dict[str, Any]:
    """The pair with its labels and scores. A missing label is null."""
    row = pair.row
    chosen_text, rejected_text = pair.responses
    record: dict[str, Any] = {"prompt": pair.turns, "chosen": chosen_text, "rejected": rejected_text}
    record["split_group"] = row.split_group
    label = "label_" if REWARD in sides else ""  # with scored rewards, the labelled ones stand beside them
    record |= {
        f"chosen_{label}reward": _known(row.chosen_reward),
        f"rejected_{label}reward": _known(row.rejected_reward),
    }
    for name, chosen, rejected in zip(constraints, row.chosen_cost, row.rejected_cost, strict=True):
        record |= {f"chosen_label_{name}": _known(chosen), f"rejected_label_{name}": _known(rejected)}
    for name, values in sides.items():
        record |= {f"chosen_{name}": values[index][0], f"rejected_{name}": values[index][1]}
    return record


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _write(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the rows into ``path``, atomically."""
    partial = path.with_name(f"{path.name}.partial")
    if path.suffix == ".jsonl":
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(lines)
    else:
        _write_parquet(records, partial)
    os.replace(partial, path)


def _write_parquet(records: Sequence[dict[str, Any]], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    # a column has one type: a text, or turns of a role and a content
    shapes = {name: {_shape(record[name]) for record in records} for name in ("prompt", "chosen", "rejected")}
    for name, found in shapes.items():
        if len(found) > 1 or not found <= ({"text"} if name != "prompt" else {"text", "turns"}):
            raise ValueError(
                f"the column {name} holds {' and '.join(sorted(found))}, for which a Parquet column has no one type: "
                "write .jsonl"
            )
    turns = bool(records) and not isinstance(records[0]["prompt"], str)
    text = pyarrow.string()
    kinds = {"prompt": pyarrow.list_(pyarrow.struct([("role", text), ("content", text)])) if turns else text}
    kinds |= dict.fromkeys(("chosen", "rejected", "split_group"), text)
    names = list(records[0]) if records else list(kinds)
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.float64())) for name in names])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(records), schema=schema), path)


def _shape(value: Any) -> str:
    """What a prompt or a response is, as far as Parquet is concerned."""
    if isinstance(value, str):
        return "text"
    plain = all(turn.keys() == {"role", "content"} and isinstance(turn["content"], str) for turn in value)
    return "turns" if plain else "turns with tools or parts"


def _agreement(pairs: Sequence[TextPair], cost_P2: Any) -> None:
    """Log how well the largest costs [P, 2] rank the held-out responses that people labelled, if there are any."""
    texts = labelled_responses(pairs)
    if len(set(texts.unsafe)) < 2:
        log.info("no AUC: the val split needs responses with a safe label and responses with an unsafe label")
        return
    known: dict[tuple[int, str], float] = {}
    for pair, (chosen, rejected) in zip(pairs, cost_P2.tolist(), strict=True):
        known[pair.prompt_id, pair.row.chosen], known[pair.prompt_id, pair.row.rejected] = chosen, rejected
    keys = zip(texts.prompt_ids, texts.responses, strict=True)
    auc = clustered_auc(np.array([known[key] for key in keys]), texts.unsafe, texts.prompt_ids)
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
