"""The words, files and rows that the table of mistakes is made of."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

BASE = ("-c", "configs/base.yaml", "-c", "run.yaml")
FIT = ("fit", *BASE)
C_DPO = ("--model.objective", "configs/objective/c_dpo.yaml")
SAFE_DPO = ("--model.objective", "configs/objective/safe_dpo.yaml")
HUB = ("--model.pair", "configs/model/hf.yaml", "--model.pair.source.name_or_path")
RUN = """trainer: {accelerator: cpu, max_steps: 2, max_epochs: -1, default_root_dir: runs/x, limit_val_batches: 0}
data:
  class_path: data.module.PreferenceData
  init_args:
    sources:
      - class_path: data.sources.scored.ScoredPairs
        init_args:
          path: pairs.jsonl
          scores: {reward: [reward_0, reward_1], cost: [cost_0, cost_1]}
    annotator:
      class_path: data.annotators.scores.Scores
      init_args: {reward_from: {column: reward}, costs_from: [{column: cost, threshold: 0.0}]}
    order: helpful
    pairs_per_step: 4
    micro_batch_pairs: 2
    max_length: 96
    on_bad_row: error
"""


class Mistake(NamedTuple):
    """One row of the table.

    Args:
        words: Typed after the program's name.
        says: Texts that the message holds; the first is its first line, or the beginning of it.
        files: Written beforehand, by path, beside ``run.yaml`` and ``pairs.jsonl``.
        code: The exit status.
    """

    words: tuple[str, ...]
    says: tuple[str, ...]
    files: Mapping[str, str | bytes] = MappingProxyType({})
    code: int = 2


def record(i: int) -> dict[str, Any]:
    answers = {"response_0": f"It is {i}, I think.", "response_1": f"No. {i}!"}
    return {"prompt": f"Which number is {i:03d}?", **answers, "reward_0": 1.0, "reward_1": i % 2 * 2.0,
            "cost_0": -1.0 + i % 3, "cost_1": -0.5}  # fmt: skip


def pairs(count: int = 40, **changed: Any) -> str:
    """Rows of JSONL, the eighth of them with changes."""
    rows = [record(i) | (changed if i == 7 else {}) for i in range(count)]
    return "".join(json.dumps(row) + "\n" for row in rows)


def run(old: str, new: str) -> dict[str, str | bytes]:
    """``run.yaml`` with one text in place of another."""
    assert old in RUN
    return {"run.yaml": RUN.replace(old, new)}
