"""The prompts of a safety evaluation: suites of harmful and of harmless prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from lit_safe.errors.message import SettingError
from lit_safe.hashing import hash64
from lit_safe.types import Prompt


@runtime_checkable
class PromptSource(Protocol):
    """A dataset of prompts, such as those in ``data/sources``."""

    @property
    def licence(self) -> str:
        """Licence of the data, as a report names it."""

    def describe(self) -> dict[str, str]:
        """Named inputs that decide the prompts."""

    # the annotation is Any: jsonargparse compares it with that of an implementation, which names its own rows
    def __iter__(self) -> Any:
        """Every prompt in order, with ``id`` and ``prompt``, perhaps ``category`` and ``harmful``; or an error."""


@dataclass(frozen=True)
class Suite:
    """A prompt source, and what is expected of its prompts.

    Args:
        source: A source of prompts by class path, e.g. ``data.sources.adv_bench.AdvBench``.
        harmful: True: the prompts are harmful requests, and the unsafe share is measured. False: they are harmless, and
            the share of refusals is measured. Null: the source says it of each prompt.
        prompts: Number of prompts of each kind, chosen by hash. Null takes all.
    """

    source: PromptSource
    harmful: bool | None = None
    prompts: int | None = None


class Question(NamedTuple):
    """A prompt of a suite. ``row`` is its name in the source. ``trained_on``: it is in the train split of the data."""

    suite: str
    row: str
    harmful: bool
    category: str | None
    prompt: Prompt
    trained_on: bool


def questions(suites: Mapping[str, Suite], data: Any) -> list[Question]:
    """The prompts of all suites. A prompt that a suite holds several times is asked once.

    Args:
        suites: Name → suite.
        data: Renders prompts (``to_answer``), and knows which of them are in its train split (``trained_on``).

    Raises:
        SettingError: If a suite has no prompts, or neither suite nor source says whether a prompt is harmful, or the
            two contradict each other.
        Exception: The error of an unusable row, which names row and column.
    """
    if not suites:
        raise SettingError("there are no suites: give -c configs/evaluation/<name>.yaml, or --suites")
    found: list[Question] = []
    for name, suite in suites.items():
        rows = _rows(name, suite)
        texts = [data.to_answer(row.id, row.prompt) for row in rows]
        known = data.trained_on([prompt.text for prompt in texts])
        asked = [
            Question(name, row.id, _harmful(name, suite, row), getattr(row, "category", None), prompt, seen)
            for row, prompt, seen in zip(rows, texts, known, strict=True)
        ]
        unique = list({question.prompt.prompt_id: question for question in reversed(asked)}.values())[::-1]
        for harmful in (True, False):
            found += _chosen([question for question in unique if question.harmful == harmful], suite.prompts)
    return found


def _rows(name: str, suite: Suite) -> list[Any]:
    rows = []
    for row in suite.source:
        if isinstance(row, Exception):
            row.add_note(f"in the suite {name}")
            raise row
        rows.append(row)
    if not rows:
        raise SettingError(f"the suite {name} has no prompts ({', '.join(suite.source.describe().values())})")
    return rows


def _harmful(name: str, suite: Suite, row: Any) -> bool:
    said = getattr(row, "harmful", None)
    if said is None and suite.harmful is None:
        raise SettingError(
            f"nothing says whether the prompts of the suite {name} are harmful: set suites.{name}.harmful to true or "
            "false"
        )
    if said is not None and suite.harmful not in (None, said):
        raise SettingError(
            f"suites.{name}.harmful is {str(suite.harmful).lower()}, and row {row.id} says {str(said).lower()}: set it "
            "to null"
        )
    return bool(suite.harmful if said is None else said)


def _chosen(members: Sequence[Question], count: int | None) -> list[Question]:
    """``count`` of them by hash, in their order."""
    if count is None or count >= len(members):
        return list(members)
    ids = [question.prompt.prompt_id for question in members]
    kept = set(sorted(ids, key=lambda i: (hash64("evaluation-suite", i), i))[:count])
    return [question for question in members if question.prompt.prompt_id in kept]
