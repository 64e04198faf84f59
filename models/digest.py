"""Hashes that identify a model's computation: equal only for bit-identical weights."""

import hashlib
import json
from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

from lit_safe.sharded import whole
from models.backbone import Backbone
from models.trunk import parameters_above

NOT_COMPUTED_WITH = ("_name_or_path", "transformers_version", "_attn_implementation")


def digest(reference: Backbone, trainable: Collection[nn.Parameter] = ()) -> str:
    """SHA-256 of the weights, buffers and configuration of a model in use as the reference.

    Args:
        reference: The opened reference, with the types and the device of its use.
        trainable: Parameters that the policy trains. They are left out; in the reference, they are an adapter that is
            off.
    """
    off = {id(parameter) for parameter in trainable}
    still = [(name, weight) for name, weight in reference.named_parameters() if id(weight) not in off]
    return _hash(reference, [*still, *reference.named_buffers()])


def trunk_digest(policy: Backbone) -> str:
    """SHA-256 of everything that the trunk states of ``policy`` depend on, and of nothing above its trunk.

    Raises:
        ValueError: If it has no trunk.
    """
    if policy.trunk is None:
        raise ValueError("the policy has no frozen layers at the bottom")
    above = parameters_above(policy.causal_lm, policy.trunk.depth)
    below = [(name, weight) for name, weight in policy.named_parameters() if weight not in above]
    found = _hash(policy, [*below, *policy.named_buffers()])
    return hashlib.sha256(f"{found} {policy.trunk.depth} layers".encode()).hexdigest()


def _hash(model: Backbone, tensors: Iterable[tuple[str, Tensor]]) -> str:
    found = hashlib.sha256()
    config = model.causal_lm.config.to_dict()
    settings = {key: value for key, value in config.items() if key not in NOT_COMPUTED_WITH}
    found.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in tensors:
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        plain = whole(tensor.detach()).contiguous().to("cpu", copy=True)  # numpy would pin memory that is given back
        found.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def fingerprint(model: nn.Module) -> str:
    """A hash of a model's parameters, from at most 1024 numbers of each tensor."""
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        sample = parameter.detach().reshape(-1)[:: max(1, parameter.numel() // 1024)][:1024].contiguous()
        found.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        found.update(sample.cpu().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:32]
