"""What a source that is made of another one takes over from it."""

from typing import Protocol


class _Source(Protocol):
    @property
    def licence(self) -> str: ...


class Wrapped:
    """Base of the sources that change the rows of another source or of prompts: the licence and the use are the same.

    Args:
        inner: The source that is read.
    """

    def __init__(self, inner: _Source) -> None:
        self._inner = inner

    @property
    def licence(self) -> str:
        return self._inner.licence

    @property
    def evaluation_only(self) -> bool:
        """Whether training must refuse these rows."""
        return getattr(self._inner, "evaluation_only", False)
