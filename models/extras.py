"""Packages that only some users need: each belongs to an extra of the distribution."""

import importlib
from typing import Any


def require(package: str, *, extra: str, reason: str) -> Any:
    """Import an optional package.

    Args:
        package: Its import name.
        extra: The extra of lit-safe that installs it.
        reason: What needs it, for the message.

    Raises:
        ModuleNotFoundError: It is not installed; names the command that installs it.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package.partition(".")[0]:
            raise  # the package is there and lacks something of its own
        name = package.partition(".")[0].replace("sklearn", "scikit-learn")
        raise ModuleNotFoundError(f"{reason} needs {name}: pip install 'lit-safe[{extra}]'", name=error.name) from None
