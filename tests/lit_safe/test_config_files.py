"""A run's own ``config.yaml`` is a configuration of every command."""

from pathlib import Path

import pytest
import yaml

from lit_safe.config_files import load_yaml
from tests.lit_safe.typed_world import Run, typed

__all__ = ["typed"]  # a fixture

WHOLE = "model: {}\ntrainer: {}\nckpt_path: {path}\nweights_only: {weights}\n"


def test_what_only_fit_knows_is_left_aside_in_a_whole_configuration_alone() -> None:
    text = WHOLE.replace("{path}", "a.ckpt").replace("{weights}", "true")
    assert load_yaml(text, {"weights_only"}) == {"model": {}, "trainer": {}, "ckpt_path": "a.ckpt"}
    assert load_yaml(text).keys() == {"model", "trainer", "ckpt_path", "weights_only"}
    nulls = WHOLE.replace("{path}", "null").replace("{weights}", "null")
    assert load_yaml(nulls) == {"model": {}, "trainer": {}}
    assert load_yaml("weights_only: true", {"weights_only"}) == {"weights_only": True}


@pytest.mark.slow
def test_a_runs_own_configuration_of_today_and_of_before_serves_export_and_doctor(
    typed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed("fit", "--trainer.max_steps", "1")
    path = Path("runs/x/config.yaml")
    monkeypatch.setattr("tests.lit_safe.typed_world.CONFIGS_OF_A_RUN", ["-c", str(path)])
    before = yaml.safe_load(path.read_text(encoding="utf-8"))
    for more in ({}, {"ckpt_path": None, "weights_only": None}):
        path.write_text(yaml.safe_dump(before | more), encoding="utf-8")
        out = f"out{len(more)}"
        typed("export", "--ckpt_path", "last", "--out", out)
        assert list(Path(out).glob("*.safetensors"))
    typed("doctor")
