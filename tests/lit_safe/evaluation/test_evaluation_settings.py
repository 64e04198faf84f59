import json

import pytest

from lit_safe.evaluation.settings import differing, evaluation_settings, not_comparable, settings_of
from tests.lit_safe.dual_world import TableCost
from tests.lit_safe.held_out_world import HeldOut, module


class Fitted(TableCost):
    def __init__(self, folder, units="probability"):
        self.folder, self.units, self._cached = str(folder), units, object()


def settings(cost, **options):
    return evaluation_settings(module(), HeldOut(), cost, **{"max_new_tokens": 48, "seed": 0, **options})


@pytest.fixture
def scorer(tmp_path):
    folder = tmp_path / "scorer"
    folder.mkdir()
    (folder / "head.safetensors").write_bytes(b"weights")
    (folder / "card.json").write_text(json.dumps({"seconds": 1.5}), encoding="utf-8")
    return folder


def test_settings_are_plain_values_that_json_keeps(scorer):
    found = settings(Fitted(scorer))
    assert json.loads(json.dumps(found)) == found
    assert found["scorer"] == "Fitted"
    assert found["scorer.units"] == "probability"
    assert found["stop_ids"] == [4, 5, 6, 7, 8]
    assert "scorer.folder" not in found  # two runs may keep one scorer in two places


def test_a_scorer_fitted_on_other_data_has_another_digest_and_one_fitted_again_the_same(scorer):
    once = settings(Fitted(scorer))
    (scorer / "card.json").write_text(json.dumps({"seconds": 9.5}), encoding="utf-8")
    assert differing(once, settings(Fitted(scorer))) == {}
    (scorer / "head.safetensors").write_bytes(b"others")
    assert list(differing(once, settings(Fitted(scorer)))) == ["scorer.digest"]
    assert list(differing(once, settings(Fitted(scorer, units="log_odds"), max_new_tokens=9))) == [
        "scorer.units", "scorer.digest", "max_new_tokens",
    ]  # fmt: skip


def test_without_a_scorer_nothing_is_said_of_responses():
    assert set(settings(None)) == {"order", "template", "data seed"}


def test_the_settings_of_a_report_are_those_it_was_written_with(scorer):
    assert settings_of({"settings": settings(Fitted(scorer))}) == settings(Fitted(scorer))
    assert settings_of({"scorer": None, "data": {"order": "safer"}}) == {"order": "safer"}


def test_a_scorer_matters_for_what_it_scores_alone():
    assert not_comparable("rollouts/unsafe", {"scorer.digest": None})
    assert not not_comparable("rollouts/tokens", {"scorer.digest": None})
    assert not_comparable("drift/forward_kl", {"temperature": None})
    assert not not_comparable("logps/accuracies", {"scorer": None, "temperature": None, "max_new_tokens": None})
