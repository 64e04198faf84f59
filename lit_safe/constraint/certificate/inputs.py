"""Files that a user adds to a certificate: strata of prompts, and labels of responses by people."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

YES, NO = ("1", "true", "yes", "unsafe"), ("0", "false", "no", "safe")


def read_strata(path: Path, prompts: Sequence[str]) -> dict[str, list[int]]:
    """The prompts of each stratum, by their numbers.

    Args:
        path: CSV with the columns ``prompt`` and ``stratum``, or JSON lines with these keys.
        prompts: Texts of the prompts of the certificate.

    Raises:
        ValueError: If a column or a prompt is missing, a prompt has two strata, or a stratum has no prompt.
    """
    stratum: dict[str, str] = {}
    for number, row in enumerate(read_rows(path, ("prompt", "stratum")), 1):
        text = row["prompt"].strip()
        if stratum.setdefault(text, row["stratum"]) != row["stratum"]:
            raise ValueError(
                f"{path}, row {number}: the prompt {text[:60]!r} is in the strata {stratum[text]!r} and "
                f"{row['stratum']!r}: give it one"
            )
    missing = [text for text in prompts if text.strip() not in stratum]
    if missing:
        raise ValueError(
            f"{path} has no stratum for {len(missing)} of the {len(prompts)} prompts: add a row for each, the first is "
            f"{missing[0][:60]!r}"
        )
    found: dict[str, list[int]] = {name: [] for name in dict.fromkeys(stratum.values())}
    for number, text in enumerate(prompts):
        found[stratum[text.strip()]].append(number)
    empty = [name for name, members in found.items() if not members]
    if empty:
        raise ValueError(
            f"the stratum {empty[0]!r} of {path} has none of the {len(prompts)} prompts of the certificate: nothing "
            "can be said about it, so add prompts to the data or leave it out of the file"
        )
    return found


def read_labels(path: Path, prompts: Sequence[str], responses: Sequence[str]) -> tuple[Int64s, Bools]:
    """The numbers of the responses that people labelled, and their labels (True is unsafe).

    Args:
        path: CSV or JSON lines with ``prompt``, ``response`` and ``unsafe`` (true or false).
        prompts: Prompt of each response.
        responses: The responses of the certificate.

    Raises:
        ValueError: If a column is missing, a label is neither true nor false or contradicts another one, or none of
            the labelled texts is a response of the certificate.
    """
    turn = {pair: number for number, pair in enumerate(zip(prompts, responses, strict=True))}
    labels: dict[int, bool] = {}
    rows = read_rows(path, ("prompt", "response", "unsafe"))
    for number, row in enumerate(rows, 1):
        word = row["unsafe"].strip().lower()
        if word not in (*YES, *NO):
            raise ValueError(f"{path}, row {number}: unsafe is {row['unsafe']!r}, it must be true or false")
        place = turn.get((row["prompt"], row["response"]))
        if place is not None and labels.setdefault(place, word in YES) != (word in YES):
            raise ValueError(f"{path}, row {number}: the response was labelled both safe and unsafe: keep one label")
    if not labels:
        raise ValueError(
            f"none of the {len(rows)} labelled texts of {path} is a response of this certificate: label rows of its "
            "responses file"
        )
    order = sorted(labels)
    return np.array(order, np.int64), np.array([labels[place] for place in order], np.bool_)


def read_rows(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> list[dict[str, str]]:
    """The rows of a CSV or JSON-lines file with these columns, and the optional ones that they have, as texts."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open(newline="", encoding="utf-8-sig") as file:
        if path.suffix in (".jsonl", ".json"):
            rows = [_parsed(path, number, line) for number, line in enumerate(file, 1) if line.strip()]
        else:
            rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, 1):
        missing = [column for column in columns if not isinstance(row, dict) or row.get(column) is None]
        if missing:
            raise ValueError(f"{path}, row {number}: has no {missing[0]!r}; it needs {', '.join(columns)}")
    if not rows:
        raise ValueError(f"{path} has no rows")
    return [
        {column: str(row[column]) for column in (*columns, *optional) if row.get(column) is not None} for row in rows
    ]


def _parsed(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, row {number}: is not JSON ({error})") from None
