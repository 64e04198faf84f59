"""The protocol of loggers that a resumed run continues exactly."""

from pathlib import Path
from typing import Protocol, runtime_checkable

Position = dict[str, int]
"""Length of each file of a logger, by path in the run folder: in rows or bytes, depending on the logger."""


@runtime_checkable
class RunLogger(Protocol):
    """A logger that writes into a run folder and can be cut back to an earlier position.

    Nothing is written before ``open``, because the folder of an earlier run must be moved first.
    """

    def place(self, folder: Path) -> None:
        """Use ``folder`` as the run folder, for callbacks that ask a logger where to write. Writes nothing."""

    def open(self, folder: Path) -> None:
        """Start writing into ``folder``, after its existing entries."""

    def position(self) -> Position:
        """Sync everything logged so far to disk, and return its length."""

    def cut_back(self, position: Position) -> None:
        """Remove everything logged after ``position``. Called after ``open``, before the first entry.

        Raises:
            ValueError: If the files are shorter than ``position``.
        """

    def finalize(self, status: str) -> None:
        """Write everything logged so far, and close the files."""
