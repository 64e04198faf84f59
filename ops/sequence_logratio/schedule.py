"""How the streaming kernel divides its work: tiles, jobs, and the programs that take them. Plain integers, no Triton.

A tile is a block of rows times a block of columns of the vocabulary. A job is some consecutive tiles of one block of
rows; it writes three numbers for each of its rows. Jobs of a group of row blocks come before those of the next group.
Within a group, jobs of the same columns are neighbours. Programs that run at the same time therefore share the rows of
a group and a few parts of the vocabulary, which stay in the L2 cache.

Letters: T positions, V vocabulary.
"""

from typing import NamedTuple

LONGEST_JOB = 16  # tiles; longer ones save little
SLACK = 0.01  # of the shortest time: what a longer job may cost, because it writes fewer numbers


class Tiling(NamedTuple):
    """Launch configuration of the streaming kernel."""

    rows: int
    columns: int
    width: int
    warps: int
    stages: int
    group: int = 0  # row blocks that go through the vocabulary together; 0: all of them


# untuned: chosen from ptxas output for sm_90 (no spills, see evidence.py), not from timings. Both tiles load the same
# number of bytes per operation. The wide one reads shared memory less often, but with a bias it does not fit the
# registers (2.6 KB of stack per thread). A thread of the tall one holds half as many columns and so half as many biases
# Groups of as many rows: 12 blocks of 128 x 4096 bf16 are 12.6 MB, and 132 programs are 12 blocks x 11 jobs
TILINGS = {"bare": Tiling(128, 256, 64, 8, 3, group=12), "formed": Tiling(256, 128, 64, 8, 3, group=6)}


class Schedule(NamedTuple):
    """A division of [T, V] into jobs, and the number of programs that take them in turn."""

    row_blocks: int
    column_tiles: int
    tiles: int  # of a job
    programs: int

    @property
    def splits(self) -> int:
        """Jobs of one block of rows."""
        return cdiv(self.column_tiles, self.tiles)

    @property
    def jobs(self) -> int:
        """All jobs."""
        return self.row_blocks * self.splits

    @property
    def longest(self) -> int:
        """Tiles of the program that has most of them, if all jobs are full."""
        return cdiv(self.jobs, self.programs) * self.tiles

    @property
    def even(self) -> float:
        """Mean number of tiles of a program, as a share of the largest. 1: no multiprocessor waits for another."""
        return self.row_blocks * self.column_tiles / self.programs / self.longest


def schedule(tokens: int, vocabulary: int, tile: Tiling, programs: int) -> Schedule:
    """Jobs of the length with which the last program ends first; the longest length within ``SLACK`` of that.

    Example:
        >>> found = schedule(2048, 128256, Tiling(128, 256, 64, 8, 3), 132)  # 16 blocks of rows, 501 tiles
        >>> found.tiles, found.splits, found.longest, round(found.even, 3)
        (1, 501, 61, 0.996)
    """
    row_blocks, column_tiles = cdiv(tokens, tile.rows), cdiv(vocabulary, tile.columns)
    lengths = range(1, min(LONGEST_JOB, column_tiles) + 1)
    candidates = [Schedule(row_blocks, column_tiles, length, programs) for length in lengths]
    shortest = min(candidate.longest for candidate in candidates)
    return [candidate for candidate in candidates if candidate.longest <= (1 + SLACK) * shortest][-1]


def cdiv(whole: int, part: int) -> int:
    """The quotient, rounded up."""
    return -(-whole // part)
