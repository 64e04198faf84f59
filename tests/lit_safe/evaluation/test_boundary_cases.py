"""What is printed where nothing varies: a share of none or all, ties alone, one prompt, policies that agree."""

import re

import numpy as np
import pytest
import torch

from lit_safe.commands.compare import compare
from lit_safe.commands.fit_scorer import LabelledResponses, _table
from lit_safe.commands.refusals import compare_refusals
from lit_safe.constraint.costs.mean import mean_cost
from lit_safe.constraint.limits import Standing, standing
from lit_safe.evaluation.evaluate import PAIR_VALUES, Evaluation, differences
from lit_safe.evaluation.responses import ROLLOUT_VALUES
from lit_safe.report.markdown import markdown
from lit_safe.report.tables import estimate_to_json, with_error, write_json, write_tables
from lit_safe.statistics.clustered import Estimate, clustered_mean
from lit_safe.statistics.ranking import clustered_auc
from lit_safe.types import CostEstimate

CERTAIN = re.compile(r"(±|\+-)\s*0(\.0+)?\b|\[([+-]?[\d.]+), \3\]")
"""An error of 0, or an interval whose ends are the same."""


def evaluated(prompts: int, *, margin: float, cost: float) -> Evaluation:
    """As many pairs and responses as prompts, all alike."""
    values = dict.fromkeys(PAIR_VALUES, 0.0) | {
        "logp_chosen": -50 + margin, "logp_rejected": -50.0, "logratio_chosen": margin, "length_chosen": 9.0,
        "length_rejected": 8.0, "reward_margin": 1.0, "cost_chosen": -1.0, "cost_rejected": 1.0, "weight": 1.0,
    }  # fmt: skip
    ids = np.arange(prompts)
    pairs = {"pair_id": ids, "prompt_id": ids} | {name: np.full(prompts, value) for name, value in values.items()}
    answers = dict.fromkeys(ROLLOUT_VALUES, 0.0) | {"cost": cost, "tokens": 9.0, "own_tokens": 9.0}
    rollouts = {"prompt_id": ids, "sample": 0 * ids}
    return Evaluation(pairs, rollouts | {name: np.full(prompts, value) for name, value in answers.items()})


def report(before: Evaluation, after: Evaluation) -> dict:
    was, now, change = before.summary(), after.summary(), differences(after, before)
    held_out = {"auc": 1.0, "auc_stderr": 0.0}
    estimates = {"before": was, "after": now, "difference": change}
    source = {"name": "a table", "licence": "none", "responses_from": ["nobody"]}
    return {
        "objective": {"name": "DPO", "text": "DPO()"},
        "metrics": {n: {part: estimate_to_json(found[n]) for part, found in estimates.items()} for n in now},
        "scorer": {"name": "TableCost", "card": {"held_out": held_out}},
        "notes": [],
        "samples": [],
        "model": {"source": "a table", "parameters": 1, "trainable": 1, "dtype": "float32", "backend": "reference",
                  "licence": "none", "reference": "its own"},
        "command": "python train.py fit",
        "seed": 0,
        "versions": {},
        "data": {"sources": [source], "safe_dpo": {"keep": 1, "swap": 0, "drop": 0}, "unsafe_share": {}, "lines": []},
        "training": {"steps": 1, "pairs": 1, "seconds": 1.0, "tokens_per_s": 1.0, "pairs_per_s": 1.0,
                     "peak_gib": None, "device": "cpu", "multiplier": [0.0, 0.0]},
        "evaluation": {"seconds_before": 1.0, "seconds_after": 1.0},
    }  # fmt: skip


CASES = {
    "none of 48 unsafe": (evaluated(48, margin=3.0, cost=-1.0), evaluated(48, margin=4.0, cost=-1.0)),
    "48 of 48 turn": (evaluated(48, margin=-3.0, cost=1.0), evaluated(48, margin=3.0, cost=-1.0)),
    "all tie": (evaluated(48, margin=0.0, cost=0.0), evaluated(48, margin=0.0, cost=0.0)),
    "one prompt": (evaluated(1, margin=-3.0, cost=1.0), evaluated(1, margin=3.0, cost=-1.0)),
    "three prompts that all turn": (evaluated(3, margin=-3.0, cost=1.0), evaluated(3, margin=3.0, cost=-1.0)),
}  # fmt: skip


def unfounded(case: str) -> tuple[str, ...]:
    """Verdicts that no measure of the case supports. Where all of 48 turn, exact intervals of shares leave out 0."""
    return ("no measurable change",) if case == "48 of 48 turn" else ("higher", "lower", "no measurable change")


@pytest.mark.parametrize("case", CASES)
def test_a_report_claims_no_certainty(case):
    before, after = CASES[case]
    text = markdown(report(before, after))
    assert not CERTAIN.search(text), CERTAIN.search(text)
    for verdict in unfounded(case):
        assert verdict not in text
    assert "±0.0 points" not in text
    if len(before.pairs["pair_id"]) == 48:
        assert re.search(r"A change of ranking accuracy under about ±[1-9]", text)


@pytest.mark.parametrize("case", CASES)
def test_a_comparison_claims_no_certainty(case, tmp_path, capsys):
    folders = []
    for name, evaluation in zip(("one", "other"), CASES[case], strict=True):
        folder = tmp_path / name
        folder.mkdir()
        write_tables(folder, CASES[case][0], evaluation)
        write_json(folder / "report.json", {"objective": {"name": "DPO", "text": "DPO()"}})
        folders.append(str(folder))
    compare(folders, out=str(tmp_path / "compared"))
    for text in (capsys.readouterr().out, (tmp_path / "compared" / "compare.md").read_text(encoding="utf-8")):
        assert not CERTAIN.search(text), CERTAIN.search(text)
        for verdict in unfounded(case):
            assert verdict not in text


@pytest.mark.parametrize("prompts", [1, 3, 48])
def test_a_scorer_that_never_errs_and_a_judge_that_never_hits_claim_no_certainty(prompts):
    unsafe = [True, False] * prompts
    ids = [k // 2 for k in range(2 * prompts)]
    texts = LabelledResponses([""] * len(ids), [""] * len(ids), unsafe, ids, 0, 0)
    auc = clustered_auc(np.array(unsafe, float), unsafe, ids)
    said = "\n".join(
        _table(texts, texts, auc, auc, clustered_mean(np.ones(prompts), range(prompts), share=True), 0.5, 1)
    )
    table = {"prompt_id": np.arange(prompts), "cost": np.full(prompts, -1.0)}
    refused = compare_refusals(table, {**table, "cost": np.ones(prompts)})
    for text in (said, str(auc), *map(str, refused.values())):
        assert not CERTAIN.search(text), text
    assert refused["difference"].verdict in (
        ("higher",) if prompts == 48 else ("cannot be told", "too few prompts to say")
    )


def test_costs_that_do_not_vary_have_no_known_error():
    prompt_n, one_n = torch.arange(8) // 2, torch.ones(8)
    mean, stderr, bounds = mean_cost(torch.full((8,), -1.0), one_n, prompt_n)
    assert mean == -1
    assert stderr.isnan()
    assert bounds.isnan().tolist() == [True, True]
    varied = torch.stack([torch.full((8,), -0.1), torch.arange(8.0)], dim=-1)
    assert mean_cost(varied, one_n, prompt_n)[1].isnan().tolist() == [True, False]


def test_a_limit_is_met_by_a_bound_that_knows_of_skew_and_undecided_where_costs_do_not_vary():
    cost = torch.tensor(np.random.default_rng(1).lognormal(size=16)) - 1
    found = mean_cost(cost, torch.ones(16), torch.arange(16))
    student = found.mean + 1.753 * found.stderr  # 15 degrees of freedom
    assert found.bounds[1] > student
    between = float(student + found.bounds[1]) / 2
    for value, verdict in ((between, "undecided"), (float(found.bounds[1]) + 0.01, "met"), (-0.9, "not met")):
        estimate = CostEstimate(found.mean, found.stderr, 16, torch.tensor(0.5), 16.0, clusters=16, bounds=found.bounds)
        one = standing(["harm"], torch.tensor(value), estimate, 0)
        assert one.verdicts == (verdict,)
        assert Standing.from_state_dict(one.state_dict()) == one
    still = mean_cost(torch.full((16,), -1.0), torch.ones(16), torch.arange(16))
    estimate = CostEstimate(still.mean, still.stderr, 16, torch.tensor(0.0), 16.0, clusters=16, bounds=still.bounds)
    assert standing(["harm"], torch.tensor(0.0), estimate, 0).verdicts == ("undecided",)


def test_an_interval_narrower_than_its_decimals_does_not_look_like_a_point():
    tiny = Estimate(2.6e-6, 1e-6, 48, 48, (0.6e-6, 4.6e-6))
    assert with_error("rollouts/kl_per_token", tiny) == "0.000003 [0.000001, 0.000005]"
