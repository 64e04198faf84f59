"""The shape of the multiplier: one number, or a list with one for each of several constraints."""

from collections.abc import Sequence

from torch import Tensor


def check_shape(multiplier: Tensor, constraints: Sequence[str]) -> None:
    """Check that there is one multiplier for each constraint.

    Raises:
        ValueError: If the shape is not [] for one constraint and [C] for C > 1. The message names the constraints.
    """
    shape = [] if len(constraints) == 1 else [len(constraints)]
    if list(multiplier.shape) != shape:
        raise ValueError(
            f"model.multiplier has shape {list(multiplier.shape)}, but the data have {len(constraints)} "
            f"constraints ({', '.join(constraints)}): give {'a list of numbers' if shape else 'one number'}"
            f"{f', {shape[0]} of them' if shape else ''}"
        )
