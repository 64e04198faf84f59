"""How the operations and the memory of a step grow with each of its sizes: not faster than their arithmetic.

Operations and bytes are counted, so the exponents are the same on every machine. ``tests.benchmarks.growth`` times
them.
"""

from contextlib import nullcontext

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.models.growth import TINY, angles, exponent, loaded, operations, step

BASE = {"prompt": 24, "response": 24, "pairs": 1, "vocabulary": 256}


def counted(size, layout):
    """Operations of a step."""
    pair = loaded(TINY, size["vocabulary"], layout, "eager")
    if layout == "shared":
        step(pair, size, nullcontext())  # a length that is new takes a pass more, for its masks
    counter = FlopCounterMode(display=False)
    step(pair, size, counter)  # the counter knows no fused attention of a CPU
    return counter.get_total_flops()


def held(size, layout):
    """Bytes that autograd keeps for the backward pass of a step, without the weights."""
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor.detach()  # an output that is given back holds its own graph forever

    pair = loaded(TINY, size["vocabulary"], layout, "sdpa")
    step(pair, size, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor))
    weights = {p.untyped_storage()._cdata for p in pair.parameters()}
    return sum(storage.nbytes() for key, storage in kept.items() if key not in weights)


@pytest.mark.parametrize("layout", ["padded", "shared"])
def test_a_step_counts_the_operations_that_its_sizes_need(layout):
    for name in BASE:
        size = {**BASE, name: BASE[name] * 3}
        assert counted(size, layout) - operations(TINY, size, layout) in (0, angles(TINY, size, layout))


@pytest.mark.parametrize("layout", ["padded", "shared"])
@pytest.mark.parametrize("name", BASE)
def test_no_size_grows_faster_than_its_arithmetic(name, layout):
    slope, error = exponent(BASE, name, lambda size: counted(size, layout))
    allowed, _ = exponent(BASE, name, lambda size: operations(TINY, size, layout))
    assert slope <= allowed + 1e-9
    assert error < 0.3
    bytes_slope, _ = exponent(BASE, name, lambda size: held(size, layout))
    # shared rows have a mask of S² numbers, padded ones have none
    assert bytes_slope <= 1 + (0.05 if layout == "shared" else 1e-9)
