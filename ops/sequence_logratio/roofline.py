"""Predicts the time of each benchmark shape on a GPU: python -m ops.sequence_logratio.roofline --help.

No prediction has been compared with a GPU yet; ``make gpu`` prints both. A part's time is the larger of the time of its
operations and that of its bytes. Assumptions: library products lose only the tiles that the last wave lacks; the
streaming kernel's products and the exponentials after them do not overlap; launches cost nothing.

Letters: T positions, D hidden width, V vocabulary, S columns of one slab.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ops.sequence_logratio import routes, slabs
from ops.sequence_logratio.bench_cases import FLOOR, SHAPES
from ops.sequence_logratio.cards import CARDS, Card
from ops.sequence_logratio.schedule import TILINGS, Schedule, Tiling, cdiv, schedule

OPERAND, FP32 = 2, 4  # bytes
# rows and columns of a library product's tiles; the library takes the one that fits best
LIBRARY_TILES = ((128, 256), (256, 128), (128, 192), (192, 128), (128, 128))
# assumed: share of a library product's rate that the main loop of a Triton kernel reaches on Hopper
STREAM_SHARE = 0.9
# of a logit in the streaming kernel: one exponential at 16 per cycle, 12 other instructions at 128 per cycle
EPILOGUE_CYCLES = 1 / 16 + 12 / 128
Work = Callable[[Card, int, int, int], dict[str, float]]  # seconds by part, from T, D and V
PARTS = {  # of each mode of the benchmark
    "full": ("forward", "backward", "reference"),
    "cached": ("forward", "backward"),
    "frozen": ("graded", "reference"),
    "frozen cached": ("graded",),
    "forward": ("forward",),
    "backward": ("backward",),
    "nograd": ("reference",),
}


class Prediction(NamedTuple):
    """Milliseconds of one mode at one shape."""

    peak: float  # the operations at the datasheet's peak
    floor: float  # the operations at the rate of a large library product
    moved: float  # inputs read once and outputs written once, at the rate of a large copy
    predicted: float
    parts: dict[str, float]

    @property
    def share(self) -> float:
        """Of the larger floor in the predicted time."""
        return max(self.floor, self.moved) / self.predicted


def predict(card: Card, mode: str, tokens: int, width: int, vocabulary: int) -> Prediction:
    """The prediction for bf16 and a head without bias or softcap.

    Args:
        card: Rates of the GPU.
        mode: A mode of the benchmark (``bench_cases.FLOOR``).
        tokens: Scored positions T.
        width: Hidden width D.
        vocabulary: Size V of the vocabulary.

    Example:
        >>> found = predict(CARDS["H200"], "nograd", 16384, 4096, 128256)
        >>> round(found.floor, 1), found.predicted > found.floor
        (21.8, True)
    """
    size = tokens, width, vocabulary
    parts = {
        f"{name}: {part}": 1e3 * seconds for name in PARTS[mode] for part, seconds in WORK[name](card, *size).items()
    }
    operations = FLOOR[mode] * tokens * width * vocabulary
    moved = sum(_least_bytes(name, *size) for name in PARTS[mode])
    return Prediction(
        peak=1e3 * operations / card.peak,
        floor=1e3 * operations / card.matmul,
        moved=1e3 * moved / card.copy,
        predicted=sum(parts.values()),
        parts=parts,
    )


def streamed(card: Card, plan: Schedule, tile: Tiling, tokens: int, width: int, vocabulary: int) -> dict[str, float]:
    """Seconds of the streaming kernel with this division of its work."""
    rate = card.matmul * STREAM_SHARE / card.multiprocessors
    loaded = (tile.rows + tile.columns) * width * OPERAND / (card.load / card.multiprocessors)
    product = max(2 * tile.rows * tile.columns * width / rate, loaded)
    rest = tile.rows * tile.columns * EPILOGUE_CYCLES / card.clock
    # a program takes one multiprocessor, so more programs than those run in turns
    tiles = cdiv(plan.jobs, min(plan.programs, card.multiprocessors)) * plan.tiles
    memory = streamed_bytes(card, plan, tile, tokens, width, vocabulary) / card.copy
    partial = 3 * FP32 * plan.splits * tokens / card.copy
    return {
        "tiles": max(tiles * product, memory - tiles * rest),
        "exponentials": tiles * rest,
        "merge": 2 * partial,
    }


def streamed_bytes(card: Card, plan: Schedule, tile: Tiling, tokens: int, width: int, vocabulary: int) -> float:
    """Bytes that the streaming kernel reads from memory.

    Each group of row blocks reads the head once. The rows of a group are read once if they fit into half of the L2;
    otherwise again for every tile that the running programs take at once.
    """
    group = min(tile.group or plan.row_blocks, plan.row_blocks)
    hidden, head = tokens * width * OPERAND, vocabulary * width * OPERAND
    at_once = max(1, card.multiprocessors // group)
    again = 1 if group * tile.rows * width * OPERAND <= card.l2 / 2 else cdiv(plan.column_tiles, at_once)
    return float(hidden * again + head * cdiv(plan.row_blocks, group))


def _stream(card: Card, tokens: int, width: int, vocabulary: int) -> dict[str, float]:
    tile = TILINGS["bare"]
    plan = schedule(tokens, vocabulary, tile, card.multiprocessors)
    return streamed(card, plan, tile, tokens, width, vocabulary)


def _merge(card: Card, tokens: int, width: int, vocabulary: int) -> dict[str, float]:
    """Of library products of slabs, whose logits a kernel reads once."""
    found = []
    for rows, columns, times in _blocks(tokens, width, vocabulary):
        found.append(
            {
                "logits": times * _product(card, rows, columns, width, FP32),
                "rows": FP32 * times * rows * columns / card.copy,
            }
        )
    return _total(found)


def _ungraded(card: Card, tokens: int, width: int, vocabulary: int) -> dict[str, float]:
    route = routes.by_table(card, tokens, width)
    parts = ROUTES[route](card, tokens, width, vocabulary)
    return {f"{route} {part}": seconds for part, seconds in parts.items()}


def _graded(card: Card, tokens: int, width: int, vocabulary: int) -> dict[str, float]:
    """Of a forward pass that also sums exp(z_v - max) W_v.

    A row's sums are rescaled where a slab raises its maximum: slab k of slabs in random order does so with probability
    1 / k.
    """
    found = []
    slabs_of_row = cdiv(vocabulary, slabs.block_shape("cuda", tokens, width, vocabulary)[1])
    raised = sum(1 / number for number in range(1, slabs_of_row + 1)) / slabs_of_row
    for rows, columns, times in _blocks(tokens, width, vocabulary):
        logits = times * rows * columns
        found.append(
            {
                "logits": times * _product(card, rows, columns, width, FP32),
                "exponentials": (FP32 + OPERAND) * logits / card.copy,
                "sums": times * _product(card, rows, width, columns, 2 * FP32),
                "decay": times * raised * 2 * FP32 * rows * width / card.copy,
            }
        )
    return _total(found)


def _backward(card: Card, tokens: int, width: int, vocabulary: int) -> dict[str, float]:
    found = []
    for rows, columns, times in _blocks(tokens, width, vocabulary):
        logits = times * rows * columns
        found.append(
            {
                "logits": times * _product(card, rows, columns, width, FP32),
                "residuals": (FP32 + OPERAND) * logits / card.copy,
                "hidden": times * _product(card, rows, width, columns, 2 * FP32),
                # one block writes the gradient itself; several add to a sum in fp32
                "head": times * _product(card, columns, width, rows, OPERAND if rows == tokens else 2 * FP32),
            }
        )
    return _total(found)


def _total(parts: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(part[name] for part in parts) for name in parts[0]}


def _blocks(tokens: int, width: int, vocabulary: int) -> Iterable[tuple[int, int, int]]:
    """(rows, columns, number) of the blocks of logits."""
    rows, columns = slabs.block_shape("cuda", tokens, width, vocabulary)
    heights, widths = (
        Counter(span.stop - span.start for span in slabs.spans(*sides))
        for sides in ((tokens, rows), (vocabulary, columns))
    )
    return [(height, wide, heights[height] * widths[wide]) for height in heights for wide in widths]


def _product(card: Card, rows: int, columns: int, inner: int, bytes_out: int) -> float:
    """Seconds of a library product of [rows, inner] and [inner, columns]."""
    tiles = []
    for high, wide in LIBRARY_TILES:
        waves = cdiv(cdiv(rows, high) * cdiv(columns, wide), card.multiprocessors)
        tiles.append(waves * card.multiprocessors * high * wide)
    operations = 2 * min(tiles) * inner
    moved = OPERAND * inner * (rows + columns) + bytes_out * rows * columns
    return max(operations / card.matmul, moved / card.copy)


def _least_bytes(part: str, tokens: int, width: int, vocabulary: int) -> float:
    inputs = OPERAND * width * (tokens + vocabulary)
    return inputs + {"backward": inputs, "graded": FP32 * tokens * width}.get(part, 0)


ROUTES: dict[routes.Route, Work] = {"stream": _stream, "merge": _merge}
WORK: dict[str, Work] = {"forward": _ungraded, "reference": _ungraded, "graded": _graded, "backward": _backward}


def main(arguments: list[str] | None = None) -> None:
    """Print a table, or JSON, for each shape and mode."""
    parser = argparse.ArgumentParser(prog="python -m ops.sequence_logratio.roofline", description=__doc__)
    shapes = [name for name, shape in SHAPES.items() if shape[4].itemsize == OPERAND]
    parser.add_argument("--card", choices=CARDS, default="H200")
    parser.add_argument("--shape", nargs="+", choices=shapes, default=shapes)
    parser.add_argument("--modes", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--parts", action="store_true", help="the time of every part as well")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    card = CARDS[options.card]
    found = {
        shape: {mode: predict(card, mode, *SHAPES[shape][:3]) for mode in options.modes} for shape in options.shape
    }
    if options.json:
        print(json.dumps({s: {m: p._asdict() | {"share": p.share} for m, p in of.items()} for s, of in found.items()}))
        return
    print(f"{options.card}: {card.peak / 1e12:.0f} TFLOP/s at its peak, {card.matmul / 1e12:.0f} of a large product")
    print(f"{'milliseconds':<18}{'at peak':>10}{'floor':>10}{'bytes':>10}{'predicted':>11}{'floor / predicted':>19}")
    for shape, modes in found.items():
        for mode, p in modes.items():
            numbers = f"{p.peak:>10.1f}{p.floor:>10.1f}{p.moved:>10.2f}{p.predicted:>11.1f}{p.share:>19.1%}"
            print(f"{shape + ' ' + mode:<18}{numbers}")
            for part, taken in p.parts.items() if options.parts else ():
                print(f"    {part:<44}{taken:>11.2f}")


if __name__ == "__main__":
    main()
