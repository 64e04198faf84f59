"""The part of a pair that divides its models over ranks."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import nn

from lit_safe.types import TrunkStorage
from models.backbone import Backbone
from models.policy_reader import PolicyReader
from models.reference import MadeAgain, OpenReference, Reference
from models.sharding.plan import ShardingPlan
from models.sharding.references import ShardedReference, check_reference, open_sharded
from models.sharding.wrap import reshard, whole_weights


class ShardablePair(nn.Module):
    """A policy and a reference that the ranks of a run can share. ``models.pair.PolicyReference`` fills it in."""

    policy: Backbone | None
    reference: Reference
    _reader: PolicyReader
    _open_reference: OpenReference | None

    def trunk_storage(self) -> TrunkStorage | None:
        """Where training stores the hidden states below the layers that train; None if it stores none."""
        raise NotImplementedError  # PolicyReference knows its adaptation; this class does not

    @property
    def sharded(self) -> bool:
        """Whether each rank holds a part of the weights."""
        return self._reader.plan is not None

    @property
    def sharers(self) -> int:
        """Number of ranks that hold each weight together."""
        return 1 if self._reader.plan is None else self._reader.plan.mesh.size()

    def shard_over(self, plan: ShardingPlan) -> None:
        """Divide both models over ranks when they are loaded. Does nothing once the pair is loaded.

        Raises:
            ValueError: If the adaptation stores the states of frozen layers, or the reference cannot be sharded.
        """
        if self.trunk_storage() is not None:
            raise ValueError("adaptation.cache_trunk: not supported by sharded models: leave it out, or use ddp")
        check_reference(self.reference)
        if self.policy is None:
            self._reader.plan = plan

    def whole_weights(self) -> AbstractContextManager[None]:
        """A block in which each rank holds both models whole, if they are sharded. All ranks must enter it."""
        if self.policy is None or not self.sharded:
            return nullcontext()
        if self._open_reference is None:
            self._open_reference = self._opened(self.policy)
        own = self._open_reference.frozen if isinstance(self._open_reference, ShardedReference) else None
        return whole_weights(self.policy, own)

    def reshard(self) -> None:
        """Give back the weights that passes have left whole, if the models are sharded."""
        reshard(self.policy)

    def _opened(self, policy: Backbone) -> OpenReference:
        """The reference of ``policy``. If it was given back, it is read again."""
        again = self.policy is not None

        def as_loaded() -> Backbone:
            return self._reader.again(policy.layout)

        if self.sharded:
            return open_sharded(self.reference, policy, as_loaded)
        if not again:
            return self.reference.attach(policy)
        assert isinstance(self.reference, MadeAgain)
        return self.reference.again(policy, as_loaded)
