"""The interface of every model source."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import transformers


class Description(NamedTuple):
    """The description of a source in reports. ``licence`` is as the publisher states it."""

    name: str
    revision: str | None = None
    licence: str = "unknown"

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


@runtime_checkable
class ModelSource(Protocol):
    """Reads or builds a causal language model. The constructor does no I/O; two loads give equal models."""

    def load_model(self) -> transformers.PreTrainedModel:
        """A new model with its head, unchanged from its publisher."""

    def load_tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        """Its tokenizer, with the chat template if there is one."""

    def describe(self) -> Description:
        """Its name, revision and licence."""
