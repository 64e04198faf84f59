"""Resolves names of shipped YAML files, in command lines and YAML files, from any working directory."""

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

from jsonargparse import get_loader, set_loader
from yaml import YAMLError

from lit_safe.errors.places import refuse_repeated_keys
from lit_safe.installation import find_config

OF_FIT = ("ckpt_path", "weights_only")
"""Options of ``fit`` that say where a process resumes. They are not settings of the run."""


def with_shipped_files(words: Sequence[str]) -> list[str]:
    """Replace each word ``configs/...yaml`` or ``--option=configs/...yaml`` by the path of the file."""
    found = []
    for word in words:
        option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
        found.append(option + equals + find_config(value))
    return found


def load_yaml(text: str, left_aside: Collection[str] = ()) -> Any:
    """Parse YAML as jsonargparse does. Values ``configs/...yaml`` are resolved as on the command line.

    Args:
        text: A file, or a value typed on the command line.
        left_aside: Top-level keys of a run's ``config.yaml`` to leave out. The other keys of ``OF_FIT`` are left out if
            they are null.
    """
    if "\n" in text:
        refuse_repeated_keys(text)
    value = _found(_load(text))
    if not (isinstance(value, dict) and {"model", "trainer"} <= value.keys()):
        return value
    return {k: v for k, v in value.items() if k not in left_aside and (k not in OF_FIT or v is not None)}


def read_yaml_with_shipped_files(known: Collection[str] = OF_FIT) -> None:
    """Make jsonargparse find the shipped files to which YAML files refer.

    Args:
        known: Options that the command shares with ``fit``. The other options of ``fit`` are ignored in a run's
            ``config.yaml``, so that every command can read it.
    """
    set_loader("yaml", partial(load_yaml, left_aside=set(OF_FIT) - set(known)), (YAMLError,))


def _found(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _found(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_found(item) for item in value]
    return find_config(value) if isinstance(value, str) else value


_load = get_loader("yaml")
