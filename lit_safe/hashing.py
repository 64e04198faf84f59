"""Randomness as a function of names: every draw is a hash of what it is for, never of what was drawn before it."""

import hashlib

import torch
from torch import Tensor


def hash64(*parts: object) -> int:
    """A signed 63-bit hash of ``parts`` by their text, stable over processes, machines and Python versions."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()) >> 1


def uniform(*parts: object) -> float:
    """A number in [0, 1) that is a hash of ``parts``."""
    return (hash64(*parts) >> 10) / float(1 << 53)


def uniforms(count: int, *parts: object) -> Tensor:
    """[count] float64 numbers in [0, 1), a function of ``parts``; a longer call begins with the shorter one's."""
    generator = torch.Generator().manual_seed(hash64(*parts))
    return torch.rand(count, dtype=torch.float64, generator=generator)
