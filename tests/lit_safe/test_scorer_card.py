"""The card of a scorer decides whether its costs may set a multiplier or support a certificate."""

from pathlib import Path

import pytest

from lit_safe.scorer_card import CARD, Quality, ScorerCard, check_scorer


def card(auc: float | None = 0.8, **other: object) -> ScorerCard:
    facts = {"units": {"harm": "log_odds"}, "trained_on": ("train",), "quality": {"harm": Quality(auc)}}
    return ScorerCard("mine", **(facts | other))


def test_a_card_reads_back_as_it_was_written(tmp_path: Path) -> None:
    written = card(quality={"harm": Quality(0.8, 0.02, 0.75, 0.84, 200, 81)}, data=({"name": "fruit"},))
    written.save(tmp_path)
    assert ScorerCard.load(tmp_path) == written
    assert [path.name for path in tmp_path.iterdir()] == [CARD]


def test_a_number_that_does_not_exist_is_null_on_the_card(tmp_path: Path) -> None:
    card(quality={"harm": Quality(0.8, float("nan"))}).save(tmp_path)
    assert ScorerCard.load(tmp_path).quality["harm"] == Quality(0.8, None)


@pytest.mark.parametrize("text", ["{}", "no JSON", "[]", '{"quality": {"harm": {"acu": 1}}, "trained_on": []}'])
def test_a_file_that_is_no_card_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / CARD).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"card\.json is not the card of a scorer"):
        ScorerCard.load(tmp_path)


def test_a_folder_without_a_card_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"card\.json"):
        ScorerCard.load(tmp_path)


def test_a_scorer_at_chance_is_refused_unless_it_is_forced_by_its_name() -> None:
    card(0.6).check_usable()
    with pytest.raises(ValueError, match=r"mine .* AUC of 0\.510, under 0\.6.*forced: mine"):
        card(0.51).check_usable()
    with pytest.raises(ValueError, match="under"):
        card(0.51).check_usable(forced="another")
    card(0.51).check_usable(forced="mine")


@pytest.mark.parametrize("auc", [None, float("nan")])
def test_an_unmeasured_scorer_is_refused(auc: float | None) -> None:
    with pytest.raises(ValueError, match="AUC"):
        card(auc).check_usable()
    with pytest.raises(ValueError, match="no AUC of 'theft'"):
        card().check_usable(outputs=("harm", "theft"))


def test_a_scorer_trained_on_the_certify_prompts_certifies_nothing_even_if_forced() -> None:
    seen = card(trained_on=("train", "certify"))
    seen.check_usable(reads="dual")
    with pytest.raises(ValueError, match="trained on the certify split"):
        seen.check_usable(forced="mine", reads="certify")


def test_a_cost_function_without_a_card_is_used_as_it_is() -> None:
    check_scorer(lambda prompts, responses: None, reads="certify")


def test_a_cost_function_with_a_card_is_asked() -> None:
    class Carded:
        def check_usable(self, reads: str | None = None) -> None:
            card(trained_on=("certify",)).check_usable(reads=reads)

    check_scorer(Carded())
    with pytest.raises(ValueError, match="certify"):
        check_scorer(Carded(), reads="certify")
