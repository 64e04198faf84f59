"""The chains of the 7B pipeline run: SACPO, MoCAN and PeCAN from the set's rows, two steps each, on a tiny Llama."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_safe.cli import main
from lit_safe.reproduction.measured import read_runs
from lit_safe.reproduction.plan import SCALES, pipeline
from lit_safe.stages.record import Record
from lit_safe.stages.run import run_stages
from lit_safe.stages.settings import resolved
from tests.test_recipes_7b import llama_folder, pku_30k

CHAINS = [
    *("sft", "dpo_helpful", "dpo_harmless", "sacpo", "p_sacpo"),
    *("labels_mocan", "labels_mocan_test", "mocan", "mocan_asked"),
    *("labels_pecan", "labels_pecan_test", "pecan"),
]
HERE = {"accelerator": "cpu", "strategy": "auto", "devices": 1, "precision": "32-true", "max_steps": 2}
COUNTS = {"pairs_per_step": 4, "rows_per_step": 4, "prompts": 3, "samples_per_prompt": 3, "max_new_tokens": 3}
HUB = ("PKU-Alignment/", "meta-llama/", "bench-llm/")


class Length:
    """In place of a score model of 7 billion weights."""

    outputs = ("cost",)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Any:
        import torch

        return torch.tensor([len(text) % 5 - 2.0 for text in responses])


def write_rows(folder: Path) -> None:
    for split, numbers in (("train", range(40)), ("test", range(40, 46))):
        lines = [json.dumps(pku_30k(i)) for i in numbers]
        (folder / f"PKU-SafeRLHF-30K_{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    other = [json.dumps({"prompt": f"And what is number {i}?"}) for i in range(6)]
    (folder / "BeaverTails_330k_train.jsonl").write_text("\n".join(other), encoding="utf-8")
    harmless = [json.dumps({"prompt": f"How do I kill process {i}?", "category": "harmful"}) for i in range(4)]
    (folder / "or-bench_train.jsonl").write_text("\n".join(harmless), encoding="utf-8")


def small(value: Any, folder: Path, key: str = "") -> Any:
    """Settings on files of ``folder``, a tiny model and a scorer without weights; the counts are small."""
    if isinstance(value, list):
        return [small(part, folder) for part in value]
    if not isinstance(value, dict):
        return COUNTS[key] if key in COUNTS and value is not None else value
    if value.get("class_path", "").endswith("ScoreFolder"):
        return {"class_path": f"{__name__}.Length"}
    found = {name: small(part, folder, name) for name, part in value.items()}
    if str(value.get("path", "")).startswith(HUB):
        name = f"{value['path'].partition('/')[2]}_{value['split']}.jsonl"
        found |= {"path": str(folder / name), "split": "train"}
    if str(value.get("name_or_path", "")).startswith(HUB):
        found["name_or_path"] = str(folder / "llama")
    if key == "trainer":
        found |= HERE | {"limit_val_batches": 0}
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_chains_of_the_7b_pipeline_run_from_the_rows_of_the_set_to_their_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path)
    llama_folder(tmp_path / "llama")
    path = SCALES["7b"].pipeline
    assert path is not None
    stages = [stage for stage in pipeline(path, 0) if stage.name in CHAINS]
    assert sorted(stage.name for stage in stages) == sorted(CHAINS)
    folder = tmp_path / "seed_0"
    settings = {name: small(one, tmp_path) for name, one in resolved(stages, folder).items()}

    monkeypatch.setattr(sys, "argv", ["train.py"])

    def run(words: Sequence[str]) -> int:
        main(list(words))
        return 0

    record = Record(folder)
    record.open(settings)
    assert run_stages(stages, record, settings, run) == 0
    for name in CHAINS:
        left = "pairs.jsonl" if name.startswith("labels") else "export"
        assert name.endswith("_asked") or (folder / name / left).exists(), name
    asked = read_runs(tmp_path)
    assert {"reward", "cost", "unsafe", "refused"} <= set(asked.cells["mocan"]), "the reward stands beside the cost"
    assert asked.mean("mocan", "reward").prompts == 9, "the 6 test prompts and 3 of OR-Bench"  # type: ignore[union-attr]
    for name in ("mocan", "pecan"):
        found = json.loads((folder / name / "reach.json").read_text(encoding="utf-8"))
        assert found["samples_per_prompt"] == 3
        used = yaml.safe_load((folder / name / "config.yaml").read_text(encoding="utf-8"))
        assert used["model"]["init_args"]["objective"]["class_path"].endswith("ConstrainedDPO")
        assert (folder / name / "report.json").exists()
    labels = list(map(json.loads, (folder / "labels_pecan" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()))
    assert len(labels) == 40, "every pair of the train split and none of the test split"
    assert any(row["chosen_reward"] != row["rejected_reward"] for row in labels), "two steps moved the log-ratios"
