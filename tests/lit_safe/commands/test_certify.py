"""The command: a small policy, a scorer of its text, and what is written."""

import json
import logging
from functools import partial

import numpy as np
import pytest
import torch

from lit_safe.commands.certify import certify
from lit_safe.commands.export import export
from lit_safe.constraint.certificate.share import Share
from lit_safe.constraint.costs.rollout import RolloutCost
from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.errors.message import SettingError
from lit_safe.rollouts.rectified import Rectified
from lit_safe.scorer_card import Quality, ScorerCard
from tests.lit_safe.certify_world import (
    RANGE,
    SHORT,
    Both,
    Broken,
    InFolder,
    Length,
    Loud,
    certify_as_rank,
    certify_twice_as_rank,
    lines,
    run,
    world,
)
from tests.lit_safe.pair_world import Fruit, aligned, pairs, trainer
from tests.ranks import run_on_two_ranks


def test_every_prompt_of_the_split_is_answered_once_and_the_verdict_follows_from_the_costs(tmp_path):
    found = run(tmp_path, unsafe_limit=0.5)
    data = world()
    data.connect(aligned())
    data.setup("validate")
    responses = lines(tmp_path)
    assert sorted(row["prompt"] for row in responses) == sorted(prompt.text for prompt in data.prompts("certify"))
    cost = Length()([], [row["text"] for row in responses])
    assert found["findings"]["cost"]["findings"]["cost"]["mean"] == pytest.approx(float(cost.mean()))
    share = Share(int((cost > 0).sum()), len(cost))
    assert found["findings"]["unsafe"]["upper"] == pytest.approx(share.upper(0.05))
    assert found["responses"]["count"] == len(responses) == found["responses"]["prompts_of_split"]
    assert found["policy"]["step"] == 7
    page = (tmp_path / "run" / "certificate.md").read_text(encoding="utf-8")
    assert page.startswith(f"# Certificate: {found['findings']['verdict']}\n")
    assert "first recorded use" in page
    assert (tmp_path / "run" / "certificate.png").stat().st_size > 1000


def test_neither_batches_nor_a_killed_call_change_a_response(tmp_path):
    whole = run(tmp_path, name="whole")
    run(tmp_path, name="cut")
    path = tmp_path / "cut" / "certificate_responses.jsonl"
    kept = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(kept[:4]) + kept[4][:9], encoding="utf-8")  # killed while it wrote a line
    again = run(tmp_path, name="cut", batch_size=3)
    assert path.read_text(encoding="utf-8") == "".join(kept)
    assert again["findings"] == whole["findings"]


def test_another_policy_answers_anew_and_the_second_use_of_the_prompts_is_said(tmp_path):
    first = run(tmp_path, name="one")
    assert first["other_uses"] == []
    assert run(tmp_path, name="one")["other_uses"] == []  # the same certificate again
    second = run(tmp_path, name="two", seed=1)
    assert lines(tmp_path, "two") != lines(tmp_path, "one")
    (use,) = second["other_uses"]
    assert (use["run"], use["shared"]) == ("one", second["responses"]["count"])
    page = (tmp_path / "two" / "certificate.md").read_text(encoding="utf-8")
    assert "Choosing among runs on this split voids the level" in page
    other_limit = run(tmp_path, name="one", limit=0.5)
    assert {use["run"] for use in other_limit["other_uses"]} == {"one", "two"}


def test_a_study_in_another_folder_is_not_this_study(tmp_path):
    run(tmp_path / "a")
    assert run(tmp_path / "b")["other_uses"] == []


def test_the_limit_and_the_scorer_come_from_the_dual_step_of_the_run(tmp_path):
    dual = DualAscent(limit=0.25, lr=0.1, estimator=RolloutCost(Length()))
    found = run(tmp_path, scorer=None, limit=None, trainer=trainer(callbacks=[dual]))
    assert found["question"]["limit"] == {"cost": 0.25}
    assert found["scorer"]["name"] == "Length"


def test_a_limit_of_the_run_is_not_one_of_another_scorer(tmp_path):
    dual = DualAscent(limit=0.25, lr=0.1, estimator=RolloutCost(Length()))
    options = {"scorer": Loud(), "limit": None, "units": None, "trainer": trainer(callbacks=[dual])}
    with pytest.raises(SettingError, match="limit of the run is one of its own cost function, not of Loud"):
        run(tmp_path, **options)


def test_strata_have_their_own_verdicts_and_an_empty_one_is_named(tmp_path):
    data = world()
    data.connect(aligned())
    data.setup("validate")
    texts = [prompt.text for prompt in data.prompts("certify")]
    path = tmp_path / "strata.csv"
    rows = [f"{text},{'odd' if i % 2 else 'even'}" for i, text in enumerate(texts)]
    path.write_text("\n".join(["prompt,stratum", *rows]), encoding="utf-8")
    found = run(tmp_path, strata=str(path), unsafe_limit=0.3)
    family = found["findings"]["cost_strata"]
    assert {name: row["count"] for name, row in family["findings"].items()} == {
        "even": (len(texts) + 1) // 2,
        "odd": len(texts) // 2,
    }
    assert family["worst"] in ("even", "odd")
    path.write_text("\n".join(["prompt,stratum", *rows, "Nobody asks this,never"]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"stratum 'never' of .* has none of the"):
        run(tmp_path, strata=str(path))
    path.write_text("\n".join(["prompt,stratum", *rows[1:]]), encoding="utf-8")
    with pytest.raises(ValueError, match="no stratum for 1 of the"):
        run(tmp_path, strata=str(path))


def test_a_second_scorer_and_people_stand_beside_the_first(tmp_path):
    run(tmp_path, unsafe_limit=0.4)
    responses = lines(tmp_path)
    labels = tmp_path / "labels.jsonl"
    unsafe = [len(row["text"]) > 21 for row in responses[:8]]
    rows = [
        {"prompt": row["prompt"], "response": row["text"], "unsafe": label}
        for row, label in zip(responses, unsafe, strict=False)
    ]
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = run(tmp_path, unsafe_limit=0.4, second_scorer=Loud(), human_labels=str(labels))
    flags = [any(c.isupper() for c in row["text"]) for row in responses]
    assert found["second"]["unsafe_share"]["mean"] == pytest.approx(np.mean(flags))
    assert found["second"]["verdict"] in ("HOLDS", "DOES NOT HOLD", "UNDECIDED")
    own = [len(row["text"]) > 20 for row in responses[:8]]
    assert found["people"]["count"] == 8
    assert found["people"]["errors"]["Length"]["missed"] == pytest.approx(
        np.mean([u and not o for u, o in zip(unsafe, own, strict=True)])
    )
    assert "What people say" in (tmp_path / "run" / "certificate.md").read_text(encoding="utf-8")
    assert found["other_uses"] == []  # labels and a second scorer are no other use


def test_two_constraints_have_a_verdict_each(tmp_path):
    found = run(tmp_path, scorer=Both(), limit=[0.9, -0.9])
    family = found["findings"]["cost"]
    assert list(family["findings"]) == ["cost_0", "cost_1"]
    assert family["worst"] == "cost_1"
    assert found["question"]["limit"] == {"cost_0": 0.9, "cost_1": -0.9}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": None, "cost_range": None, "scorer": Length()}, "there is no limit to certify"),
        ({"cost_range": None}, r"needs the range of the costs: give --cost_range '\[LOW, HIGH\]' in tenths"),
        ({"cost_range": [1.0]}, "cost_range has 1 numbers"),
        ({"cost_range": [1.0, -1.0]}, "two finite numbers in order"),
        ({"limit": 3.0}, r"the limit 3.0 is not in the cost_range \[-1.0, 1.0\]"),
        ({"units": "log_odds"}, "--units is log_odds, and the costs of Length are in tenths of 40 characters"),
        ({"delta": 0.0}, "delta is the probability of a wrong claim"),
        ({"unsafe_limit": 40.0}, "unsafe_limit is a share between 0 and 1"),
        ({"scorer": None}, "there is no scorer: give --scorer"),
        ({"temperature": 0.0}, "temperature must be > 0"),
        ({"strata": "nowhere.csv"}, "there is no file nowhere.csv"),
        ({"prompts": 0}, "prompts must be >= 1"),
        ({"limit": [0.1, 0.2]}, "2 limits for the 1 constraints cost"),
        ({"data": pairs(Fruit(60), held_out=False)}, "held_out is false"),
    ],
)
def test_settings_that_cannot_be_certified_end_before_a_response_is_drawn(tmp_path, options, message):
    with pytest.raises((SettingError, FileNotFoundError), match=message):
        run(tmp_path, **options)
    assert not (tmp_path / "run" / "certificate_responses.jsonl").exists()


def test_a_scorer_that_returns_nan_is_named_and_the_responses_are_kept(tmp_path):
    with pytest.raises(ValueError, match=r"the cost function Broken gave \[nan\] for a response to prompt \d+"):
        run(tmp_path, scorer=Broken())
    assert lines(tmp_path)
    assert not (tmp_path / "run" / "certificate.json").exists()


def test_costs_that_leave_the_range_are_named_unless_they_are_to_be_clipped(tmp_path):
    with pytest.raises(ValueError, match=r"Length gave \d+ of \d+ responses a cost outside the cost_range"):
        run(tmp_path, cost_range=[0.0, 1.0])
    found = run(tmp_path, cost_range=[0.0, 1.0], clip=True)
    assert found["findings"]["clipped"] > 0
    assert "were clipped" in (tmp_path / "run" / "certificate.md").read_text(encoding="utf-8")


def test_a_scorer_that_was_trained_on_the_certify_split_is_refused_by_its_card(tmp_path):
    card = {"name": "x", "trained_on": ["train", "certify"], "quality": {}, "units": {"cost": "log_odds"}}
    (tmp_path / "card.json").write_text(json.dumps(card), encoding="utf-8")
    scorer = InFolder(tmp_path)
    with pytest.raises(ValueError, match="the scorer InFolder was trained on the certify split"):
        run(tmp_path, scorer=scorer)


def test_a_scorer_that_reads_its_own_card_has_its_units_and_its_error_from_there(tmp_path):
    class Carded(Length):
        units = None

        def card(self) -> ScorerCard:
            quality = {"harm": Quality(0.81, 0.02, 0.77, 0.85, 200, 100)}
            return ScorerCard("carded", {"harm": "log_odds", "reward": "nats"}, ("train",), quality)

    with pytest.raises(SettingError, match="--units is probability, and the costs of Carded are in log_odds"):
        run(tmp_path, scorer=Carded(), units="probability")
    found = run(tmp_path, scorer=Carded(), units=None)
    assert found["question"]["units"] == "log_odds"
    assert found["scorer"]["quality"] == [
        "harm: AUC 0.810 [0.770, 0.850] against people's labels of 200 held-out responses to 100 prompts"
    ]


def test_a_rectified_scorer_is_certified_with_the_card_of_the_scorer_inside(tmp_path):
    found = run(tmp_path, scorer=Rectified(Length()), cost_range=[0.0, 1.0])
    assert found["scorer"] == {"name": "Rectified(Length)", "units": Length.units, "range": None, "quality": []}
    card = {"name": "x", "trained_on": ["certify"], "quality": {}, "units": {"cost": Length.units}}
    (tmp_path / "card.json").write_text(json.dumps(card), encoding="utf-8")
    scorer = InFolder(tmp_path)
    with pytest.raises(ValueError, match="the scorer InFolder was trained on the certify split"):
        run(tmp_path, scorer=Rectified(scorer), cost_range=[0.0, 1.0])


def test_the_error_of_a_scorer_on_labels_by_people_is_on_the_page(tmp_path):
    card = {"held_out": {"auc": 0.74, "auc_low": 0.7, "auc_high": 0.78, "responses": 300, "prompts": 150}}
    (tmp_path / "card.json").write_text(json.dumps(card), encoding="utf-8")
    scorer = InFolder(tmp_path)
    run(tmp_path, scorer=scorer)
    page = (tmp_path / "run" / "certificate.md").read_text(encoding="utf-8")
    assert "cost: AUC 0.740 [0.700, 0.780] against people's labels of 300 held-out responses to 150 prompts" in page


def test_a_damaged_record_of_uses_is_said(tmp_path, caplog):
    run(tmp_path, name="one")
    with (tmp_path / "one" / "certificate_uses.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"key": ')
    with caplog.at_level(logging.WARNING):
        run(tmp_path, name="two", seed=1)
    assert "line 2 is damaged" in caplog.text


def test_without_a_checkpoint_the_loaded_model_is_certified_in_a_named_folder(tmp_path):
    module, data = aligned(), world()
    data.connect(module)
    options = {"scorer": Length(), "limit": 0.9, **RANGE, **SHORT}
    with pytest.raises(SettingError, match="give --out"):
        certify(module, data, **options)
    assert certify(module, data, out=str(tmp_path / "out"), prompts=5, **options) == 0
    found = json.loads((tmp_path / "out" / "certificate.json").read_text(encoding="utf-8"))
    assert found["responses"]["count"] == 5
    assert "tiny random Llama" in found["policy"]["name"]


def test_the_model_card_of_an_export_has_the_certificate_of_its_policy_and_of_no_other(tmp_path):
    run(tmp_path)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"

    def card(name: str) -> str:
        module, data = aligned(), world(60)
        data.connect(module)
        assert export(module, data, ckpt_path=str(checkpoint), out=str(tmp_path / name)) == 0
        return (tmp_path / name / "README.md").read_text(encoding="utf-8")

    first = card("first")
    found = json.loads((tmp_path / "run" / "certificate.json").read_text(encoding="utf-8"))
    assert f"**{found['findings']['verdict']}.**" in first
    assert "in tenths of 40 characters" in first
    saved = torch.load(checkpoint)
    next(value for name, value in saved["state_dict"].items() if name.endswith("norm.weight")).mul_(1.01)
    torch.save(saved, checkpoint)
    assert "certificate of another policy" in card("second")
    (tmp_path / "run" / "certificate.json").unlink()
    assert "`python train.py certify` was not run on this checkpoint" in card("third")


@pytest.mark.slow
def test_two_ranks_agree_with_one_and_an_error_on_one_of_them_is_named_on_both(tmp_path):
    run_on_two_ranks(partial(certify_twice_as_rank, tmp_path), tmp_path)
    alone, together, broken = (tmp_path / name for name in ("alone", "together", "broken"))
    certify_as_rank(alone, Length, 0)
    assert [(together / f"said.{rank}").read_text(encoding="utf-8") for rank in range(2)] == ["done", "done"]
    for name in ("certificate.json", "certificate_responses.jsonl"):
        assert (alone / name).read_text(encoding="utf-8") == (together / name).read_text(encoding="utf-8")
    for rank in range(2):
        assert "the cost function BrokenOnce gave [nan]" in (broken / f"said.{rank}").read_text(encoding="utf-8")
    assert not (broken / "certificate.json").exists()


def test_the_runs_of_a_study_may_lie_in_folders_of_their_own(tmp_path):
    run(tmp_path / "a")
    (use,) = run(tmp_path / "b", seed=1, study=str(tmp_path))["other_uses"]
    assert use["run"] == str(tmp_path / "a" / "run")
