"""Finds the packages beside ``lit_safe``, in a checkout and in an installed wheel.

YAML files name classes of ``models``, ``data`` and ``ops`` by path. In a checkout these folders are beside
``lit_safe``. A wheel has them in ``lit_safe/_parts``, because their names are too common for the top level of
site-packages. :func:`add_to_path` makes the same class paths work in both.
"""

import os
import sys
from pathlib import Path

PACKAGES = ("models", "data", "ops")
"""Packages, besides ``lit_safe``, with which class paths in YAML begin."""

_PACKAGE = Path(__file__).resolve().parent


def root() -> Path:
    """The folder that holds ``models``, ``data``, ``ops`` and ``configs``.

    Raises:
        FileNotFoundError: If this is neither a checkout nor a complete wheel.
    """
    for folder in (_PACKAGE / "_parts", _PACKAGE.parent):
        if (folder / "configs" / "base.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"{_PACKAGE} is incomplete (no models, data, ops, configs): `pip install --force-reinstall lit-safe` repairs it"
    )


def add_to_path() -> list[str]:
    """Make our packages importable, then those of the working directory.

    Returns:
        One sentence for each package in the working directory that one of ours hides.
    """
    ours, here = str(root()), str(Path.cwd())
    others = [folder for folder in sys.path if Path(folder or os.curdir).resolve() not in (Path(ours), Path(here))]
    sys.path[:] = [ours, here, *others] if here != ours else [ours, *others]
    return [] if here == ours else [_hidden(name) for name in PACKAGES if _is_python(Path(here, name))]


def find_config(name: str) -> str:
    """Resolve the path of a YAML file: the file with this name, else the shipped file.

    Args:
        name: A path. ``configs/base.yaml`` is the shipped file if the working directory has no such file.
    """
    path = Path(name)
    if path.parts[:1] != ("configs",) or path.suffix not in (".yaml", ".yml") or path.exists():
        return name
    shipped = root() / path
    return str(shipped) if shipped.is_file() else name


def shipped_configs() -> list[str]:
    """Paths of all shipped YAML files as a user types them: ``configs/base.yaml``, ..."""
    top = root()
    return sorted(path.relative_to(top).as_posix() for path in (top / "configs").rglob("*.yaml"))


def _is_python(path: Path) -> bool:
    """Whether ``import`` would find a package or module at this path. Folders with only data files do not count."""
    return path.with_suffix(".py").is_file() or (path.is_dir() and any(path.glob("*.py")))


def _hidden(name: str) -> str:
    return (
        f"the Python package {name!r} in the working directory is hidden, because lit_safe has a part of this name. "
        "Rename yours to use it in a class path"
    )
