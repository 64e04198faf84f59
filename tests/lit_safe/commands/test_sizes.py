"""Sizes of commands that are no size."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_safe.commands.annotate import annotate
from lit_safe.commands.certify import certify
from lit_safe.commands.doctor import doctor
from lit_safe.commands.evaluate import evaluate
from lit_safe.commands.reach import reach
from lit_safe.commands.refusals import refusals
from lit_safe.commands.sample import sample
from lit_safe.errors.message import SettingError

COMMANDS: dict[str, tuple[Callable[..., int], dict[str, Any]]] = {
    "sample": (sample, {"module": None, "data": None}),
    "refusals": (refusals, {"module": None, "data": None, "judge": None, "prompts": "", "ckpt_path": ""}),
    "evaluate": (evaluate, {"module": None, "data": None, "suites": {}, "refusal_judge": None}),
    "certify": (certify, {"module": None, "data": None}),
    "annotate": (annotate, {"data": None, "scorer": None}),
    "doctor": (doctor, {"module": None, "data": None}),
    "reach": (reach, {"module": None, "data": None, "trainer": None}),
}


@pytest.mark.parametrize(
    ("command", "name"),
    [
        *(("sample", name) for name in ("samples_per_prompt", "batch_size", "max_new_tokens")),
        *(("refusals", name) for name in ("samples_per_prompt", "batch_size", "max_new_tokens")),
        *(("evaluate", name) for name in ("samples_per_prompt", "batch_size", "max_new_tokens")),
        *(("certify", name) for name in ("prompts", "batch_size", "max_new_tokens")),
        *(("reach", name) for name in ("batch_size", "max_new_tokens")),
        ("annotate", "batch_pairs"),
        ("doctor", "pairs"),
    ],
)
def test_a_size_below_1_is_named_before_anything_is_read_or_written(command: str, name: str, tmp_path: Path) -> None:
    run, given = COMMANDS[command]
    out = tmp_path / "out.jsonl"
    out.write_text("kept\n", encoding="utf-8")
    options = given if command in ("doctor", "reach") else {**given, "out": str(out)}
    with pytest.raises(SettingError, match=f"^{name} must be >= 1, got 0$"):
        run(**options, **{name: 0})
    assert out.read_text(encoding="utf-8") == "kept\n"
