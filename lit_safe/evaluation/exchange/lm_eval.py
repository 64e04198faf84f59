"""The samples of lm-evaluation-harness: ``samples_<task>_<time>.jsonl``, which ``--log_samples`` writes.

A line is a document with all responses to it. Seen in files of version 0.4.13.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_safe.evaluation.exchange.answered import Answered, facts_of, json_lines, text_of, write_lines


def read(path: Path, prompt: str = "prompt") -> list[Answered]:
    """The responses of a file.

    Args:
        path: The file. Its tasks must generate text (``output_type: generate_until``).
        prompt: The key of a document with the user's text. The text in ``arguments`` may have a chat template.

    Raises:
        ValueError: If a line lacks a document, the key or a generated text. The message names it.
    """
    found = []
    for name, line in json_lines(path):
        document, responses = line.get("doc"), line.get("resps")
        if not isinstance(document, dict):
            raise ValueError(f"{name}: has no document (doc), so it is no sample of lm-evaluation-harness")
        if prompt not in document:
            raise ValueError(
                f"{name}: the document has no {prompt!r}: name its key with the user's text, one of "
                f"{', '.join(map(str, document))}"
            )
        texts = responses[0] if isinstance(responses, list) and responses else None
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{name}: resps holds no generated text: the task must be of type generate_until")
        scores = {
            str(metric): float(line[metric])
            for metric in line.get("metrics", ())
            if isinstance(line.get(metric), int | float)
        }
        asked = text_of(name, f"doc.{prompt}", document[prompt])
        row = str(document.get("row", line.get("doc_id", name)))
        model = document.get("model") if isinstance(document.get("model"), str) else ""
        for sample, text in enumerate(texts):
            facts = facts_of(document)
            found.append(Answered(row, asked, text, sample, model or "", scores=scores, **facts))
    return found


def write(rows: Sequence[Answered], path: Path) -> None:
    """Write responses. Those of one model to one prompt become one line, and its metrics are means over them."""
    write_lines(path, _documents(rows))


def _documents(rows: Sequence[Answered]) -> Iterator[dict[str, Any]]:
    def document(row: Answered) -> tuple[str, str, str, str]:
        return row.model, row.suite, row.row, row.prompt

    ordered = sorted(rows, key=lambda row: (document(row), row.sample))
    for number, (_, members) in enumerate(itertools.groupby(ordered, document)):
        group = list(members)
        first = group[0]
        facts = {"model": first.model, "suite": first.suite, "row": first.row, "prompt": first.prompt}
        known = {"category": first.category, "harmful": first.harmful, "complete": first.complete}
        if len({row.complete for row in group}) > 1:
            known["complete"] = None  # a document has one value
        texts = [row.response for row in group]
        metrics = {}
        for name in dict.fromkeys(name for row in group for name in row.scores):
            values = [row.scores[name] for row in group if name in row.scores]
            metrics[name] = sum(values) / len(values)
        yield {
            "doc_id": number,
            "doc": facts | {name: value for name, value in known.items() if value is not None},
            "target": "",
            "arguments": {"gen_args_0": {"arg_0": first.prompt, "arg_1": {}}},
            "resps": [texts],
            "filtered_resps": texts[:1],
            "filter": "none",
            "metrics": list(metrics),
            **metrics,
        }
