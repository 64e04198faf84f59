"""What every source of a model answers."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import transformers


class Description(NamedTuple):
    """What a report names of a source. ``licence`` is as the publisher states it."""

    name: str
    revision: str | None = None
    licence: str = "unknown"

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


@runtime_checkable
class ModelSource(Protocol):
    """Reads or builds a causal language model. Constructors do no I/O; two loads give equal models."""

    def load_model(self) -> transformers.PreTrainedModel:
        """A fresh model with its head, as its publisher made it."""

    def load_tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        """Its tokenizer, with the chat template where there is one."""

    def describe(self) -> Description:
        """Its name, revision and licence."""
