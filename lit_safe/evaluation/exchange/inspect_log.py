"""The samples of an Inspect log: one ``EvalSample`` a line, or the log as one JSON file with ``samples``.

``inspect log dump`` gives the JSON of a binary log. This follows Inspect's published schema. No log by Inspect itself
was read here.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_safe.evaluation.exchange.answered import Answered, facts_of, json_lines, text_of, write_lines

CUT = "max_tokens"


def read(path: Path) -> list[Answered]:
    """The responses of a log.

    Raises:
        ValueError: If a sample lacks its input, its output or a user's turn. The message names it.
    """
    return [_answered(name, sample) for name, sample in _samples(path)]


def write(rows: Sequence[Answered], path: Path) -> None:
    """Write one ``EvalSample`` for each response. A sample number is an epoch, from 1."""
    write_lines(path, (_sample(row) for row in rows))


def _samples(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.suffix != ".json":
        yield from json_lines(path)
        return
    try:
        log = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from None
    samples = log.get("samples") if isinstance(log, dict) else None
    if not isinstance(samples, list):
        raise ValueError(f"{path} has no list 'samples', so it is no log of Inspect")
    yield from ((f"{path.name}:samples[{number}]", sample) for number, sample in enumerate(samples))


def _answered(name: str, sample: Mapping[str, Any]) -> Answered:
    output, metadata = sample.get("output"), sample.get("metadata") or {}
    if not isinstance(output, dict):
        raise ValueError(f"{name}: has no output, so it is no sample of Inspect, or it failed")
    choices = output.get("choices") or [{}]
    text = output.get("completion")
    if not isinstance(text, str):
        text = _content(name, "output.choices[0].message", choices[0].get("message") or {})
    stopped = choices[0].get("stop_reason")
    complete = None if stopped in (None, "unknown") else stopped != CUT
    scores = {
        str(judge): float(score["value"])
        for judge, score in (sample.get("scores") or {}).items()
        if isinstance(score, dict) and isinstance(score.get("value"), int | float)
    }
    return Answered(
        row=str(sample.get("id", name)),
        prompt=_asked(name, sample.get("input")),
        response=text,
        sample=int(sample.get("epoch", 1)) - 1,
        model=str(output.get("model") or ""),
        scores=scores,
        **{"complete": complete, **{key: value for key, value in facts_of(metadata).items() if key != "complete"}},
    )


def _asked(name: str, value: object) -> str:
    """The user's text: the input, or the last turn of the user in it."""
    if not isinstance(value, list):
        return text_of(name, "input", value)
    turns = [turn for turn in value if isinstance(turn, dict) and turn.get("role") == "user"]
    if not turns:
        raise ValueError(f"{name}: input has no turn of the user")
    return _content(name, "input", turns[-1])


def _content(name: str, key: str, turn: Mapping[str, Any]) -> str:
    """A turn's text; text parts are joined."""
    content = turn.get("content")
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
        return "".join(text_of(name, f"{key}.content.text", part.get("text")) for part in parts)
    return text_of(name, f"{key}.content", content)


def _sample(row: Answered) -> dict[str, Any]:
    facts = {"suite": row.suite, "category": row.category, "harmful": row.harmful}
    answer = {"role": "assistant", "content": row.response, "source": "generate"}
    stopped = {True: "stop", False: CUT, None: "unknown"}[row.complete]
    return {
        "id": row.row,
        "epoch": row.sample + 1,
        "input": row.prompt,
        "target": "",
        "messages": [{"role": "user", "content": row.prompt, "source": "input"}, answer],
        "output": {
            "model": row.model,
            "choices": [{"message": answer, "stop_reason": stopped}],
            "completion": row.response,
        },
        "scores": {judge: {"value": value} for judge, value in row.scores.items()},
        "metadata": {name: value for name, value in facts.items() if value is not None},
    }
