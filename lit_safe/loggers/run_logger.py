"""What the run folder asks of a logger that can be continued exactly."""

from pathlib import Path
from typing import Protocol, runtime_checkable

Position = dict[str, int]
"""How much of each file of a logger there is, by path in the run folder: rows or bytes, as the logger counts."""


@runtime_checkable
class RunLogger(Protocol):
    """A logger that writes into a run folder and can be cut back to a position it once had.

    Nothing is written before ``open``: a folder of an earlier run must be out of the way first.
    """

    def place(self, folder: Path) -> None:
        """Take ``folder`` as the run folder, for callbacks that ask a logger where to write. Writes nothing."""

    def open(self, folder: Path) -> None:
        """Write into ``folder`` from here on, after what is there already."""

    def position(self) -> Position:
        """Put everything logged so far on disk, and say how much that is."""

    def cut_back(self, position: Position) -> None:
        """Forget all that was logged after ``position``. Called between ``open`` and the first record.

        Raises:
            ValueError: If less is there than ``position`` says.
        """

    def finalize(self, status: str) -> None:
        """Close the files, with everything logged so far in them."""
