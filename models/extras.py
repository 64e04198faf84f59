"""Optional packages. Each belongs to an extra of the distribution."""

import importlib
from typing import Any


def require(package: str, *, extra: str, reason: str) -> Any:
    """Import an optional package.

    Args:
        package: Import name of the package.
        extra: The extra of lit-safe that installs it.
        reason: The feature that needs it, for the message.

    Raises:
        ModuleNotFoundError: It is not installed. The message gives the install command.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package.partition(".")[0]:
            raise  # the package is installed, but one of its own dependencies is missing
        name = package.partition(".")[0].replace("sklearn", "scikit-learn")
        raise ModuleNotFoundError(f"{reason} needs {name}: pip install 'lit-safe[{extra}]'", name=error.name) from None
