"""Fitting a scorer and annotating with it, on a kitchen in which a response is unsafe if it serves peanuts."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.annotators.flags import Flags
from data.annotators.scores import Score, Scores
from data.module import PreferenceData
from data.sources.scored import ScoredPairs
from data.sources.trl import TRL
from data.split import split_of
from lit_safe.commands.annotate import annotate
from lit_safe.commands.fit_scorer import fit_scorer
from lit_safe.constraint.certificate.scorers import verdict_quality
from models.scorers.tfidf import TfidfHarm

DISHES = ["soup", "salad", "noodles", "curry", "toast", "stew", "rice", "cake", "pie", "bread"]
MEALS = ["breakfast", "brunch", "lunch", "tea", "dinner", "supper", "a party", "a picnic", "the road", "two"]


class CountsPeanuts:
    """2 for each mention, less 1."""

    def __call__(self, prompts, responses):
        assert len(prompts) == len(responses)
        return torch.tensor([2.0 * response.count("peanut") - 1 for response in responses])


def kitchen(folder, coin=lambda i: True):
    """100 pairs; where ``coin`` says no, the labels are the wrong way round."""
    path = folder / "kitchen.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i, (dish, meal) in enumerate(itertools.product(DISHES, MEALS)):
            row = {
                "prompt": f"What {dish} shall I make for {meal}?",
                "response_0": f"Make a plain {dish} and serve it warm.",
                "response_1": f"Make a {dish} with crushed peanuts on top.",
                "safe_0": coin(i),
                "safe_1": not coin(i),
            }
            file.write(json.dumps(row) + "\n")
    source = ScoredPairs(str(path), safe=["safe_0", "safe_1"], licence="CC0")
    return PreferenceData([source], Flags(), order="safer")


def lines(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_a_scorer_is_fitted_on_train_measured_on_val_and_then_scores(tmp_path, caplog):
    caplog.set_level("INFO")
    data, scorer = kitchen(tmp_path), TfidfHarm(str(tmp_path / "scorer"))
    assert fit_scorer(data, scorer=scorer) == 0
    card = json.loads((tmp_path / "scorer" / "card.json").read_text(encoding="utf-8"))
    prompts = [f"What {dish} shall I make for {meal}?" for dish, meal in itertools.product(DISHES, MEALS)]
    for part, split in (("fitted_on", "train"), ("held_out", "val")):
        count = sum(split_of(prompt) == split for prompt in prompts)
        assert (card[part]["prompts"], card[part]["responses"], card[part]["unsafe"]) == (count, 2 * count, count)
    assert card["held_out"]["auc"] == card["held_out"]["within_pair_accuracy"] == 1.0
    assert card["fitted_on"]["out_of_fold_auc"] == 1.0
    quality = verdict_quality(scorer)  # of a cost > 0, which corrects the shares of ``evaluate``
    assert (quality.hits, quality.positives, quality.negatives) == (1.0, count, count)
    assert 0.5 < quality.hits_low < 1
    assert [source["licence"] for source in card["data"]] == ["CC0"]
    assert "held-out AUC 1.000" in caplog.text
    assert TfidfHarm(str(tmp_path / "scorer"))(["What?"], ["Crushed peanuts."]) > 0


def test_a_scorer_under_the_bar_is_written_with_its_auc_refuses_and_fails_the_command(tmp_path):
    labels = [split_of(f"What {d} shall I make for {m}?") != "val" for d, m in itertools.product(DISHES, MEALS)]
    data = kitchen(tmp_path, coin=lambda i: labels[i])  # in val alone, peanuts are the safe choice
    scorer = TfidfHarm(str(tmp_path / "scorer"))
    assert fit_scorer(data, scorer=scorer) == 1
    with pytest.raises(ValueError, match=r"AUC of 0\.000, under"):
        TfidfHarm(str(tmp_path / "scorer"))(["What?"], ["That."])


def test_a_text_labelled_both_ways_is_counted_and_left_out(tmp_path):
    agreed = kitchen(tmp_path).sources
    rows = lines(tmp_path / "kitchen.jsonl")
    contrary = tmp_path / "contrary.jsonl"  # people who find hot food unsafe, and peanuts safe
    hot = [r | {"response_0": f"Serve it hot, {i}.", "safe_0": False, "safe_1": True} for i, r in enumerate(rows)]
    contrary.write_text("".join(json.dumps(row) + "\n" for row in hot), encoding="utf-8")
    sources = [*agreed, ScoredPairs(str(contrary), safe=["safe_0", "safe_1"])]
    fit_scorer(PreferenceData(sources, Flags(), order="safer"), scorer=TfidfHarm(str(tmp_path / "scorer")))
    counts = json.loads((tmp_path / "scorer" / "card.json").read_text(encoding="utf-8"))["fitted_on"]
    assert counts["contradictory"] == counts["prompts"]  # the peanuts
    assert counts["responses"] == 2 * counts["prompts"]  # the warm and the hot
    assert counts["unsafe"] == counts["prompts"]


def test_data_without_labels_fits_nothing_and_is_annotated_without_an_auc(tmp_path, caplog):
    caplog.set_level("INFO")
    kitchen(tmp_path)
    columns = {"chosen": "response_0", "rejected": "response_1"}
    data = PreferenceData([TRL(str(tmp_path / "kitchen.jsonl"), **columns)], Flags())
    with pytest.raises(ValueError, match=r"the train split has 0 unsafe and 0 safe responses \(\d+ unlabelled"):
        fit_scorer(data, scorer=TfidfHarm(str(tmp_path / "scorer")))
    annotate(data, scorer=CountsPeanuts(), out=str(tmp_path / "out.jsonl"))
    assert "no AUC" in caplog.text
    assert lines(tmp_path / "out.jsonl")[0]["chosen_label_harm"] is None


def test_annotated_pairs_are_a_data_source_whose_costs_are_the_scorers(tmp_path, caplog):
    caplog.set_level("INFO")
    data, out = kitchen(tmp_path), tmp_path / "deep" / "scored.jsonl"
    assert annotate(data, scorer=CountsPeanuts(), out=str(out), batch_pairs=7) == 0
    records = lines(out)
    assert len(records) == 100
    assert records[0].keys() == {
        *("prompt", "chosen", "rejected", "chosen_cost", "rejected_cost"),
        *("split_group", "chosen_reward", "rejected_reward", "chosen_label_harm", "rejected_label_harm"),
    }
    assert all((r["chosen_cost"], r["rejected_cost"]) == (-1.0, 1.0) for r in records)
    assert "AUC 1.000" in caplog.text
    back = TRL(str(out), chosen_is="safer", scores={"cost": ["chosen_cost", "rejected_cost"]})
    again = PreferenceData([back], Scores((Score("cost"),)), order="safer")
    for split in ("train", "val", "dual", "certify"):
        before = {(p.row.prompt, p.row.chosen, p.row.rejected) for p in data.pairs(split)}
        assert {(p.row.prompt, p.row.chosen, p.row.rejected) for p in again.pairs(split)} == before
    assert {(p.row.chosen_cost, p.row.rejected_cost) for p in again.pairs("train")} == {((-1.0,), (1.0,))}


class Grouped(ScoredPairs):
    """A kitchen whose dishes must stay together, or that nobody may train on."""

    def __init__(self, path, evaluation_only=False):
        super().__init__(path, safe=["safe_0", "safe_1"])
        self.evaluation_only = evaluation_only

    def __iter__(self):
        for row in super().__iter__():
            yield replace(row, split_group=row.prompt[0].content.split()[1])


def test_groups_stay_together_in_the_annotated_file_and_evaluation_rows_never_enter_it(tmp_path):
    kitchen(tmp_path)
    path, out = str(tmp_path / "kitchen.jsonl"), tmp_path / "out.jsonl"
    data = PreferenceData([Grouped(path)], Flags(), order="safer")
    annotate(data, scorer=CountsPeanuts(), out=str(out))
    back = TRL(
        str(out), chosen_is="safer", split_group="split_group", scores={"cost": ["chosen_cost", "rejected_cost"]}
    )
    again = PreferenceData([back], Scores((Score("cost"),)), order="safer")
    for split in ("train", "val", "dual", "certify"):
        assert {p.text for p in again.pairs(split)} == {p.text for p in data.pairs(split)}
    barred = PreferenceData([Grouped(path, evaluation_only=True)], Flags(), order="safer")
    assert len(barred.pairs("val")) == 100
    annotate(barred, scorer=CountsPeanuts(), out=str(out))
    assert lines(out) == []


def test_several_costs_get_a_column_each(tmp_path):
    def both(prompts, responses):
        return CountsPeanuts()(prompts, responses)[:, None] * torch.tensor([1.0, 10.0])

    annotate(kitchen(tmp_path), scorer=both, out=str(tmp_path / "out.jsonl"))
    assert [lines(tmp_path / "out.jsonl")[0][f"rejected_cost_{k}"] for k in (0, 1)] == [1.0, 10.0]


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (lambda p, r: torch.full((len(r),), math.nan), r"gave nan for row kitchen\.jsonl:\d+"),
        (lambda p, r: torch.zeros(1), "gave 1 costs of 128 responses"),
    ],
)
def test_a_broken_scorer_is_named_and_the_older_file_stays(tmp_path, scorer, message):
    out = tmp_path / "out.jsonl"
    out.write_text("the older file", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        annotate(kitchen(tmp_path), scorer=scorer, out=str(out))
    assert out.read_text(encoding="utf-8") == "the older file"


class Learning(CountsPeanuts):
    """Its costs have a gradient, and are on the device of its weight."""

    def __init__(self):
        self.weight = torch.ones(1, requires_grad=True)

    def __call__(self, prompts, responses):
        return self.weight * super().__call__(prompts, responses)

    def fit(self, prompts, responses, unsafe, prompt_ids):
        return self(prompts, responses)

    def save(self, card):
        self.card = card


def test_a_scorer_whose_costs_have_a_gradient_is_fitted_and_measured(tmp_path):
    scorer = Learning()
    assert fit_scorer(kitchen(tmp_path), scorer=scorer) == 0
    assert scorer.card["held_out"]["auc"] == scorer.card["fitted_on"]["out_of_fold_auc"] == 1.0
