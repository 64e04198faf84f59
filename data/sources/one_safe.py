"""Pairs of a safe and a harmful response, for training to refuse (DeRTa)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from data.conversation import plain_text
from data.schema import BadRow, HarmfulRow, Row, SftRow, Source
from data.sources.wrapped import Wrapped
from lit_safe.types import CostFunction

TOGETHER = 256  # responses of one call of the judge


class OneSafe(Wrapped):
    """The pairs of a source with exactly one response that is flagged safe. The safe response is the one to imitate.

    A response that is flagged safe need not be a refusal: it may be a helpful and harmless answer. ``only`` and
    ``template`` are two ways to train on refusals alone. Pairs that are left out are not reported. Responses of several
    turns are left out, too.

    Args:
        source: Source of the pairs, with safety flags.
        only: Keep only pairs whose safe response this judge scores above 0, for example a judge of refusals
            (``models.scorers.refusal.RefusalJudge``). Null keeps all.
        template: A fixed response that takes the place of every safe response; null takes the responses of the data.

    Raises:
        ValueError: If both ``only`` and ``template`` are set.
    """

    def __init__(self, source: Source, only: CostFunction | None = None, template: str | None = None) -> None:
        if only is not None and template is not None:
            raise ValueError("set only or template: a template replaces the responses that only would choose")
        if template is not None and not template.strip():
            raise ValueError("template must be a text, or null")
        super().__init__(source)
        self.source, self.only, self.template = source, only, template

    def describe(self) -> dict[str, str]:
        judge = "none" if self.only is None else _named(self.only)
        return {**self.source.describe(), "one_safe": f"only {judge}, template {self.template!r}"}

    def __iter__(self) -> Iterator[SftRow | BadRow]:
        if self.only is None:
            yield from self._pairs()
            return
        pairs = self._pairs()
        while some := list(islice(pairs, TOGETHER)):
            rows = [row for row in some if not isinstance(row, BadRow)]
            kept = {id(row) for row, score in zip(rows, self._scores(rows), strict=True) if score > 0}
            yield from (row for row in some if isinstance(row, BadRow) or id(row) in kept)

    def _pairs(self) -> Iterator[HarmfulRow | BadRow]:
        for row in self.source:
            if isinstance(row, BadRow):
                yield row
            elif (found := self._pair(row)) is not None:
                yield found

    def _pair(self, row: Row) -> HarmfulRow | None:
        first, second = row.responses
        if first.turns or second.turns or {first.safe, second.safe} != {True, False}:
            return None
        safe, harmful = (first, second) if first.safe else (second, first)
        text = safe.text if self.template is None else self.template
        return HarmfulRow(row.id, row.prompt, text, row.split_group, harmful=harmful.text)

    def _scores(self, rows: list[HarmfulRow]) -> list[float]:
        assert self.only is not None
        if not rows:
            return []
        found = self.only([plain_text(row.prompt) for row in rows], [row.response for row in rows])
        scores = [float(score) for score in found]
        if len(scores) != len(rows):
            raise ValueError(f"the judge {type(self.only).__name__} gave {len(scores)} scores of {len(rows)} responses")
        wrong = next((row for row, score in zip(rows, scores, strict=True) if score != score), None)
        if wrong is not None:
            raise ValueError(f"the judge {type(self.only).__name__} gave NaN for the safe response of row {wrong.id}")
        return scores


def _named(judge: Any) -> str:
    """All that decides a judge's scores: its digest, or its class and its settings.

    Raises:
        ValueError: If it has no digest and its settings are no JSON values.
    """
    name = f"{type(judge).__module__}.{type(judge).__qualname__}"
    if hasattr(judge, "digest"):
        return f"{name} {judge.digest()}"
    try:
        return f"{name} {json.dumps(vars(judge), sort_keys=True)}"
    except TypeError:
        raise ValueError(f"only: {name} has settings that are no JSON values: give it a method digest()") from None
