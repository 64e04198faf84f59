"""The file ``responses.parquet`` of ``evaluate``."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_safe.evaluation.exchange.answered import Answered, text_of

TEXTS = ("row", "prompt", "response")
FACTS = ("sample", "model", "suite", "category", "harmful", "complete")
OTHER = ("prompt_id", "trained_on", "tokens")
"""Columns of ``evaluate`` that other tools do not have."""


def read(path: Path) -> list[Answered]:
    """The responses of a file. Columns of numbers beside those of ``evaluate`` are scores.

    Raises:
        ValueError: If the file is no Parquet, or a column or text is missing.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as Parquet ({error})") from None
    found = []
    for number, row in enumerate(rows, 1):
        name = f"{path.name}:{number}"
        texts = {key: text_of(name, key, row.get(key)) for key in TEXTS}
        facts: dict[str, Any] = {key: row[key] for key in FACTS if row.get(key) is not None}
        scores = {
            key: float(value)
            for key, value in row.items()
            if key not in (*TEXTS, *FACTS, *OTHER) and isinstance(value, int | float)
        }
        found.append(Answered(**{**facts, **texts, "scores": scores}))
    return found


def write(rows: Sequence[Answered], path: Path) -> None:
    """Write responses, atomically. A judge without a score has null."""
    import pyarrow
    import pyarrow.parquet

    judges = list(dict.fromkeys(name for row in rows for name in row.scores))
    columns: dict[str, list[Any]] = {key: [getattr(row, key) for row in rows] for key in (*TEXTS, *FACTS)}
    columns |= {judge: [row.scores.get(judge) for row in rows] for judge in judges}
    kinds = dict.fromkeys((*TEXTS, "model", "suite", "category"), pyarrow.string())
    kinds |= {"sample": pyarrow.int64(), "harmful": pyarrow.bool_(), "complete": pyarrow.bool_()}
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.float64())) for name in columns])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    pyarrow.parquet.write_table(pyarrow.table(columns, schema=schema), partial)
    os.replace(partial, path)
