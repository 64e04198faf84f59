"""The description of a policy and its reference in reports."""

from __future__ import annotations

from lit_safe.types import ModelFacts
from models.backbone import Backbone
from models.quantised import count_of
from models.reference import NoReference, Reference
from models.sources import ModelSource


def model_facts(policy: Backbone, source: ModelSource, reference: Reference) -> ModelFacts:
    """The facts about a loaded pair. Numbers of parameters are those of whole models."""
    description = source.describe()
    parameters = list(policy.parameters())
    return ModelFacts(
        source=str(description),
        reference=reference.describe(),
        parameters=sum(map(count_of, parameters)),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        dtype=str(parameters[0].dtype).removeprefix("torch."),
        backend=policy.backend,
        licence=description.licence,
        own_reference=getattr(reference, "own", True),
        has_reference=not isinstance(reference, NoReference),
    )
