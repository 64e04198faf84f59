"""The interface of a judge's format: the question as turns or as one text, and the verdict in its output."""

from abc import ABC, abstractmethod
from typing import Any, Literal

Gives = Literal["unsafe", "refusal"]


class MalformedVerdictError(ValueError):
    """An output that is no verdict of the format."""


class JudgeFormat(ABC):
    """Asks a judge about one response, and reads its verdict.

    A format is a frozen dataclass in a file of its own. ``GuardModel`` runs it on a local model, and ``EndpointJudge``
    sends its turns to a server.
    """

    max_new_tokens: int = 32

    @property
    def gives(self) -> Gives:
        """The meaning of a verdict of 1."""
        return "unsafe"

    @abstractmethod
    def turns(self, prompt: str, response: str) -> list[dict[str, str]]:
        """The conversation (role, content) that a chat template, or a server with one, makes a question of."""

    def options(self) -> dict[str, Any]:
        """Further arguments of the model's own chat template."""
        return {}

    def written(self, prompt: str, response: str) -> str | None:
        """The whole text with its special tokens, as published. None if only the model's own template has it."""
        return None

    @abstractmethod
    def verdict(self, output: str) -> float:
        """1.0 or 0.0, from the judge's output.

        Raises:
            MalformedVerdictError: If the output is no verdict.
        """


def yes_or_no(word: str) -> float:
    """1.0 for yes and 0.0 for no, in any case. Raises MalformedVerdictError otherwise."""
    found = {"yes": 1.0, "no": 0.0}.get(word.strip().lower())
    if found is None:
        raise MalformedVerdictError("is neither yes nor no")
    return found
