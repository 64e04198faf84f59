"""The reference of a sharded policy: sharded like it, or the policy with its adapter off, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from models.backbone import Backbone
from models.reference import AdapterOff, FrozenCopy, NoReference, OpenReference, Reference


class ShardedReference:
    """Opens a reference whose weights are divided over ranks.

    Args:
        frozen: Its backbone.
        policy: The policy, whose layout it takes.
    """

    def __init__(self, frozen: Backbone, policy: Backbone) -> None:
        self.frozen, self._policy = frozen, policy

    @contextmanager
    def __call__(self) -> Iterator[Backbone]:
        """A block in which the reference computes. A pass gathers its weights, so all ranks must make it."""
        self.frozen.layout = self._policy.layout
        yield self.frozen


def check_reference(reference: Reference) -> None:
    """Refuse a reference that cannot be sharded, before anything is loaded.

    Raises:
        ValueError: Names what can.
    """
    if isinstance(reference, NoReference | AdapterOff):
        return
    if not isinstance(reference, FrozenCopy) or reference.dtype != "policy":
        raise ValueError(
            f"the reference ({reference.describe()}) cannot be sharded: use models.reference.FrozenCopy with dtype "
            "policy, AdapterOff with an adapter, or an objective without reference"
        )


def open_sharded(reference: Reference, policy: Backbone, as_loaded: Callable[[], Backbone]) -> OpenReference:
    """A context that gives the reference of ``policy``. All ranks must call this.

    Args:
        reference: The user's choice.
        policy: The sharded policy.
        as_loaded: Reads the policy's first weights again and shards them.

    Raises:
        ValueError: As ``check_reference``.
    """
    check_reference(reference)
    if isinstance(reference, NoReference | AdapterOff):
        return reference.attach(policy)
    return ShardedReference(as_loaded().eval().requires_grad_(False), policy)
