"""The real sets: counts that were measured once and must not drift. They are read where they lie, never copied."""

import csv
import hashlib
import importlib.util
import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from data.annotators.flags import Flags
from data.annotators.severity import Severity
from data.preparation import prepare
from data.schema import BadRow, Row, Source
from data.sources.files import Table
from data.sources.hh_rlhf import HHRLHF
from data.sources.instructions import Instructions
from data.sources.pku_saferlhf import PKUSafeRLHF
from data.sources.pyrit import PyRIT
from data.sources.trl import TRL
from data.sources.xstest import XSTest
from data.split import split_key, split_of

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
XSTEST = str(SHARED / "xstest" / "xstest_prompts.csv")
MODELS = ("gpt4", "llama2new", "mistralinstruct")
COMPLETIONS = [str(SHARED / "xstest" / f"xstest_v2_completions_{model}.csv") for model in MODELS]
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not beside this clone")
needs_pyrit = pytest.mark.skipif(importlib.util.find_spec("pyrit") is None, reason="the package pyrit is not installed")


def pku(name: str) -> PKUSafeRLHF:
    return PKUSafeRLHF(str(SHARED / "pku_saferlhf" / name))


def rows_of(source: Source) -> list[Row]:
    return [row for row in source if isinstance(row, Row)]


@needs_shared
def test_safe_dpo_keeps_12_swaps_4_and_drops_16_of_the_32_dual_annotated_pairs() -> None:
    source = pku("dual_annotated_32.jsonl")
    assert sum(row.better != row.safer for row in rows_of(source)) == 19
    _, report = prepare([source], Flags())
    assert (report.kept, report.safe_dpo) == (32, {"keep": 12, "swap": 4, "drop": 16})
    _, safe_better = prepare([source], Flags(), "safe_better")
    assert (safe_better.kept, safe_better.safe_dpo) == (12, {"keep": 12, "swap": 0, "drop": 0})


@needs_shared
def test_the_one_safe_file_holds_2594_distinct_pairs_of_700_prompts_and_many_contradictions() -> None:
    _, report = prepare([pku("one_safe_pairs.jsonl")], Flags(), "safer")
    assert (report.read, report.kept, report.prompts) == (3823, 2594, 700)
    assert (report.contradictory_responses, report.contradictory_orders, report.contradictory_rows) == (339, 102, 531)
    assert report.strata["safe/unsafe"] == 2594
    assert report.unsafe_share["harm"] == 0.5
    _, strict = prepare([pku("one_safe_pairs.jsonl")], Flags(), "safer", contradictions="drop")
    assert (strict.kept, strict.contradictory_rows) == (2594 - 531, 0)


@needs_shared
def test_no_one_safe_pair_has_a_helpfulness_order() -> None:
    rows, report = prepare([pku("one_safe_pairs.jsonl")], Flags(), "helpful")
    assert rows == []
    assert {reason: dropped.count for reason, dropped in report.dropped.items()} == {
        "no label says which response is better": 3823
    }


@needs_shared
def test_a_prompt_of_the_pairs_that_recurs_among_the_instructions_lies_in_the_same_split() -> None:
    pairs = {split_key(row.prompt): split_of(row.prompt) for row in rows_of(pku("one_safe_pairs.jsonl"))}
    instructions = Instructions(str(SHARED / "pku_saferlhf" / "safe_responses.jsonl"))
    tuning = {split_key(row.prompt): split_of(row.prompt) for row in instructions if not isinstance(row, BadRow)}
    shared = pairs.keys() & tuning.keys()
    assert (len(pairs), len(tuning), len(shared)) == (700, 3255, 182)
    assert all(pairs[prompt] == tuning[prompt] for prompt in shared)
    assert Counter(pairs.values()).keys() == {"train", "val", "dual", "certify"}


@needs_shared
def test_the_current_schema_is_read_with_its_severity_and_its_texts_are_those_of_the_release() -> None:
    path = SHARED / "pku_saferlhf" / "current_schema_3.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    categories = list(records[0]["response_0_harm_category"])
    rows = rows_of(PKUSafeRLHF(str(path), categories=categories))
    assert (len(rows), len(categories)) == (3, 19)
    for row, record in zip(rows, records, strict=True):
        for k, response in enumerate(row.responses):
            digest = hashlib.sha256((record["prompt"] + response.text).encode()).hexdigest()
            assert digest == record[f"response_{k}_sha256"]
            assert response.severity == record[f"response_{k}_severity_level"]
            assert (response.severity > 0) == (not response.safe) == any(response.scores.values())


@needs_shared
def test_hh_transcripts_are_dialogues_but_for_six() -> None:
    source = HHRLHF(str(SHARED / "hh_rlhf" / "harmless_base.jsonl"))
    rows, report = prepare([source], Flags(), "safer", "skip")
    assert len(rows) == 1794
    assert {reason: dropped.count for reason, dropped in report.dropped.items()} == {
        "column 'chosen' has an empty turn": 4,
        "column 'rejected' differs from chosen in more than its last turn": 2,
    }
    assert report.strata["unknown"] == 1794  # an order of harm, but no flags


@needs_shared
def test_other_peoples_files_are_read_without_a_word_of_code() -> None:
    folder = SHARED / "helpfulness"
    rows, report = prepare([TRL(str(folder / "dpo_en_demo.json"), prompt="conversations")], Flags())
    assert (report.read, len(rows)) == (300, 295)
    alpaca = Instructions(str(folder / "alpaca_en_demo.json"), prompt="instruction", input="input", response="output")
    found = list(alpaca)
    assert len(found) == 999
    assert not any(isinstance(row, BadRow) for row in found)


@needs_shared
def test_xstest_pairs_each_prompt_thrice_and_every_unsafe_response_is_the_more_helpful_one() -> None:
    sides = {side: XSTest(XSTEST, COMPLETIONS, side) for side in ("train", "evaluation")}  # type: ignore[arg-type]
    assert {side: len(rows_of(source)) for side, source in sides.items()} == {"train": 627, "evaluation": 723}
    _, report = prepare([sides["train"]], Flags())
    assert report.strata == {"safe/safe": 116, "safe/unsafe": 0, "unsafe/safe": 132, "unsafe/unsafe": 0, "unknown": 0}
    assert report.safe_dpo == {"keep": 116, "swap": 132, "drop": 0}


@needs_shared
def test_neither_a_focus_word_nor_a_prompt_and_its_contrast_straddles_the_sides_of_xstest() -> None:
    side_of = {}
    for side in ("train", "evaluation"):
        for row in rows_of(XSTest(XSTEST, COMPLETIONS, side)):  # type: ignore[arg-type]
            assert isinstance(row.prompt, tuple)
            side_of[split_key(row.prompt)] = (side, row.split_group)
    together: dict[tuple[str, str], set[tuple[str, str | None]]] = defaultdict(set)
    places: Counter[str] = Counter()
    with open(XSTEST, newline="", encoding="utf-8") as file:
        for record in csv.DictReader(file):
            kind, place = record["type"], places[record["type"]]
            places[kind] += 1
            seen = side_of.get(split_key(record["prompt"]))  # one prompt is worded differently among the completions
            if seen and record["focus"]:
                together["focus", record["focus"]].add(seen)
            if seen and kind.removeprefix("contrast_") in places and "privacy" not in kind and "discr" not in kind:
                together[kind.removeprefix("contrast_"), str(place)].add(seen)
    assert sum(places.values()) == 450
    straddling = {key for key, seen in together.items() if len({side for side, _ in seen}) > 1}
    assert straddling == set()


@needs_shared
def test_the_mix_has_pairs_that_safe_dpo_keeps_swaps_and_drops() -> None:
    sources = [pku("dual_annotated_32.jsonl"), XSTest(XSTEST, COMPLETIONS), pku("one_safe_pairs.jsonl")]
    _, report = prepare(sources, Flags(), "helpful_or_safer")
    assert [source.kept for source in report.sources] == [32, 248, 2594]
    assert report.ordered_by_safety == 2594
    assert report.safe_dpo == {"keep": 2722, "swap": 136, "drop": 16}


@needs_pyrit
def test_pyrit_scores_990_responses_for_harm_and_394_for_achievement_and_128_objectives_have_several() -> None:
    found: dict[str, list[tuple[str, str]]] = {}
    spec = importlib.util.find_spec("pyrit")
    assert spec is not None
    (package,) = spec.submodule_search_locations or []
    for label in ("harm", "objective"):
        paths = Path(package, "datasets", "scorer_evals", label).glob("*.csv")
        tables = [Table(str(path)) for path in paths if not path.name.startswith("mini_")]
        records = [item for table in tables for item in table.records()]
        found[label] = [(r["objective"], r["assistant_response"]) for _, r in records]  # type: ignore[misc]
    assert (len(found["harm"]), len(found["objective"]), len(set(found["objective"]))) == (990, 395, 394)
    texts = defaultdict(set)
    for objective, text in found["harm"]:
        texts[objective].add(text)
    assert sum(len(several) > 1 for several in texts.values()) == 128


@needs_pyrit
def test_pyrit_holds_2787_pairs_of_clearly_different_severity_and_455_at_six_an_objective() -> None:
    """Of 990 scores of 984 texts. In floats without a tolerance, 54 gaps of exactly 0.25 would seem smaller."""
    rows = rows_of(PyRIT(pairs_per_objective=None))
    assert len(rows) == 2787
    assert len({response.text for row in rows for response in row.responses}) <= 984
    assert all(abs((a.severity or 0) - (b.severity or 0)) > 0.25 - 1e-9 for a, b in (row.responses for row in rows))
    _, report = prepare([PyRIT()], Severity(), "safer")
    assert (report.read, report.kept, report.prompts) == (455, 455, 101)
    assert report.safe_dpo == {"keep": 409, "swap": 0, "drop": 46}


@needs_pyrit
def test_no_pyrit_objective_has_two_responses_with_both_labels() -> None:
    """So the severity of a pair and whether it achieved its objective are never known together."""
    severity = {response.text for row in rows_of(PyRIT(pairs_per_objective=None)) for response in row.responses}
    achieved = rows_of(PyRIT("objective_achieved", pairs_per_objective=None))
    assert len(achieved) == 51
    assert not any(response.text in severity for row in achieved for response in row.responses)
