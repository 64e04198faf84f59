"""Over-refusal before and after: which prompts are answered, and what the difference is."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_safe.commands.refusals import _asked, compare_refusals, refusals
from tests.lit_safe.pair_world import aligned, pairs


class Longwinded:
    """Calls every response of more than ``limit`` characters a refusal."""

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        return torch.tensor([float(len(response) > self.limit) for response in responses])


def prompts_file(folder: Path, label: str = "safe") -> str:
    data = pairs()
    data.setup("validate")
    path = folder / "prompts.csv"
    held_out, trained = data.prompts("val"), data.prompts("train")
    lines = [f"{prompt.text},{label}" for prompt in [*held_out, *trained[:3]]] + [
        f"{held_out[0].text} no,unsafe",
        "Is this anywhere?,safe",
    ]
    path.write_text("prompt,label\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_shares_and_their_difference_by_hand() -> None:
    prompt = np.array([1, 1, 2, 3])
    before = {"prompt_id": prompt, "cost": np.array([1.0, 0.0, 0.0, 0.0])}
    after = {"prompt_id": prompt, "cost": np.array([1.0, 1.0, 0.0, 1.0])}
    found = compare_refusals(before, after)
    assert found["before"].mean == 0.25
    assert found["after"].mean == 0.75
    assert found["difference"].mean == 0.5
    assert found["difference"].clusters == 3


def test_every_safe_prompt_is_answered_and_the_same_policy_differs_by_nothing(
    tmp_path: Path,
) -> None:
    module = aligned()
    module.configure_model()
    checkpoint = tmp_path / "same.ckpt"
    torch.save({"state_dict": module.state_dict(), "global_step": 0}, checkpoint)
    out = tmp_path / "refusals.json"
    options = {"judge": Longwinded(3), "prompts": prompts_file(tmp_path), "ckpt_path": str(checkpoint)}
    assert refusals(aligned(), pairs(), **options, out=str(out), max_new_tokens=6) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["judge"] == "Longwinded"
    assert (found["keep"], found["samples_per_prompt"], found["seed"]) == ({"label": "safe"}, 1, 0)
    assert found["before"]["clusters"] == 8  # of the file's 9 prompts, the safe ones
    assert found["before, not trained on"]["clusters"] == 5
    assert found["difference"]["mean"] == 0
    assert found["before"]["mean"] == found["after"]["mean"]


@pytest.mark.parametrize(("keep", "message"), [({"kind": "safe"}, "no column"), ({"label": "other"}, "none of the 9")])
def test_a_file_that_does_not_fit_is_named(tmp_path: Path, keep: dict[str, str], message: str) -> None:
    options = {"prompts": prompts_file(tmp_path), "keep": keep, "ckpt_path": "", "out": ""}
    with pytest.raises(ValueError, match=message):
        refusals(aligned(), pairs(), judge=Longwinded(), **options)


def test_a_file_as_spreadsheets_write_it_is_read_and_a_short_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("label,prompt\nsafe,Who?\n", encoding="utf-8-sig")  # with a byte order mark
    assert _asked(path, {"label": "safe"}) == ["Who?"]
    path.write_text("label,prompt\nsafe,Who?\nsafe\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"prompts\.csv:2: has fewer cells"):
        _asked(path, {"label": "safe"})
