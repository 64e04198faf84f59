"""docs/notebooks/oracle_c_dpo.ipynb runs as it stands and shows what it says; what is committed of it is small."""

import json
import re
import warnings
from pathlib import Path

import matplotlib
import pytest
from lightning.fabric.utilities.warnings import PossibleUserWarning

PAGE = Path(__file__).parents[2] / "docs" / "notebooks" / "oracle_c_dpo.ipynb"
CELLS = json.loads(PAGE.read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_notebook_runs_and_each_policy_lies_near_its_limit_and_its_optimum(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    matplotlib.use("Agg")
    names = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=PossibleUserWarning)  # Lightning's advice to a script
        for cell in CODE:
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    names["plt"].close(names["figure"])
    policies, start = names["policies"], names["start"]
    costs = [policies[limit].cost[0] for limit in (-0.1, -0.25, -0.4)]
    assert costs == sorted(costs, reverse=True)
    for limit, policy in policies.items():
        assert policy.cost[0] == pytest.approx(limit, abs=0.1)
        assert policy.malformed < start.malformed + 0.01
        drawn = names["optima"]
        best = drawn.reward_M[abs(drawn.cost_MC[:, 0] - policy.cost[0]).argmin()]
        assert start.reward < best - 0.5
        assert best - 0.3 < policy.reward < best


def test_the_notebook_is_small_and_names_no_machine():
    assert PAGE.stat().st_size < 100_000
    assert not re.search(r"/home/|/tmp/|/work/|/Users/", PAGE.read_text(encoding="utf-8"))
    assert max(len(cell["source"]) for cell in CODE) <= 35


def test_the_stored_outputs_are_of_one_run_from_top_to_bottom_without_errors():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CODE for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
