"""`profile` says where the time of a step goes, and leaves no run behind."""

import json
import logging
from pathlib import Path

import pytest

from lit_safe.commands.profile import profile
from lit_safe.phases import _running
from lit_safe.training.step_profile import PHASES, REST
from tests.lit_safe.pair_world import aligned, pairs, trainer
from tests.lit_safe.typed_world import Run, typed

__all__ = ["typed"]  # a fixture


def test_the_parts_of_a_step_add_up_and_the_trace_names_them(typed: Run, caplog):
    caplog.set_level(logging.INFO)
    typed("profile", "--steps", "2", "--data.pairs_per_step", "6", "--data.micro_batch_pairs", "2")
    folder = Path("runs/x")
    found = json.loads((folder / "profile.json").read_text(encoding="utf-8"))
    assert sum(found["share"].values()) == pytest.approx(1)
    assert found["seconds_per_step"] == pytest.approx(sum(found["seconds"].values()))
    assert list(found["seconds"]) == list(PHASES)
    assert all(value > 0 for value in found["seconds"].values()), "an online reference has its own part"
    assert found["share"]["backward"] > found["share"]["data"]
    events = json.loads((folder / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    named = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    counts = {name: named.count(name) for name in PHASES}
    assert counts[REST] == 1
    assert counts["policy forward"] == counts["backward"] == counts["reference"] == 3, "one in each micro-batch"
    assert {path.name for path in folder.iterdir()} == {"profile.json", "trace.json"}, "no checkpoint, no log"
    assert _running.get() is None
    assert "backward" in caplog.text


def test_a_cached_reference_takes_no_time_of_a_step(tmp_path):
    profile(aligned(precompute_reference=True), pairs(), trainer=trainer(tmp_path), steps=1)
    found = json.loads((tmp_path / "profile.json").read_text(encoding="utf-8"))
    assert found["seconds"]["reference"] == 0
    assert found["seconds"]["policy forward"] > 0


def test_a_size_below_one_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match="steps must be >= 1, got 0"):
        profile(None, None, trainer=trainer(tmp_path), steps=0)


def test_data_of_too_few_steps_are_read_again(tmp_path):
    measured = pairs(pairs_per_step=26)
    profile(aligned(), measured, trainer=trainer(tmp_path), steps=2)
    assert json.loads((tmp_path / "profile.json").read_text(encoding="utf-8"))["steps"] == 2
