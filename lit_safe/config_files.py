"""Lets command lines and YAML files name shipped YAML files from any working directory."""

from collections.abc import Sequence
from typing import Any

from jsonargparse import get_loader, set_loader
from yaml import YAMLError

from lit_safe.installation import find_config


def with_shipped_files(words: Sequence[str]) -> list[str]:
    """Replace each word ``configs/...yaml`` or ``--option=configs/...yaml`` by the file that it means."""
    found = []
    for word in words:
        option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
        found.append(option + equals + find_config(value))
    return found


def load_yaml(text: str) -> Any:
    """Parse YAML as jsonargparse does; a value ``configs/...yaml`` is found like a word of the command line."""
    return _found(_load(text))


def read_yaml_with_shipped_files() -> None:
    """Make jsonargparse find shipped files that YAML files name."""
    set_loader("yaml", load_yaml, (YAMLError,))


def _found(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _found(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_found(item) for item in value]
    return find_config(value) if isinstance(value, str) else value


_load = get_loader("yaml")
