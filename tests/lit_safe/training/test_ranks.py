"""Two processes that share every step end where one process alone does."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.lit_safe.training.fits_of_ranks import run_script

pytestmark = pytest.mark.slow  # three processes import Lightning and transformers

# optimizer steps of two epochs: 26 pairs in steps of 5, of which SafeDPO keeps between 16 and 20
STEPS = {"c_dpo": 12, "safe_dpo": 8}


def ended(script: str, *words: str, folder: Path, devices: int = 2) -> list[Any]:
    """What each of as many processes was left with."""
    run_script(script, *words, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(devices)]


@pytest.mark.parametrize("objective", ["safe_dpo", "c_dpo"])
def test_two_ranks_end_where_one_does(objective: str, tmp_path: Path) -> None:
    (alone,), (first, second) = (
        ended("module_two_ranks.py", str(devices), objective, folder=tmp_path / str(devices), devices=devices)
        for devices in (1, 2)
    )
    assert first["steps"]["all"] == second["steps"]["all"] == alone["steps"]["all"] == STEPS[objective]
    assert first["steps"]["partial"] == 2
    unsafe_alone = first["steps"]["dropped alone"] + second["steps"]["dropped alone"]
    if objective == "c_dpo":  # the last step of an epoch has one pair, and the second rank none of it
        assert second["steps"]["filler alone"] == 2
        assert unsafe_alone > 0
    else:  # SafeDPO leaves out the pairs of two unsafe responses before steps are made
        assert unsafe_alone == 0

    assert torch.equal(first["weights"], second["weights"])
    torch.testing.assert_close(first["weights"], alone["weights"], rtol=0, atol=1e-6)
    assert first["multiplier"] == second["multiplier"] == pytest.approx(alone["multiplier"], abs=1e-6)
    assert (alone["multiplier"] > 0.5) is (objective == "c_dpo")
    # with two prompts, a cost has no bound: dual/upper is NaN
    assert first["seen"] == pytest.approx(second["seen"], rel=0, abs=0, nan_ok=True)
    means = {name: value for name, value in alone["seen"].items() if name.startswith(("eval/", "train/", "dual/"))}
    assert {"eval/loss", "train/grad_norm", "dual/cost"} <= set(means)
    found = {name: first["seen"][name] for name in means}
    assert found == pytest.approx(means, rel=1e-4, abs=1e-6, nan_ok=True)


def test_a_run_resumed_inside_a_logging_window_logs_what_the_uninterrupted_one_does(tmp_path: Path) -> None:
    for whole, resumed in ended("window_two_ranks.py", folder=tmp_path):
        assert list(whole) == list(resumed) == [4, 6]
        assert {"train/loss", "train/rewards/margins", "train/anchor/lost_support"} <= set(whole[4])
        for step, means in whole.items():
            assert resumed[step] == pytest.approx(means, rel=1e-6)
