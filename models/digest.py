"""Hashes that identify a model's computation: equal only for bit-identical weights."""

import hashlib
import json
from collections.abc import Collection

import torch
from torch import nn

from models.backbone import Backbone

NOT_COMPUTED_WITH = ("_name_or_path", "transformers_version", "_attn_implementation")


def digest(reference: Backbone, trainable: Collection[nn.Parameter] = ()) -> str:
    """SHA-256 of the weights, buffers and configuration of a model in use as the reference.

    Args:
        reference: The opened reference, with the types and the device of its use.
        trainable: Parameters that the policy trains. They are left out; in the reference, they are an adapter that is
            off.
    """
    found = hashlib.sha256()
    config = reference.causal_lm.config.to_dict()
    plain = {key: value for key, value in config.items() if key not in NOT_COMPUTED_WITH}
    found.update(json.dumps(plain, sort_keys=True, default=str).encode())
    off = {id(parameter) for parameter in trainable}
    still = [(name, weight) for name, weight in reference.named_parameters() if id(weight) not in off]
    for name, tensor in (*still, *reference.named_buffers()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def fingerprint(model: nn.Module) -> str:
    """A hash of a model's parameters, from at most 1024 numbers of each tensor."""
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        sample = parameter.detach().reshape(-1)[:: max(1, parameter.numel() // 1024)][:1024].contiguous()
        found.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        found.update(sample.cpu().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:32]
