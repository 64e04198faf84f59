"""Checks the counts and sizes of a command before it reads anything."""

from lit_safe.errors.message import SettingError


def check_sizes(**sizes: int) -> None:
    """Check that every size is at least 1.

    Raises:
        SettingError: With the name and the value of the first one that is not.
    """
    for name, size in sizes.items():
        if size < 1:
            raise SettingError(f"{name} must be >= 1, got {size}")
