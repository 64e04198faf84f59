"""The stages of a pipeline as its YAML file describes them, and the checks before anything runs."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_safe.errors.message import SettingError
from lit_safe.errors.names import suggestion

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
OUTPUT = "export"
"""Name of the folder inside a stage's folder that holds its model."""
RESERVED = ("settings", "compare")
"""Names of the pipeline's own folders."""
Plain = str | int | float | bool | dict | list | None
"""A value of YAML. With ``Any``, the parser would build the classes that an option names."""
MARK = "stage:"
"""``stage:NAME`` is replaced by the folder of that stage's model, ``stage:NAME/FILE`` by a file of its folder."""
COMMANDS = (
    "fit",
    "annotate",
    "fit_scorer",
    "reach",
    "sample",
    "evaluate",
    "refusals",
    "certify",
    "safe_patch",
    "doctor",
)
"""Commands that a stage can run."""


@dataclass(frozen=True)
class Merge:
    """A stage that merges the models of earlier stages, as the command ``merge`` does.

    Args:
        of: Names of the stages to merge.
        weight: Share of the second of two models, from 0 to 1, or one number for each. With null they count equally.
        method: ``linear``, ``ties``, ``dare`` or ``dare_ties``.
        base: Stage from which the merged ones were trained. ``linear`` needs none.
        density: Share of the changes that ``ties`` and ``dare`` keep, in (0, 1].
        seed: Of the random choice of ``dare``.
    """

    of: list[str]
    weight: float | list[float] | None = None
    method: str = "linear"
    base: str | None = None
    density: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class Stage:
    """One stage: an ordinary ``fit``, another command, or a merge of earlier stages.

    Args:
        name: Its name. It is also the name of its folder in the pipeline's folder.
        config: YAML files of the command, as after ``-c``.
        options: Options of the command: ``{model.optimizer.lr: 1.0e-4}`` is ``--model.optimizer.lr 1.0e-4``.
        model: Stage whose model the policy starts from. With null it is the one that the YAML files name.
        reference: Stage whose model is the reference. With null it is the one that the YAML files name; by default, the
            policy as it starts.
        merge: Merge earlier stages. Such a stage has none of the other settings.
        command: The command: ``fit``, or for example ``annotate``. Only ``fit`` gives a model.
    """

    name: str
    config: list[str] = field(default_factory=list)
    options: dict[str, Plain] = field(default_factory=dict)
    model: str | None = None
    reference: str | None = None
    merge: Merge | None = None
    command: str = "fit"

    @property
    def gives_model(self) -> bool:
        """Whether later stages can start from its model."""
        return self.command == "fit" or self.merge is not None

    @property
    def needs(self) -> list[str]:
        """Names of the stages that are named by a key of their own."""
        merged = [] if self.merge is None else [*self.merge.of, self.merge.base]
        return [name for name in (self.model, self.reference, *merged) if name is not None]

    @property
    def words(self) -> list[str]:
        """The words of the command, before earlier stages are put in."""
        files = [word for file in self.config for word in ("-c", file)]
        return [self.command, *files, *(f"--{key}={_as_word(value)}" for key, value in self.options.items())]


def check(stages: Sequence[Stage]) -> None:
    """Check names, and that each stage uses only earlier ones.

    Raises:
        SettingError: With the stage and the key that is wrong.
    """
    if not stages:
        raise SettingError("stages is empty: name at least one stage, with name and config")
    earlier: list[str] = []
    models: list[str] = []
    for stage in stages:
        if not NAME.fullmatch(stage.name) or stage.name in RESERVED:
            raise SettingError(
                f"stage {stage.name!r}: a name consists of letters, digits, - and _, and is none of "
                f"{', '.join(RESERVED)}"
            )
        if stage.name in earlier:
            raise SettingError(f"two stages are named {stage.name}: give each its own name")
        for name in stage.needs:
            if name not in earlier:
                raise SettingError(f"stage {stage.name}: {_no_stage(name, earlier)}")
            if name not in models:
                raise SettingError(f"stage {stage.name}: stage {name} trains no model, but only writes files")
        if stage.command not in COMMANDS:
            raise SettingError(
                f"stage {stage.name}: a stage cannot run {stage.command!r}: name one of {', '.join(COMMANDS)}"
            )
        if stage.merge is not None:
            _check_merge(stage, stage.merge)
        elif not stage.config:
            raise SettingError(f"stage {stage.name}: it has neither config (YAML files of its command) nor merge")
        earlier.append(stage.name)
        models += [stage.name] if stage.gives_model else []


def output(folder: Path, name: str) -> Path:
    """The folder of a stage's model."""
    return folder / name / OUTPUT


def put_in(value: Any, folder: Path, earlier: Sequence[str], own: str = "") -> Any:
    """Settings with each ``stage:NAME`` and ``stage:NAME/FILE`` replaced by a path.

    Args:
        value: Settings.
        folder: The pipeline's folder.
        earlier: Names of earlier stages.
        own: Name of the stage itself, which writes files into its folder.

    Raises:
        ValueError: If there is no earlier stage of this name.
    """
    if isinstance(value, dict):
        return {key: put_in(part, folder, earlier, own) for key, part in value.items()}
    if isinstance(value, list):
        return [put_in(part, folder, earlier, own) for part in value]
    if not isinstance(value, str) or not value.startswith(MARK):
        return value
    name, _, file = value.removeprefix(MARK).partition("/")
    if name not in earlier and not (file and name == own):
        raise ValueError(_no_stage(name, earlier))
    return str(folder / name / file if file else output(folder, name))


def _check_merge(stage: Stage, merge: Merge) -> None:
    given = [key for key in ("config", "options", "model", "reference") if getattr(stage, key)]
    if given:
        raise SettingError(f"stage {stage.name}: a merge trains nothing, so {given[0]} has no effect: remove it")
    if len(merge.of) < 2:
        raise SettingError(f"stage {stage.name}: merge.of must name at least two stages, got {merge.of}")


def _no_stage(name: str, earlier: Sequence[str]) -> str:
    known = suggestion(name, list(earlier), f"earlier: {', '.join(earlier)}") if earlier else "it is the first stage"
    return f"there is no earlier stage {name!r} ({known})"


def _as_word(value: Any) -> str:
    """A value as it is typed after an option."""
    return value if isinstance(value, str) else json.dumps(value)
