"""What a study keeps, what it trains anew and what it leaves alone, told without training anything."""

import json
import logging
import signal
from pathlib import Path

import numpy as np
import pytest

from data.oracle.run import main
from data.oracle.study import Job, Study, provenance
from data.oracle.truth.reference_table import read_reference
from data.oracle.world import oracle_world

PROMPTS = 4
SEED_1 = Job("c_dpo_dual", "reference_support", 1, ("--trainer.max_epochs", "2"))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """As after a reference, two seeds' samples and one run, of which only the files' presence matters."""
    made = Study(tmp_path / "study", PROMPTS)
    made.folder.mkdir()
    provenance.write(made.folder / "study.json", made.reference_inputs())
    (made.folder / "reference").mkdir()
    (made.folder / "reference" / "model.safetensors").write_bytes(b"weights")
    shape = oracle_world(PROMPTS).reward_PK.shape
    np.savez(made.folder / "reference.npz", reference_PK=np.full(shape, -np.log(shape[1])))
    for seed in (0, 1):
        made.samples(seed).write_text(f"samples of seed {seed}", encoding="utf-8")
    finish(made, SEED_1)
    return made


def finish(study: Study, job: Job) -> None:
    folder = study.run_folder(job)
    folder.mkdir(parents=True)
    for name in ("objective.yaml", "overlay.yaml"):
        (folder / name).touch()
    (folder / "oracle.json").write_text(json.dumps({"seed": job.seed}), encoding="utf-8")
    provenance.write(folder / "finished.json", study.run_inputs(job))


def test_a_run_that_is_made_of_the_same_is_kept(study: Study, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert study.train([SEED_1], workers=1) == []
    assert (study.run_folder(SEED_1) / "finished.json").exists()
    assert "c_dpo_dual+reference_support seed 1 is kept" in caplog.text


def test_other_options_another_reference_or_other_samples_make_another_run(study: Study) -> None:
    assert study.stale(SEED_1) == []
    assert "words" in study.stale(Job("c_dpo_dual", "reference_support", 1))[0]
    study.samples(0).write_text("of another seed", encoding="utf-8")
    assert study.stale(SEED_1) == []
    study.samples(1).write_text("drawn anew", encoding="utf-8")
    assert "samples_1.jsonl" in study.stale(SEED_1)[0]
    (study.folder / "reference" / "model.safetensors").write_bytes(b"other weights")
    assert any("model.safetensors" in why for why in study.stale(SEED_1))


def test_an_edited_config_makes_another_run(study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    edited = tmp_path / "preference.yaml"
    edited.write_text("trainer: {max_epochs: 3}", encoding="utf-8")
    monkeypatch.setattr("data.oracle.study.inputs.PREFERENCE", ("-c", str(edited)))
    assert study.stale(SEED_1)


def test_a_run_that_did_not_end_well_is_not_finished(study: Study) -> None:
    (study.run_folder(SEED_1) / "finished.json").unlink()  # written last, by the study
    assert study.stale(SEED_1) == ["not finished"]


def test_the_report_leaves_out_what_would_be_trained_anew(study: Study, caplog: pytest.LogCaptureFixture) -> None:
    assert [run["seed"] for run in study.results(SEED_1.options)] == [1]
    assert study.results(()) == []
    assert "not in the report: c_dpo_dual+reference_support seed 1 (words" in caplog.text


def test_a_run_by_hand_in_the_way_is_not_touched(study: Study) -> None:
    by_hand = study.folder / "dpo" / "seed_0"
    by_hand.mkdir(parents=True)
    with pytest.raises(ValueError, match="is not a run of a study"):
        study.train([Job("dpo", "none", 0)], workers=1)
    assert by_hand.exists()


def test_beginning_anew_removes_what_the_study_wrote_and_nothing_else(study: Study) -> None:
    for kept in (
        "notes.md",
        "dpo/seed_0/oracle.json",
        "c_dpo_dual+reference_support/notes.md",
        "quickstart/metrics.csv",
    ):
        path = study.folder / kept
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (study.folder / "report_plane.png").touch()
    study.remove()
    left = {str(path.relative_to(study.folder)) for path in study.folder.rglob("*") if path.is_file()}
    assert left == {
        "notes.md", "dpo/seed_0/oracle.json", "c_dpo_dual+reference_support/notes.md", "quickstart/metrics.csv"
    }  # fmt: skip


def test_beginning_anew_where_no_study_was_removes_nothing(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "sft").mkdir()
    with pytest.raises(SystemExit):  # nor is it taken for a study's
        main(["--folder", str(tmp_path), "--fresh"])
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "sft"}


def test_a_study_of_another_size_is_refused_naming_both(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="prompts: 4 there, 64 here"):
        Study(study.folder).prepare([0], workers=1)
    with pytest.raises(SystemExit):
        main(["--folder", str(study.folder), "--prompts", "16"])
    assert "prompts: 4 there, 16 here" in capsys.readouterr().err


def test_a_reference_of_unknown_origin_is_refused(study: Study) -> None:
    (study.folder / "study.json").unlink()
    with pytest.raises(ValueError, match=r"contains reference, .*no study.json"):
        study.check()


def test_a_misspelt_objective_is_named_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--folder", str(tmp_path / "new"), "--objectives", "c_dop"])
    assert "c_dop.yaml" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("objective", "drawn"), [("c_dpo_dual", {"seed": 1}), ("dpo_soft", None)])
def test_the_dual_steps_estimates_are_drawn_by_the_runs_own_seed(study: Study, objective: str, drawn: object) -> None:
    assert study.run_inputs(Job(objective, "none", 1))["overlay"].get("dual") == drawn


@pytest.mark.parametrize(("exitcode", "result"), [(143, True), (130, True), (0, False)])
def test_a_run_that_was_stopped_half_way_is_not_finished(
    exitcode: int, result: bool, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended:
        def __init__(self, *words: str, log_to: Path) -> None:
            self.exitcode = exitcode
            if result:  # of an earlier evaluation
                log_to.with_name("oracle.json").write_text("{}", encoding="utf-8")

        def is_alive(self) -> bool:
            return False

    monkeypatch.setattr("data.oracle.study.folder.start", Ended)
    monkeypatch.setattr("data.oracle.study.folder.LONGEST_WAIT", 0.0)
    job = Job("dpo_soft", "none", 0)
    assert study.train([job], workers=1) == [job]
    assert not (study.run_folder(job) / "finished.json").exists()


@pytest.mark.parametrize(("error", "status"), [(None, 0), (KeyboardInterrupt(), 130)])
def test_the_handler_of_sigterm_is_put_back(
    error: BaseException | None, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    within = []

    def prepare(*args: object) -> None:
        within.append(signal.getsignal(signal.SIGTERM))
        if error is not None:
            raise error

    monkeypatch.setattr(Study, "prepare", prepare)
    monkeypatch.setattr(Study, "train", lambda *args: [])
    former = signal.getsignal(signal.SIGTERM)
    assert main(["--folder", str(tmp_path / "study"), "--objectives", "dpo_soft", "--anchors", "none"]) == status
    assert signal.getsignal(signal.SIGTERM) == former
    assert within[0] != former


SECOND = Job("sacpo", "reference_support", 1)


def test_a_second_stage_starts_from_the_export_of_its_first(study: Study) -> None:
    assert SECOND.first == Job("dpo_soft", "reference_support", 1)
    made = study.run_inputs(SECOND)["overlay"]["model"]["init_args"]
    source = made["pair"]["init_args"]["source"]["init_args"]
    export = study.run_folder(SECOND.first) / "export"
    assert source["name_or_path"] == str(export)
    assert made["multiplier"] == pytest.approx(
        SECOND.optimal_multiplier(read_reference(study.folder / "reference.npz"), 4)
    )
    (callback,) = study.run_inputs(SECOND)["objective"]["trainer"]["callbacks+"]
    assert callback["init_args"]["reference"] == str(study.folder / "reference.npz")
    assert Job("c_dpo", "none", 0).first is None


def test_another_first_stage_makes_another_second_stage(study: Study) -> None:
    assert SECOND.first is not None
    finish(study, SECOND.first)
    export = study.run_folder(SECOND.first) / "export"
    export.mkdir()
    (export / "model.safetensors").write_bytes(b"helpful")
    finish(study, SECOND)
    assert study.stale(SECOND) == []
    (export / "model.safetensors").write_bytes(b"more helpful")
    assert "model.safetensors" in study.stale(SECOND)[0]
    (study.run_folder(SECOND.first) / "finished.json").unlink()
    assert study.stale(SECOND) == ["dpo_soft+reference_support: not finished"]


def test_a_second_stage_waits_for_its_first_and_fails_with_it(
    study: Study, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun = []

    class Ended:
        exitcode = 1

        def __init__(self, *words: str, log_to: Path) -> None:
            begun.append(log_to.parents[1].name)

        def is_alive(self) -> bool:
            return False

    monkeypatch.setattr("data.oracle.study.folder.start", Ended)
    monkeypatch.setattr("data.oracle.study.folder.LONGEST_WAIT", 0.0)
    assert study.train([SECOND], workers=2) == [SECOND.first, SECOND]
    assert begun == ["dpo_soft+reference_support"]
    assert "sacpo+reference_support seed 1 has no first stage: not finished" in caplog.text


def test_a_second_stage_exports_its_first_once(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SECOND.first is not None
    finish(study, SECOND.first)
    export = study.run_folder(SECOND.first) / "export"
    commands = []

    def run(*words: str, log_to: Path) -> None:
        commands.append(words)
        export.mkdir()

    class Ended:
        exitcode = 0

        def __init__(self, *words: str, log_to: Path) -> None:
            (log_to.parent / "oracle.json").write_text("{}", encoding="utf-8")

        def is_alive(self) -> bool:
            return False

    monkeypatch.setattr("data.oracle.study.folder.run", run)
    monkeypatch.setattr("data.oracle.study.folder.start", Ended)
    monkeypatch.setattr("data.oracle.study.folder.LONGEST_WAIT", 0.0)
    pd_dpo = Job("pd_dpo", "reference_support", 1)
    assert study.train([SECOND, pd_dpo], workers=1) == []
    ((command, *words),) = commands
    assert command == "export"
    assert words[-2:] == ["--out", str(export)]
    assert study.stale(SECOND) == study.stale(pd_dpo) == []


def test_a_first_stage_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SECOND.config
    config["model"]["init_args"]["pair"]["init_args"]["source"]["init_args"]["name_or_path"] = "my/model"
    monkeypatch.setattr("data.oracle.study.job.read_yaml", lambda path: config)
    with pytest.raises(ValueError, match=r"sacpo\.yaml: a first stage is runs/oracle/.*, not my/model"):
        SECOND.first  # noqa: B018  # reading the property is what fails
