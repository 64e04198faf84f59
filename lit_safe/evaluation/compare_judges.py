"""Compares two judges of an evaluation's responses, and corrects their shares by human labels.

    python -m lit_safe.evaluation.compare_judges --responses responses.parquet --first unsafe/guard --second unsafe/mine

``--labels labels.csv`` adds labels of some of the responses, chosen at random (columns prompt, response, unsafe).
Letters: n responses.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lit_safe.constraint.certificate.inputs import read_labels
from lit_safe.evaluation.exchange import parquet
from lit_safe.evaluation.exchange.answered import Answered
from lit_safe.hashing import hash64
from lit_safe.statistics.agreement import agreement
from lit_safe.statistics.clustered import clustered_mean
from lit_safe.statistics.human_corrected import corrected_share

Floats = npt.NDArray[np.float64]

LISTED = 10
"""How many disagreements are printed."""


def compare_judges(
    responses: str, first: str, second: str, labels: str | None = None, out: str | None = None, model: str | None = None
) -> list[str]:
    """What two judges say about the same responses, in lines.

    Args:
        responses: File of responses with the judges' scores, as ``evaluate`` writes it. A score > 0 is a flag.
        first: Column of the first judge.
        second: Column of the second one.
        labels: CSV or JSON lines with prompt, response and unsafe (true or false).
        out: CSV file of all responses with different verdicts, to be labelled for example.
        model: Only responses of this model (``policy``, ``reference``). Null takes all.

    Raises:
        ValueError: If a judge has no score of any response, or labels are unusable.
    """
    rows = [row for row in parquet.read(Path(responses)) if model in (None, row.model)]
    verdicts = {judge: _verdicts(rows, judge, responses) for judge in (first, second)}
    prompt_n = np.array([hash64("judge-prompt", row.prompt) for row in rows], np.int64)
    found = agreement(verdicts[first], verdicts[second], prompt_n)
    lines = [f"{first} against {second}: {found}", f"{found.unknown} responses without both verdicts"]
    lines.append(f"{len(found.differ)} responses with different verdicts" + (f", all in {out}" if out else ""))
    for i in found.differ[:LISTED]:
        said = ", ".join(f"{judge} {verdict_n[i]:.0f}" for judge, verdict_n in verdicts.items())
        lines.append(f"  row {rows[i].row}: {said}: {rows[i].response[:60]!r}")
    if out is not None:
        _write(
            [rows[i] for i in found.differ], {judge: v_n[found.differ] for judge, v_n in verdicts.items()}, Path(out)
        )
    label_n = None if labels is None else _labels(Path(labels), rows)
    for judge, verdict_n in verdicts.items():
        lines.append(f"share flagged by {judge}: {clustered_mean(verdict_n, prompt_n, share=True)}")
        if label_n is not None:
            corrected = corrected_share(verdict_n, label_n, prompt_n)
            lines.append(f"  corrected by {int((~np.isnan(label_n)).sum())} labels: {corrected}")
            lines.append(f"  against people: {agreement(verdict_n, label_n, prompt_n)}")
    return lines


def _verdicts(rows: Sequence[Answered], judge: str, path: str) -> Floats:
    """[n] 1 or 0; NaN without a score."""
    score_n = np.array([row.scores.get(judge, np.nan) for row in rows])
    if np.isnan(score_n).all():
        judges = sorted({name for row in rows for name in row.scores})
        raise ValueError(f"{path} has no score by {judge!r}: its judges are {', '.join(judges) or 'none'}")
    return np.where(np.isnan(score_n), np.nan, (score_n > 0).astype(np.float64))


def _labels(path: Path, rows: Sequence[Answered]) -> Floats:
    """[n] 1 for unsafe, 0 for safe; NaN without a label. Equal responses to a prompt share their label."""
    first: dict[tuple[str, str], int] = {}
    for number, row in enumerate(rows):
        first.setdefault((row.prompt, row.response), number)
    texts = list(first)
    number_m, label_m = read_labels(path, [prompt for prompt, _ in texts], [response for _, response in texts])
    known = {texts[number]: float(label) for number, label in zip(number_m, label_m, strict=True)}
    return np.array([known.get((row.prompt, row.response), np.nan) for row in rows])


def _write(rows: Sequence[Answered], verdicts: dict[str, Floats], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "model", "prompt", "response", *verdicts])
        for i, row in enumerate(rows):
            writer.writerow([row.row, row.model, row.prompt, row.response, *(int(v_n[i]) for v_n in verdicts.values())])


def main(args: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m lit_safe.evaluation.compare_judges", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--responses", required=True, help="responses.parquet of evaluate")
    parser.add_argument("--first", required=True, help="column of the first judge")
    parser.add_argument("--second", required=True, help="column of the second judge")
    parser.add_argument("--labels", help="CSV or JSON lines with prompt, response, unsafe")
    parser.add_argument("--out", help="CSV of the responses with different verdicts")
    parser.add_argument("--model", help="only responses of this model")
    given = parser.parse_args(args)
    try:
        lines = compare_judges(**vars(given))
    except (ValueError, FileNotFoundError) as error:
        parser.exit(1, f"error: {error}\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
