"""The attributes of a Trainer that Lightning's connectors add, with their types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from lightning import Callback, Trainer


class Connected(Protocol):
    """A Trainer after its connectors have run. Its class does not declare these attributes."""

    callbacks: list[Callback]
    datamodule: Any
    fast_dev_run: bool | int
    log_every_n_steps: int


def connected(trainer: Trainer) -> Connected:
    """The same trainer, with the types of what its connectors have added."""
    return cast("Connected", trainer)
