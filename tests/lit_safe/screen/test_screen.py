"""What a run says before it starts and after it ends, and what TensorBoard keeps of it."""

import logging
import math
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.annotators.scores import Score, Scores
from data.module import PreferenceData
from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.objectives import DPO, ConstrainedDPO, SafeDPO
from lit_safe.runs.loggers.tensorboard import TensorBoardRun
from lit_safe.runs.run_folder import RunFolder
from lit_safe.screen.announce import Announce
from lit_safe.training.sft import SupervisedFineTuning
from lit_safe.types import CostEstimate
from lit_safe.words import duration, interval, large, told_apart
from models.pair import PolicyReference
from models.sources import TinyLlama
from tests.lit_safe.pair_world import Fruit, adamw, aligned, pairs, talk, trainer
from tests.lit_safe.typed_world import Run, typed

__all__ = ["typed"]  # a fixture


class Long:
    """A cost function: responses of many letters are unsafe."""

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Any:
        return torch.tensor([len(response) / 10 - 1.5 for response in responses])


def two_costs(module: Any, data: Any, *, seed: int, epoch: int) -> CostEstimate:
    """An estimator: the first limit is broken, the second one kept."""
    mean = torch.tensor([0.2, -0.5], dtype=torch.float64)
    return CostEstimate(mean, mean * 0 + 0.01, 40, torch.tensor(0.2), 40.0, clusters=20)


def said(caplog: pytest.LogCaptureFixture) -> tuple[list[str], list[str]]:
    """The lines before training and those after it."""
    lines = [record.getMessage() for record in caplog.records if record.name == "lit_safe.screen.announce"]
    at = next((k for k, line in enumerate(lines) if line == "what came out"), len(lines))
    return lines[:at], lines[at:]


def entries(lines: list[str]) -> dict[str, str]:
    """What stands beside each name; several lines of one name are joined."""
    found: dict[str, str] = {}
    for line in lines[1:]:
        name, text = line[2:13].strip(), line[14:]
        found[name] = f"{found[name]} | {text}" if name in found else text
    return found


REPORTED = {
    "trainer": {
        "max_steps": -1,
        "max_epochs": 2,
        "limit_val_batches": 0,
        "callbacks": [
            {
                "class_path": "lit_safe.report.before_after.BeforeAfter",
                "init_args": {"cost": {"class_path": "tests.lit_safe.screen.test_screen.Long"}, "max_new_tokens": 8},
            }
        ],
    },
    "dual": {
        "limit": 0.1,
        "lr": 0.5,
        "estimator": {
            "class_path": "lit_safe.constraint.costs.rollout.RolloutCost",
            "init_args": {
                "cost": {"class_path": "tests.lit_safe.screen.test_screen.Long"},
                "prompts": 2, "samples_per_prompt": 4, "max_new_tokens": 8, "fresh_prompts": False,
            },
        },
    },
}  # fmt: skip


@pytest.fixture
def reported(typed: Run, caplog: pytest.LogCaptureFixture) -> tuple[list[str], list[str]]:
    """A run of C-DPO with a report, as typed; what it said."""
    caplog.set_level(logging.INFO)
    Path("more.yaml").write_text(yaml.safe_dump(REPORTED), encoding="utf-8")
    typed("fit", "-c", "more.yaml", "--model.objective", "configs/objective/c_dpo.yaml")
    return said(caplog)


def test_a_run_of_c_dpo_says_what_will_run_and_what_came_out_and_tensorboard_keeps_both(
    reported: tuple[list[str], list[str]], typed: Run, caplog: pytest.LogCaptureFixture
) -> None:
    before, after = reported
    assert len(before) <= 15
    assert len(after) <= 15
    now = entries(before)
    for name, part in {
        "model": "tiny random Llama (2 x 32, seed 0): ",
        "computes": "in 32-true on cpu with ",
        "reference": "the policy as loaded, frozen",
        "objective": "ConstrainedDPO: beta 0.1, labels soft, rectify False",
        "data": "pairs: 49 train, 2 val, 2 dual, 7 certify, chosen is the helpful one",
        "left out": "no row",
        "steps": "26, 2 epochs of 13; 4 pairs a step, 3 at a time",
        "limit": "E[cost] <= 0.1, estimated at the end of each epoch by RolloutCost: 4 responses to each of 2 prompts, "
                 "scored by Long",
        "multiplier": "λ starts at 0 and moves by dual.lr 0.5 x (cost - limit), between 0 and 10",
        "seed": "0",
        "run folder": "runs/x",
    }.items():  # fmt: skip
        assert part in now[name], name
    then = entries(after)
    assert then["objective"] == now["objective"]
    assert then["limit"].startswith("0.1: undecided; E[cost] ")
    assert then["multiplier"].startswith("λ ")
    assert "chosen likelier than rejected" in then["accuracy"]
    assert " → " in then["unsafe"]
    assert "per response token" in then["drift"]
    assert "26 steps" in then["took"]
    assert "tokens/s" in then["took"]
    assert "report.md, report.json, report.png, checkpoints/last.ckpt, metrics.csv, tensorboard" in then["lies in"]

    events = EventAccumulator("runs/x/tensorboard", size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    for tag, step, lines in (("run", 0, before), ("outcome", 26, after)):
        [event] = events.Tensors(f"{tag}/text_summary")
        kept = event.tensor_proto.string_val[0].decode("utf-8").splitlines()
        assert [line.removeprefix("    ") for line in kept] == lines
        assert event.step == step
    [picture] = events.Images("report")
    assert picture.encoded_image_string.startswith(b"\x89PNG")
    assert picture.step == 26
    outcome = {tag.removeprefix("outcome/") for tag in events.Tags()["scalars"] if tag.startswith("outcome/")}
    assert outcome == {"accuracy", "unsafe", "kl_per_token", "multiplier", "cost", "violation"}
    cost, violation = (events.Scalars(f"outcome/{name}")[-1].value for name in ("cost", "violation"))
    assert violation == pytest.approx(cost - 0.1, abs=1e-6)
    assert any("hparams" in tag for tag in events.summary_metadata)

    caplog.clear()
    certify, export = (shlex.split(command) for command in then["next"].split(", or "))
    for words, name in ((certify, "certify"), (export, "export")):
        assert words[:5] == ["python", "train.py", name, "-c", "runs/x/config.yaml"]
    assert certify[-2:] == ["--cost_range", "[LOW, HIGH]"], "this scorer declares no range"
    typed(*certify[2:-1], "[-2, 3]", "--max_new_tokens", "4")
    assert "| E[cost] | 0.1 | " in Path("runs/x/certificate.md").read_text(encoding="utf-8")
    typed(*export[2:])
    assert Path("runs/x-export/model.safetensors").exists()


@pytest.mark.parametrize(
    ("objective", "settings", "left_out"),
    [
        ("dpo", "DPO: beta 0.1, label_smoothing 0.0", "no row"),
        ("safe_dpo", "SafeDPO: beta 0.1, offset 10.0", "train pairs by the objective, for their labels"),
    ],
)
def test_objectives_without_a_multiplier_say_nothing_of_one(
    objective: str, settings: str, left_out: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    module = aligned(SafeDPO() if objective == "safe_dpo" else None)
    trainer(tmp_path, max_steps=2, callbacks=[Announce()]).fit(module, pairs())
    before, after = map(entries, said(caplog))
    assert before["objective"].startswith(settings)
    assert left_out in before["left out"]
    assert "multiplier" not in before | after
    assert before["limit"].startswith("none is watched")
    assert before["steps"].startswith("2 (an epoch has ")
    assert after["limit"].startswith("undecided: the run estimated no cost")
    assert after["accuracy"] == "not measured: no validation and no report"


def test_each_constraint_has_its_verdict_and_the_lines_stay_few(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    annotator = Scores((Score("cost"), Score("reward")), Score("reward"))
    dual = DualAscent(limit=[0.0, -0.25], lr=[0.5, 0.0], estimator=two_costs)
    module = aligned(ConstrainedDPO(), multiplier=[0.0, 1.0])
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=2, callbacks=[Announce(), dual])
    run.fit(module, pairs(annotator=annotator))
    before, after = said(caplog)
    assert len(before) <= 15
    assert len(after) <= 15
    assert "E[cost of cost] <= 0, E[cost of reward] <= -0.25" in entries(before)["limit"]
    assert "λ starts at 0, 1 and moves by dual.lr 0.5, 0 x" in entries(before)["multiplier"]
    first, second = entries(after)["limit"].split(" | ")
    assert first.startswith("0 on cost: not met; E[cost] 0.20, 95 % one-sided bound 0.22")
    assert second.startswith("-0.25 on reward: met; E[cost] -0.50, 95 % one-sided bound -0.48")
    assert entries(after)["multiplier"] == "λ 0.00 → 0.10, stayed at 1.00"


class Damaged(Fruit):
    """Fruit with the first pairs twice."""

    def __iter__(self) -> Any:
        rows = list(super().__iter__())
        yield from [*rows, *(replace(row, id=f"{row.id}:again") for row in rows[:5])]


def test_rows_that_were_left_out_are_counted_with_their_reason_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    trainer(tmp_path, max_steps=1, callbacks=[Announce()]).fit(aligned(), pairs(Damaged()))
    assert entries(said(caplog)[0])["left out"].startswith("5 of 37 rows: 5 ")
    assert not [message for message in caplog.messages if message.startswith("data: ")], "the report has these lines"


class Mine(PreferenceData):
    """Data that says nothing of its rows."""

    @property
    def report(self) -> dict[str, Any]:
        return {}


class Slots:
    """An objective of somebody's own."""

    __slots__ = ()
    beta, needs, reads_multiplier = 0.1, (), False

    def __call__(self, *args: Any) -> Any:
        return DPO()(*args)


def test_data_and_objectives_of_a_users_own_need_not_describe_themselves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data = Mine([Fruit()], Scores((Score("cost"),), Score("reward")), pairs_per_step=4, max_length=128)
    data.connect(TinyLlama())
    trainer(tmp_path, max_steps=1, callbacks=[Announce()]).fit(aligned(Slots()), data)
    before, after = map(entries, said(caplog))
    assert before["objective"] == after["objective"] == "Slots"
    assert before["left out"] == "no row"


def test_fine_tuning_has_no_limit_and_no_reference(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    module = SupervisedFineTuning(PolicyReference(TinyLlama()), adamw(1e-3))
    trainer(tmp_path, max_steps=1, callbacks=[Announce()]).fit(module, talk())
    before, after = map(entries, said(caplog))
    assert before["data"].startswith("responses: ")
    assert before["objective"] == after["objective"] == "imitation of the responses (fine-tuning)"
    assert {"reference", "limit", "multiplier"}.isdisjoint(before | after)


def test_other_ranks_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    other: Any = SimpleNamespace(is_global_zero=False, global_step=0, callbacks=[], loggers=[])
    announce = Announce()
    announce.on_train_start(other, aligned())
    announce.on_fit_end(other, aligned())
    assert caplog.messages == []


def test_numbers_have_the_decimals_that_tell_them_apart() -> None:
    assert told_apart([0.4, 0.52]) == ["0.40", "0.52"]
    assert told_apart([0.4, 0.4001]) == ["0.4000", "0.4001"]
    assert told_apart([-0.001, math.nan]) == ["0.00", "n/a"]
    assert interval(0.1, 0.1, 0.1) == "0.10", "no interval looks like a point"
    assert interval(0.1, 0.0999, 0.1001) == "0.1000 [0.0999, 0.1001]"


def test_large_counts_and_long_times_are_short() -> None:
    assert [large(count) for count in (23_424, 134_515_008, 7_240_000_000)] == ["23,424", "134.5 M", "7.24 B"]
    assert [duration(s) for s in (3.4, 59.7, 192, 7_260)] == ["3 s", "1 min 0 s", "3 min 12 s", "2 h 1 min"]


class StoppedBeforeTheFirstStep(Exception):
    """Stands for a signal."""


class Stop(Callback):
    def on_train_start(self, *_: Any) -> None:
        raise StoppedBeforeTheFirstStep


def test_a_run_that_ends_before_its_first_step_leaves_no_event_file(tmp_path: Path) -> None:
    callbacks = [RunFolder(), Announce(), Stop()]
    run = trainer(tmp_path / "run", max_steps=1, callbacks=callbacks, logger=[TensorBoardRun()])
    with pytest.raises(StoppedBeforeTheFirstStep):
        run.fit(aligned(), pairs())
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_lightnings_lines_that_say_nothing_of_a_run_are_left_out_and_its_warnings_are_not(
    typed: Run, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        typed("validate")
        rank_zero = logging.getLogger("lightning.pytorch.utilities.rank_zero")
        rank_zero.warning("GPU available: but not used")
        rank_zero.info("another line")
    assert not [
        line for line in caplog.messages if line.startswith(("GPU available: F", "GPU available: T", "💡", "Seed"))
    ]
    assert {"GPU available: but not used", "another line"} <= set(caplog.messages)
