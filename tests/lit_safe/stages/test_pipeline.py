"""The order of a pipeline's steps, what a broken one repeats, and what a changed one is told."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_safe.commands.stages import stages as command
from lit_safe.errors.message import SettingError, UsageExit
from lit_safe.runs.run_lock import RunLock
from lit_safe.stages.pipeline import Merge, Stage, check, put_in
from lit_safe.stages.record import Record
from lit_safe.stages.run import run_stages
from lit_safe.stages.settings import resolved
from tests.lit_safe.typed_world import CONFIGS

BASE = ["configs/base.yaml"]
TRL = {"data": "configs/data/trl.yaml"}
SETTINGS = {"sft": {"x": 1}, "dpo": {"x": 2}, "both": {"of": ["sft", "dpo"]}}
PIPELINE = [
    Stage("sft", BASE, TRL),
    Stage("dpo", BASE, TRL, model="sft"),
    Stage("both", merge=Merge(["sft", "dpo"], 0.25)),
]


class Killed(BaseException):
    """The process ends here."""


class Commands:
    """In place of our commands: leaves the files that they leave, and is killed before or after one of them."""

    def __init__(self, folder: Path, kill: int | None = None, late: bool = False) -> None:
        self.folder, self.kill, self.late = folder, kill, late
        self.done: list[list[str]] = []

    def __call__(self, words: Sequence[str]) -> int:
        killed = self.kill == len(self.done)
        self.done.append(list(words))
        if killed and not self.late:
            raise Killed
        options = dict(pairwise(words))
        if words[0] == "fit":
            name = Path(options["-c"]).stem if "--ckpt_path" not in words else Path(options["-c"]).parent.name
            (self.folder / name / "checkpoints").mkdir(parents=True, exist_ok=True)
            (self.folder / name / "config.yaml").touch()
            torch.save({"state_dict": {}, "global_step": 3}, self.folder / name / "checkpoints/last.ckpt")
        else:
            Path(options["--out"]).mkdir(parents=True)
        if killed:
            raise Killed
        return 0


def started(folder: Path, run: Commands, stages: Sequence[Stage] = PIPELINE) -> int:
    record = Record(folder)
    record.open(SETTINGS)
    return run_stages(stages, record, SETTINGS, run)


WHOLE = [
    ["fit", "sft"],
    ["export", "sft"],
    ["fit", "dpo"],
    ["export", "dpo"],
    ["merge", "both"],
]


def short(words: Sequence[str]) -> list[str]:
    options = dict(pairwise(words))
    path = Path(options.get("--out", options.get("-c", "")))
    name = path.parent.name if path.parent.name != "settings" else path.stem
    return [words[0], name, *(["last"] if words[0] == "fit" and "--ckpt_path" in words else [])]


def test_each_stage_is_trained_then_written_in_order(tmp_path: Path) -> None:
    run = Commands(tmp_path)
    assert started(tmp_path, run) == 0
    assert [short(words) for words in run.done] == WHOLE
    again = Commands(tmp_path)
    assert started(tmp_path, again) == 0
    assert again.done == []


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kill", range(len(WHOLE)))
def test_a_kill_before_or_after_any_command_repeats_no_command_that_left_its_result(
    kill: int, late: bool, tmp_path: Path
) -> None:
    first = Commands(tmp_path, kill, late)
    with pytest.raises(Killed):
        started(tmp_path, first)
    second = Commands(tmp_path)
    assert started(tmp_path, second) == 0
    repeated = [short(words) for words in second.done]
    broken = WHOLE[kill]
    expected = WHOLE[kill:]
    if late:  # a model that is complete stays; a fit is asked to continue, which it does at its end
        expected = expected[1:] if broken[0] != "fit" else [[*broken, "last"], *expected[1:]]
    assert repeated == expected


def test_a_stage_that_fails_ends_the_pipeline_with_its_status(tmp_path: Path) -> None:
    assert started(tmp_path, lambda words: 143) == 143  # type: ignore[arg-type]  # stands for a process
    assert not Record(tmp_path).folder.joinpath("dpo").exists()


def test_a_score_models_own_folder_is_its_output(tmp_path: Path) -> None:
    (tmp_path / "sft/score_model").mkdir(parents=True)
    run = Commands(tmp_path)
    assert started(tmp_path, run) == 0
    assert ["export", "sft"] not in [short(words) for words in run.done]
    assert (tmp_path / "sft/export").resolve() == tmp_path / "sft/score_model"


def test_another_command_runs_once_with_its_own_settings(tmp_path: Path) -> None:
    run: list[Sequence[str]] = []
    labels = [Stage("sft", BASE, TRL, command="annotate")]

    def fails_once(words: Sequence[str]) -> int:
        run.append(words)
        return 3 if len(run) == 1 else 0

    for status in (3, 0, 0):
        assert started(tmp_path, fails_once, labels) == status  # type: ignore[arg-type]  # stands for a process
    assert run == [["annotate", "-c", str(tmp_path / "settings/sft.yaml")]] * 2


def test_a_changed_pipeline_is_refused_and_a_longer_one_continues(tmp_path: Path) -> None:
    Record(tmp_path).open(SETTINGS)
    Record(tmp_path).open(SETTINGS)
    changed = {**SETTINGS, "dpo": {"x": 3}}
    with pytest.raises(SettingError, match=r"stage dpo had x 2, now 3: use the earlier settings, or .* --folder"):
        Record(tmp_path).open(changed)
    with pytest.raises(SettingError, match="has the stage dpo, and this pipeline has none"):
        Record(tmp_path).open({"sft": SETTINGS["sft"], "both": SETTINGS["both"]})
    with pytest.raises(SettingError, match="the stage sft before dpo, and now it is after"):
        Record(tmp_path).open({name: SETTINGS[name] for name in ("dpo", "sft", "both")})
    longer = {"first": {}, **SETTINGS, "more": {"x": [1, {"y": None}]}}
    Record(tmp_path).open(longer)
    Record(tmp_path).open(longer)
    with pytest.raises(SettingError, match=r"stage more had x\.1\.y None, now 0"):
        Record(tmp_path).open({**longer, "more": {"x": [1, {"y": 0}]}})
    (tmp_path / "stages.json").write_text("{", encoding="utf-8")
    with pytest.raises(SettingError, match="is damaged"):
        Record(tmp_path).open(SETTINGS)


def test_the_folder_of_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(SettingError, match="is the folder of a run"):
        Record(tmp_path).open(SETTINGS)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([], "stages is empty"),
        ([Stage("a/b", BASE)], "'a/b': a name consists of"),
        ([Stage("settings", BASE)], "none of settings"),
        ([Stage("a", BASE), Stage("a", BASE)], "two stages are named a"),
        ([Stage("a", BASE, model="b")], r"stage a: there is no earlier stage 'b' \(it is the first stage\)"),
        ([Stage("first", BASE), Stage("b", BASE, model="frist")], r"no earlier stage 'frist' \(first\)"),
        ([Stage("a")], "stage a: it has neither config"),
        ([Stage("a", BASE), Stage("b", BASE, merge=Merge(["a", "a"]))], "so config has no effect"),
        ([Stage("a", BASE, command="annotate"), Stage("b", BASE, model="a")], "stage a trains no model"),
        ([Stage("a", BASE, command="predict")], "cannot run 'predict': name one of fit, annotate"),
        ([Stage("a", BASE), Stage("b", merge=Merge(["a"]))], "merge.of must name at least two stages"),
    ],
)
def test_a_wrong_stage_is_named_with_what_is_wrong(stages: list[Stage], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        check(stages)


def test_the_model_of_a_stage_is_put_where_a_setting_names_it() -> None:
    settings = {"a": [{"folder": "stage:sft"}], "b": "stage", "c": 1}
    assert put_in(settings, Path("runs/p"), ["sft"]) == {"a": [{"folder": "runs/p/sft/export"}], "b": "stage", "c": 1}
    assert put_in("stage:sft/a/b.jsonl", Path("p"), ["sft"]) == "p/sft/a/b.jsonl"
    assert put_in("stage:own/b.jsonl", Path("p"), [], own="own") == "p/own/b.jsonl"
    with pytest.raises(ValueError, match="no earlier stage 'own'"):
        put_in("stage:own", Path("p"), [], own="own")
    with pytest.raises(ValueError, match="no earlier stage 'dpo'"):
        put_in("stage:dpo", Path("runs/p"), ["sft"])


def test_policy_and_reference_become_the_models_of_earlier_stages(tmp_path: Path) -> None:
    hf = {**TRL, "model.pair": "configs/model/hf.yaml", "model.pair.source.dtype": "bfloat16"}
    hf["model.pair.source.attn_implementation"] = "eager"
    other = Stage("other", BASE, hf, model="dpo", reference="sft")
    same = Stage("same", BASE, hf, model="dpo", reference="dpo")
    found = resolved([Stage("sft", BASE, TRL), Stage("dpo", BASE, TRL, model="sft"), other, same], tmp_path)
    pairs = {name: one["model"]["init_args"]["pair"]["init_args"] for name, one in found.items()}
    assert pairs["sft"]["source"]["class_path"].endswith("TinyLlama")
    assert pairs["dpo"]["source"]["init_args"] == {"name_or_path": str(tmp_path / "sft/export")}
    kept = pairs["other"]["source"]["init_args"]
    # in the type in which it was exported: bf16 would round the first stage's update away
    assert kept == {"name_or_path": str(tmp_path / "dpo/export"), "attn_implementation": "eager"}
    reference = pairs["other"]["reference"]
    assert reference["class_path"] == "models.reference.Checkpoint"
    assert reference["init_args"]["source"]["init_args"]["name_or_path"] == str(tmp_path / "sft/export")
    assert pairs["same"]["reference"] is None  # a frozen copy of the policy as it starts is the same model
    assert found["other"]["trainer"]["default_root_dir"] == str(tmp_path / "other")


def test_a_misspelt_option_of_a_later_stage_is_found_before_the_first_one_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = Stage("dpo", BASE, {**TRL, "model.objective.bata": 0.2}, model="sft")
    with pytest.raises(UsageExit, match="stage dpo: its settings cannot be used"):
        command([Stage("sft", BASE, TRL), wrong], "runs/p")
    assert "bata" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_folder_in_use_and_a_launcher_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = RunLock(tmp_path)
    lock.acquire()
    with pytest.raises(SystemExit, match=r"live run.*--folder"):
        command([Stage("sft", BASE, TRL)], str(tmp_path))
    lock.release()
    monkeypatch.setenv("SLURM_NTASKS", "4")
    with pytest.raises(SettingError, match="started 4 times"):
        command([Stage("sft", BASE, TRL)], str(tmp_path))


@pytest.mark.timeout(900)  # 25 stages of the 7B pipeline are parsed, two seconds each
@pytest.mark.parametrize("path", sorted((CONFIGS / "pipeline").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_pipeline_has_settings_that_fit_takes(path: Path, tmp_path: Path) -> None:
    first, added = stages_of(path)
    check([*first, *added])
    used = [stage for stage in first if stage.name in ("answers", "sft", "dpo_helpful")]  # others start from these
    asked = [stage for stage in added if stage.command == "evaluate"][1:]  # all ask alike
    used += [stage for stage in added if stage not in asked]
    found = resolved(used, tmp_path)
    assert list(found) == [stage.name for stage in used]


def stages_of(path: Path) -> tuple[list[Stage], list[Stage]]:
    """The stages that a file continues, and its own. A file with ``stages+`` continues the 135m reproduction."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "stages" in content:
        return [], [as_stage(one) for one in content["stages"]]
    return stages_of(path.with_name("reproduce_135m.yaml"))[1], [as_stage(one) for one in content["stages+"]]


def as_stage(one: dict[str, Any]) -> Stage:
    return Stage(**{**one, "merge": Merge(**one["merge"]) if "merge" in one else None})
