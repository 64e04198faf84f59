"""Where the numbers of weights lie in a vector that holds all of them, of which each rank has an equal part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """The numbers of one weight that one rank holds; both slices are empty if it holds none."""

    shape: torch.Size
    """Of the weight."""
    inside: slice
    """Which numbers of the flattened weight."""
    held: slice
    """Where they lie in the rank's vector."""


def part_of(sizes: Sequence[int], shapes: Sequence[torch.Size], rank: int, length: int) -> list[Part]:
    """The part of each weight that ``rank`` holds.

    Args:
        sizes: Numbers of each weight, in the order of the vector.
        shapes: Shapes of the same weights.
        rank: Whose vector: it holds the numbers from ``rank * length`` on.
        length: Of a rank's vector. The last ranks' vectors may end with numbers that belong to no weight.
    """
    parts, start = [], 0
    first = rank * length
    for size, shape in zip(sizes, shapes, strict=True):
        low, high = max(start, first), min(start + size, first + length)
        empty = slice(0, 0)
        inside = slice(low - start, high - start) if low < high else empty
        held = slice(low - first, high - first) if low < high else empty
        parts.append(Part(shape, inside, held))
        start += size
    return parts


def combined(values: Sequence[Tensor], parts: Sequence[Part], like: Tensor) -> Tensor:
    """A rank's vector from whole tensors, in the device and type of ``like``. What belongs to no weight is 0."""
    found = torch.zeros_like(like)
    for value, part in zip(values, parts, strict=True):
        found[part.held] = value.reshape(-1)[part.inside].to(found)
    return found
