"""The shipped pipeline runs on the tiny model as a user types it, and goes on after a break."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lit_safe.cli import main
from lit_safe.commands import stages
from tests.lit_safe.typed_world import CONFIGS, record, write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # three fits and exports, 40 s of CPU time


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "export/model.safetensors")


def test_it_continues_where_it_broke_off_and_each_stage_starts_where_its_model_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write([{**record(i), "better_response_id": i % 2} for i in range(60)])
    ran: list[str] = []

    def here(words: Sequence[str]) -> int:
        """The command in this process, which saves its imports."""
        monkeypatch.setattr(sys, "argv", ["train.py", *words])
        main()
        ran.append(words[0])
        if len(ran) == 3:
            raise KeyboardInterrupt  # after the second fit, before its export
        return 0

    def typed() -> None:
        monkeypatch.setattr(stages, "run_command", here)
        pipeline = str(CONFIGS / "pipeline/sacpo.yaml")
        monkeypatch.setattr(sys, "argv", ["train.py", "stages", "-c", pipeline, "--folder", "runs/p"])
        main()

    with pytest.raises(SystemExit) as stop:
        typed()
    assert stop.value.code == 130
    typed()
    assert ran == ["fit", "export", "fit", "fit", "export", "fit", "export", "merge"]

    folder = Path("runs/p")
    state = json.loads((folder / "stages.json").read_text(encoding="utf-8"))["stages"]
    assert list(state) == ["sft", "helpful", "safe", "between"]
    assert all(stage["model"] for stage in state.values())
    trained = {name: weights(folder / name) for name in state}
    for name, before in (("helpful", "sft"), ("safe", "helpful")):
        assert not (folder / f"{name}.1").exists()  # it was not begun again
        used = yaml.safe_load((folder / name / "config.yaml").read_text(encoding="utf-8"))
        source = used["model"]["init_args"]["pair"]["init_args"]["source"]["init_args"]["name_or_path"]
        assert source == str(folder / before / "export")
        gap = max((trained[name][key] - one).abs().max() for key, one in trained[before].items())
        assert 0 < gap < 1e-3  # a few steps with a learning rate of 1e-6 from there, and not from elsewhere
    for key, one in trained["between"].items():
        torch.testing.assert_close(one, (trained["helpful"][key] + trained["safe"][key]) / 2)
    page = (folder / "report.md").read_text(encoding="utf-8")
    assert "4 of 4 stages are done" in page
    assert "| between | linear merge of helpful, safe |" in page
    ran.clear()
    typed()
    assert not ran
