"""Reads a policy as it is before training, once at the start and again for a reference that was given back."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import torch

from lit_safe.precision import TrainableDtype, hold
from models.adaptation import Adaptation
from models.backbone import Backbone, no_dropout
from models.digest import fingerprint
from models.layouts import Layout
from models.sharding.plan import ShardingPlan
from models.sharding.reading import read_sharded
from models.sources import ModelSource

log = logging.getLogger(__name__)


@dataclass
class PolicyReader:
    """What a policy is made of. The arguments are those of ``models.pair.PolicyReference``."""

    source: ModelSource
    adaptation: Adaptation
    backend: str
    disable_dropout: bool
    trainable_dtype: TrainableDtype
    base: str = field(default="", init=False)
    """Fingerprint of the weights that ``source`` held at the first reading."""
    plan: ShardingPlan | None = field(default=None, init=False)
    """The ranks over which the weights are divided; None if this process holds them all."""
    first: str = field(default="", init=False)
    """Fingerprint of the policy's weights after the first reading, with those that the adaptation has added."""

    def read(self, layout: Layout) -> Backbone:
        """The policy, with the parameters that train marked and held in their type."""
        policy, self.base, self.first = self._read(layout)
        return policy

    def again(self, layout: Layout) -> Backbone:
        """The same policy, as it was when it was read first.

        Raises:
            ValueError: If its source holds other weights by now.
        """
        log.info("the reference is read again from %s", self.source.describe())
        with torch.random.fork_rng(devices=[]):
            policy, base, first = self._read(layout)
        if (base, first) != (self.base, self.first):
            raise ValueError(
                f"the reference is read again, and {self.source.describe()} holds other weights than when the run "
                f"began (fingerprint {base}, then {self.base}): put the old weights back and resume"
            )
        return policy

    def _read(self, layout: Layout) -> tuple[Backbone, str, str]:
        if self.plan is not None:
            return read_sharded(
                self.source.load_model,
                self.adaptation,
                self.plan,
                backend=self.backend,
                layout=layout,
                disable_dropout=self.disable_dropout,
                trainable_dtype=self.trainable_dtype,
            )
        model = self.source.load_model()
        if self.disable_dropout:
            no_dropout(model)
        base = fingerprint(model)
        policy = Backbone(self.adaptation.apply(model), backend=self.backend, layout=layout)
        hold(policy.parameters(), self.trainable_dtype)
        return policy, base, fingerprint(policy)
