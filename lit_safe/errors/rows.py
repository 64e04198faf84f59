"""Reads the column names of a user's data file."""

import csv
import json
from pathlib import Path


def columns_of(path: str) -> list[str]:
    """Column names of a local JSONL, CSV or TSV file, from its first line. [] for other files."""
    suffix = Path(path).suffix
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            line = file.readline()
        if suffix in (".csv", ".tsv"):
            return next(csv.reader([line], delimiter="\t" if suffix == ".tsv" else ","), [])
        row = json.loads(line)
    except (OSError, ValueError):
        return []
    return list(row) if isinstance(row, dict) else []
