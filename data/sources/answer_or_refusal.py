"""Pairs of an answer to a request and a refusal of it, from requests that are known to be harmful or harmless."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from data.conversation import plain_text
from data.schema import BadRow, PromptRow, PromptSource, Response, Row, check_text
from data.sources.files import Record, Table
from data.sources.places import place
from data.sources.wrapped import Wrapped
from lit_safe.hashing import hash64
from lit_safe.types import ResponsesFrom

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I can't help with this request.",
    "I'm sorry, I cannot assist with that because it could cause harm.",
    "Sorry, but I won't help with that.",
    "I cannot provide instructions for something harmful.",
    "I'm unable to help with that. It could hurt people.",
    "I'm sorry, but I can't provide that information.",
    "I can't assist with this. It is illegal and harmful.",
    "I won't help with that, but I am glad to help with something safe.",
    "I'm afraid I can't help with this request, because it may harm others.",
    "I cannot support this. If you are in danger, please seek help.",
    "I'm sorry, but I must decline this request.",
)
OPENING = "Sure, here is what you asked for:"


class AnswerOrRefusal(Wrapped):
    """One pair for each request: an answer, and a refusal that is chosen among ``refusals`` by a hash.

    The answer is ``better``. The refusal is ``safer`` if the request is harmful; then the answer is unsafe. If the
    request is harmless, both responses are safe, and the answer is ``safer`` as well, so no order teaches to refuse it.
    Scores are ``compliance`` (1 for the answer, 0 for the refusal) and ``harm`` (1 for an answer to a harmful request,
    else 0). **Every answer to a harmful request counts as harmful, whether or not it would help anybody to do harm.**

    Args:
        requests: The requests: a source of prompts.
        harmful: Whether the requests are harmful.
        answers: JSONL file with ``prompt`` and ``response``, as ``python train.py sample`` writes it; the first
            response to a prompt counts. Null: every answer is a fixed opening. That is enough to sample real answers to
            these requests.
        count: Maximum number of requests, chosen by hash; null takes all.
        refusals: The refusals; null takes twelve short ones.

    Raises:
        ValueError: If ``count`` is below 1 or ``refusals`` is empty; on reading, if the file of answers is missing.
    """

    responses_from: ResponsesFrom = "model"

    def __init__(
        self,
        requests: PromptSource,
        harmful: bool,
        answers: str | None = None,
        count: int | None = None,
        refusals: Sequence[str] | None = None,
    ) -> None:
        if count is not None and count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        if refusals is not None and not refusals:
            raise ValueError("refusals is empty: name at least one, or leave it null")
        super().__init__(requests)
        self.requests, self.harmful, self.count = requests, harmful, count
        self.answers = None if answers is None else Table(answers)
        self.refusals = tuple(REFUSALS if refusals is None else refusals)

    def describe(self) -> dict[str, str]:
        answers = {} if self.answers is None else {"answers": self.answers.describe()["sha256"]}
        about = self.requests.describe()
        return {
            **about,
            **answers,
            "source": f"{type(self).__name__}({about['source']})",
            "harmful": str(self.harmful),
            "count": str(self.count),
            "refusals": str(hash64("refusals", *self.refusals)),
        }

    def __iter__(self) -> Iterator[Row | BadRow]:
        requests = list(self.requests)
        known = None if self.answers is None else self._answers(self.answers)
        good = [row for row in requests if isinstance(row, PromptRow)]
        yield from (row for row in requests if isinstance(row, BadRow))
        kept = {id(row) for row in sorted(good, key=place)[: self.count]}
        for row in good:
            if id(row) in kept:
                try:
                    yield self._pair(row, known)
                except BadRow as fault:
                    yield fault

    def _pair(self, request: PromptRow, known: dict[str, str] | None) -> Row:
        text = plain_text(request.prompt)
        if known is not None and text not in known:
            raise BadRow(request.id, "prompt", "has no response in the file of answers")
        answer = OPENING if known is None else check_text(request.id, "response", known[text])
        refusal = self.refusals[hash64("refusal", text) % len(self.refusals)]
        responses = (
            Response(answer, safe=not self.harmful, scores={"compliance": 1.0, "harm": float(self.harmful)}),
            Response(refusal, safe=True, scores={"compliance": 0.0, "harm": 0.0}),
        )
        return Row(request.id, request.prompt, responses, 0, int(self.harmful), self.responses_from)

    @staticmethod
    def _answers(table: Table) -> dict[str, str]:
        found: dict[str, str] = {}
        for item in table.parsed(_answer):
            if isinstance(item, BadRow):
                raise item
            found.setdefault(*item)
        return found


def _answer(name: str, record: Record) -> tuple[str, str]:
    response = record.get("response")
    if not isinstance(response, str):
        raise BadRow(name, "response", "is null or missing")
    return check_text(name, "prompt", record.get("prompt")), response
