"""What a pipeline's folder remembers: the settings of every stage, and which stages are done."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_safe.errors.message import SettingError
from lit_safe.runs.move_aside import MARKS

FILE = "stages.json"
SETTINGS = "settings"
SHOWN = 80  # characters of a value in a message


class Record:
    """``stages.json`` in the pipeline's folder. Every change is on the disk before the next step begins.

    Args:
        folder: The pipeline's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stages: dict[str, dict[str, Any]] = {}

    def open(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        """Begin a pipeline in a new folder, or continue the one that the folder holds.

        Stages may be added anywhere. Those of an earlier call keep their order and their settings.

        Args:
            settings: The complete settings of each stage, in order.

        Raises:
            SettingError: If the folder holds a run or a pipeline with other settings. Names the first difference.
        """
        path = self.folder / FILE
        if path.exists():
            self._stages = _read(path)
            self._compare(settings)
        elif any((self.folder / mark).exists() for mark in MARKS):
            raise SettingError(f"{self.folder} is the folder of a run: name another one with --folder")
        for name, values in settings.items():
            if name not in self._stages:
                _write(self.settings(name), yaml.safe_dump(dict(values), sort_keys=False))
        self._stages = {name: self._stages.get(name, {}) for name in settings}
        self._save()

    def settings(self, name: str) -> Path:
        """The file with a stage's settings, which ``fit -c`` reads."""
        return self.folder / SETTINGS / f"{name}.yaml"

    def is_done(self, name: str, step: str) -> bool:
        """Whether a step of a stage was completed."""
        return bool(self._stages[name].get(step))

    def add(self, name: str, step: str, seconds: float, *, done: bool) -> None:
        """Add the time that a step took, and whether it is complete."""
        stage = self._stages[name]
        stage["seconds"] = round(stage.get("seconds", 0.0) + seconds, 1)
        if done:
            stage[step] = True
        self._save()

    def seconds(self, name: str) -> float:
        """Time that a stage has taken over all calls, without those that were killed."""
        return float(self._stages[name].get("seconds", 0.0))

    def _compare(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        before = list(self._stages)
        if gone := [name for name in before if name not in settings]:
            raise SettingError(f"{self.folder} has the stage {gone[0]}, and this pipeline has none: {ADVICE}")
        kept = [name for name in settings if name in self._stages]
        for old, new in zip(before, kept, strict=True):
            if old != new:
                raise SettingError(f"{self.folder} has the stage {old} before {new}, and now it is after: {ADVICE}")
        for name in before:
            stored = yaml.safe_load(self.settings(name).read_text(encoding="utf-8"))
            for key, old, new in differences(stored, json.loads(json.dumps(settings[name]))):
                raise SettingError(
                    f"{self.folder} holds another pipeline: stage {name} had {key} {_short(old)}, now {_short(new)}: "
                    f"{ADVICE}"
                )

    def _save(self) -> None:
        _write(self.folder / FILE, json.dumps({"stages": self._stages}, indent=2) + "\n")


ADVICE = "use the earlier settings, or name another folder with --folder"


def differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Values in which two nested settings differ, as (dotted key, old, new). A missing value is None."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys([*old, *new]):
            yield from differences(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
    elif _are_lists(old, new) and len(old) == len(new):
        for at, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, f"{key}.{at}")
    elif old != new:
        yield key, old, new


def _are_lists(*values: Any) -> bool:
    return all(isinstance(value, Sequence) and not isinstance(value, str) for value in values)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["stages"]
        return found
    except (ValueError, KeyError, TypeError) as error:
        raise SettingError(f"{path} is damaged ({error}): delete its folder, or name another with --folder") from error


def _write(path: Path, text: str) -> None:
    """Replace a file, completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.tmp")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
