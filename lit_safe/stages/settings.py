"""The complete settings of every stage, found by the parser of ``fit`` before the first stage runs."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lit_safe.cli import parser_of_commands
from lit_safe.config_files import OF_FIT, with_shipped_files
from lit_safe.errors.message import SettingError, UsageExit
from lit_safe.errors.parser import SafeParser
from lit_safe.stages.pipeline import Stage, output, put_in

Settings = dict[str, Any]

SOURCE = "models.sources.HuggingFace"
KEPT = ("attn_implementation",)
"""Settings of a ``HuggingFace`` source that stay when an earlier stage's model takes its place.

``dtype`` does not stay: a model that trained in fp32 is exported in fp32, and bf16 would round its update away.
"""
OTHER_MODEL = "models.reference.Checkpoint"


def resolved(stages: Sequence[Stage], folder: Path) -> dict[str, Settings]:
    """The settings of each stage by its name, with the folders of earlier stages put in.

    Args:
        stages: Checked stages.
        folder: The pipeline's folder.

    Raises:
        UsageExit: If an option is unknown or a value is wrong. The message names the stage.
        SettingError: If a stage uses the output of another one in a way that its model does not allow.
    """
    parser = parser_of_commands()
    found: dict[str, Settings] = {}
    for stage in stages:
        if stage.merge is not None:
            found[stage.name] = asdict(stage.merge)
            continue
        settings = _parsed(parser, stage)
        if "trainer" in settings:
            settings["trainer"]["default_root_dir"] = str(folder / stage.name)
        try:
            settings = put_in(settings, folder, list(found), stage.name)
        except ValueError as error:
            raise SettingError(f"stage {stage.name}: {error}") from None
        _connect(settings, stage, folder)
        found[stage.name] = settings
    return found


def _parsed(parser: SafeParser, stage: Stage) -> Settings:
    try:
        config = parser.parse_args(with_shipped_files(stage.words))
    except SystemExit as stop:  # the parser has printed the mistake
        raise UsageExit(f"stage {stage.name}: its settings cannot be used; the message above says why") from stop
    settings: Settings = json.loads(parser.dump(config, skip_unset=False, format="json"))[stage.command]
    for name in OF_FIT if stage.command == "fit" else ():
        settings.pop(name, None)
    return settings


def _connect(settings: Settings, stage: Stage, folder: Path) -> None:
    """Make the stage's policy and reference those of earlier stages."""
    if stage.model is None and stage.reference is None:
        return
    pair = settings.get("model", {}).get("init_args", {}).get("pair")
    if not isinstance(pair, dict) or "source" not in pair.get("init_args", {}):
        raise SettingError(
            f"stage {stage.name}: its settings have no policy with a source, which model and reference would set: "
            f"write stage:{stage.model or stage.reference} where they name a folder"
        )
    arguments = pair["init_args"]
    if stage.model is not None:
        arguments["source"] = _source(arguments["source"], output(folder, stage.model))
    if stage.reference is None:
        return
    if stage.reference != stage.model:
        source = _source(arguments["source"], output(folder, stage.reference))
        arguments["reference"] = {"class_path": OTHER_MODEL, "init_args": {"source": source}}
    elif (arguments.get("reference") or {}).get("class_path") == OTHER_MODEL:
        arguments["reference"] = None  # the policy as it starts, which needs no second file


def _source(before: Settings, folder: Path) -> Settings:
    same = before["class_path"].startswith("models.sources.") and before["class_path"].endswith(".HuggingFace")
    kept = {key: before.get("init_args", {}).get(key) for key in KEPT} if same else {}
    arguments = {"name_or_path": str(folder), **{key: value for key, value in kept.items() if value is not None}}
    return {"class_path": SOURCE, "init_args": arguments}
