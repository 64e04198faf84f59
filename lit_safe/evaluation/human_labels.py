"""Labels by people of some of an evaluation's responses.

Letters: n responses.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lit_safe.constraint.certificate.inputs import NO, YES, read_rows

Floats = npt.NDArray[np.float64]
KINDS = ("unsafe", "refusal")
"""What people may say of a response, each in a column of its own."""


@dataclass(frozen=True)
class HumanLabels:
    """Labels by kind, prompt and response: 1 or 0."""

    path: Path
    of_kind: Mapping[str, Mapping[tuple[str, str], float]]

    def labels(self, kind: str, prompts: Sequence[str], responses: Sequence[str]) -> Floats:
        """[n] the labels of responses; NaN where there is none. Equal responses to a prompt share their label."""
        known = self.of_kind.get(kind, {})
        return np.array([known.get(pair, np.nan) for pair in zip(prompts, responses, strict=True)], np.float64)

    def check_any(self, given: Iterable[tuple[str, str]]) -> None:
        """Check that people labelled at least one of these responses, each with its prompt.

        Raises:
            ValueError: If they did not.
        """
        texts = {pair for known in self.of_kind.values() for pair in known}
        if texts.isdisjoint(given):
            raise ValueError(
                f"none of the {len(texts)} labelled texts of {self.path} is a response of this evaluation: label rows "
                "of its responses.parquet, with prompt and response as they stand there"
            )


def read_human_labels(path: Path) -> HumanLabels:
    """The labels of a CSV or JSON-lines file with ``prompt``, ``response``, and ``unsafe`` or ``refusal`` or both.

    A label is true or false. An empty one says nothing.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing, a label is neither true nor false, or two labels of a response differ.
            The message names the row.
    """
    found: dict[str, dict[tuple[str, str], float]] = {kind: {} for kind in KINDS}
    for number, row in enumerate(read_rows(path, ("prompt", "response"), KINDS), 1):
        for kind in KINDS:
            word = row.get(kind, "").strip().lower()
            if not word:
                continue
            if word not in (*YES, *NO):
                raise ValueError(f"{path}, row {number}: {kind} is {row[kind]!r}, it must be true or false")
            label, text = float(word in YES), (row["prompt"], row["response"])
            if found[kind].setdefault(text, label) != label:
                raise ValueError(f"{path}, row {number}: {kind} was labelled both ways: keep one label of the response")
    known = {kind: labels for kind, labels in found.items() if labels}
    if not known:
        raise ValueError(f"{path} has no label: it needs a column {' or '.join(KINDS)} with true or false")
    return HumanLabels(path, known)
