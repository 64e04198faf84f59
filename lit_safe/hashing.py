"""Random numbers as hashes: each draw depends only on its name (purpose, seed, ids), never on earlier draws."""

import hashlib

import torch
from torch import Tensor


def hash64(*parts: object) -> int:
    """A signed 63-bit hash of ``parts`` by their text, the same in all processes, machines and Python versions."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()) >> 1


def uniform(*parts: object) -> float:
    """A hash of ``parts`` as a number in [0, 1)."""
    return (hash64(*parts) >> 10) / float(1 << 53)


def uniforms(count: int, *parts: object) -> Tensor:
    """[count] float64 numbers in [0, 1), a hash of ``parts``. A larger ``count`` only appends further numbers."""
    generator = torch.Generator().manual_seed(hash64(*parts))
    return torch.rand(count, dtype=torch.float64, generator=generator)
