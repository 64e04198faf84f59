"""The report over the stages: what each was, and what its own report measured."""

import json
from pathlib import Path

import torch

from lit_safe.report.tables import estimate_to_json
from lit_safe.stages.page import write_page
from lit_safe.stages.pipeline import Merge, Stage
from lit_safe.stages.record import Record
from lit_safe.statistics.clustered import Estimate

STAGES = [
    Stage("sft", ["a.yaml"]),
    Stage("safe", ["a.yaml"], model="sft"),
    Stage("labels", ["a.yaml"], command="annotate"),
    Stage("both", merge=Merge(["sft", "safe"])),
    Stage("last", ["a.yaml"], model="both"),
]
SETTINGS = {stage.name: {"model": {"class_path": "lit_safe.training.sft.SupervisedFineTuning"}} for stage in STAGES}


def report() -> dict[str, object]:
    shares = {"before": (0.5, 0.4, 0.6), "after": (0.25, 0.2, 0.3), "difference": (-0.25, -0.3, -0.2)}
    entry = {key: estimate_to_json(Estimate(mean, 0.05, 40, 20, (a, b))) for key, (mean, a, b) in shares.items()}
    training = {"steps": 1200, "multiplier": [1.0, 2.345]}
    return {"objective": {"text": "SACPO(beta=0.1)"}, "training": training, "metrics": {"rollouts/unsafe": entry}}


def test_every_stage_that_is_done_has_a_row_and_measures_have_their_intervals(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.open(SETTINGS)
    for stage in STAGES[:4]:
        record.add(stage.name, "model", 75.0, done=True)
    (tmp_path / "safe").mkdir()
    (tmp_path / "safe/report.json").write_text(json.dumps(report()), encoding="utf-8")
    (tmp_path / "sft/checkpoints").mkdir(parents=True)
    torch.save({"state_dict": {}, "global_step": 7}, tmp_path / "sft/checkpoints/last.ckpt")
    text = write_page(STAGES, record, SETTINGS).read_text(encoding="utf-8")
    for line in (
        "4 of 5 stages are done.",
        "| sft | SupervisedFineTuning | - | - | 7 | 1 min 15 s | - |",
        "| safe | SACPO(beta=0.1) | sft | - | 1,200 | 1 min 15 s | 1 → 2.35 |",
        "| labels | annotate | - | - | - | 1 min 15 s | - |",
        "| both | linear merge of sft, safe | - | - | - | 1 min 15 s | - |",
        "## Responses scored unsafe (%)",
        "| safe | 50.0 [40.0, 60.0] | 25.0 [20.0, 30.0] | -25.0 [-30.0, -20.0] |",
        "Nothing was measured of sft, labels, both",
        "The last model is in `both/export`.",
    ):
        assert line in text
    rows = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))["stages"]
    assert [row["name"] for row in rows] == ["sft", "safe", "labels", "both"]


def test_before_anything_is_done_it_says_so(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.open(SETTINGS)
    assert "0 of 5 stages are done." in write_page(STAGES, record, SETTINGS).read_text(encoding="utf-8")
