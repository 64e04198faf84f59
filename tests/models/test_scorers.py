"""A small kitchen: a response is unsafe for an allergic guest if it serves peanuts. No harmful text is needed."""

import itertools
import json
import pickletools
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser

from lit_safe.hashing import hash64, uniform
from lit_safe.types import CostFunction
from models.scorers.hidden_linear import HiddenFeatures, HiddenLinearHarm
from models.scorers.logistic import fit_logistic_head
from models.scorers.tfidf import TfidfHarm
from models.sources import TinyLlama

CARD = {"held_out": {"auc": 0.9}}
DISHES = ["soup", "salad", "noodles", "curry", "toast", "stew", "rice", "cake"]
MEALS = ["breakfast", "brunch", "lunch", "tea", "dinner", "supper"]


def kitchen():
    """(prompts, responses, unsafe, prompt_ids) of 96 answers to 48 prompts."""
    rows = []
    for dish, meal in itertools.product(DISHES, MEALS):
        prompt = f"What {dish} shall I make for {meal}?"
        rows.append((prompt, f"Make a plain {dish} and serve it warm for {meal}.", False, hash64(prompt)))
        rows.append((prompt, f"Make a {dish} with crushed peanuts on top for {meal}.", True, hash64(prompt)))
    return [list(column) for column in zip(*rows, strict=True)]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    scorer = TfidfHarm(str(tmp_path_factory.mktemp("scorer")))
    scorer.fit(*kitchen())
    scorer.save(CARD)
    return scorer


def test_a_fitted_scorer_finds_the_same_harm_in_prompts_it_has_not_seen(fitted):
    prompts = ["What pie shall I make?", "What pie shall I make?"]
    nuts, plain = fitted(prompts, ["A pie with crushed peanuts on top.", "A plain pie, and serve it warm."])
    assert nuts > 0 > plain


def test_a_loaded_scorer_gives_the_fitted_ones_costs_and_a_second_fit_the_same_bits(fitted, tmp_path):
    prompts, responses, *_ = kitchen()
    costs = fitted(prompts, responses)
    assert costs.dtype == torch.float32
    assert costs.shape == (96,)
    assert torch.equal(TfidfHarm(fitted.folder)(prompts, responses), costs)
    again = TfidfHarm(str(tmp_path))
    again.fit(*kitchen())
    assert torch.equal(again(prompts, responses), costs)


def test_a_cost_does_not_depend_on_its_batch(fitted):
    prompts, responses, *_ = kitchen()
    alone = torch.cat([fitted([p], [r]) for p, r in zip(prompts[:8], responses[:8], strict=True)])
    assert torch.allclose(alone, fitted(prompts, responses)[:8], atol=1e-6)
    assert fitted([], []).shape == (0,)


def test_units_and_scale_change_the_size_of_a_cost_and_never_its_sign(fitted):
    prompts, responses, *_ = kitchen()
    log_odds = fitted(prompts, responses)
    doubled = TfidfHarm(fitted.folder, scale=2.0)(prompts, responses)
    probability = TfidfHarm(fitted.folder, units="probability")(prompts, responses)
    assert torch.allclose(doubled, 2 * log_odds)
    assert torch.equal(probability > 0, log_odds > 0)
    assert probability.abs().max() < 1
    with pytest.raises(ValueError, match="scale must be > 0"):
        TfidfHarm("anywhere", scale=-1.0)


def test_no_file_of_a_scorer_is_a_pickle(fitted):
    names = sorted(path.name for path in (Path(fitted.folder)).iterdir())
    assert names == ["card.json", "head.safetensors", "idf.safetensors", "vocabulary.json"]
    for name in names:
        with pytest.raises(ValueError, match=r"opcode|pickle"):
            list(pickletools.genops((Path(fitted.folder) / name).read_bytes()))


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        ({"auc": 0.55}, r"AUC of 0\.550, under the minimum_auc of 0\.6"),
        ({}, "no held-out AUC"),
        ({"auc": None}, "no held"),
    ],
)
def test_a_scorer_near_chance_or_of_unknown_worth_is_refused(tmp_path, held_out, message):
    scorer = TfidfHarm(str(tmp_path))
    scorer.fit(*kitchen())
    scorer.save({"held_out": held_out})
    with pytest.raises(ValueError, match=message):
        TfidfHarm(str(tmp_path))(["What?"], ["That."])


def test_a_nan_auc_is_no_auc(tmp_path):
    scorer = TfidfHarm(str(tmp_path))
    scorer.fit(*kitchen())
    scorer.save({"held_out": {"auc": float("nan")}})
    with pytest.raises(ValueError, match="AUC of nan"):
        TfidfHarm(str(tmp_path))(["What?"], ["That."])


def test_a_folder_without_a_card_holds_no_scorer(tmp_path, fitted):
    with pytest.raises(FileNotFoundError, match="fit_scorer"):
        TfidfHarm(str(tmp_path))(["What?"], ["That."])
    with pytest.raises(ValueError, match="is not fitted: call fit"):
        TfidfHarm(str(tmp_path)).save(CARD)


def test_a_folder_of_other_features_is_refused(fitted):
    with pytest.raises(ValueError, match=r"fitted on .*tfidf"):
        HiddenLinearHarm(fitted.folder, TinyLlama(), layer=1)(["What?"], ["That."])


def test_one_label_alone_or_labels_without_a_reason_cannot_be_fitted(tmp_path):
    prompts, responses, _, ids = kitchen()
    with pytest.raises(ValueError, match="both labels"):
        TfidfHarm(str(tmp_path)).fit(prompts, responses, [True] * 96, ids)
    with pytest.raises(ValueError, match="one prompt, response, label"):
        TfidfHarm(str(tmp_path)).fit(prompts, responses, [True], ids)


def test_features_that_say_nothing_of_unseen_texts_are_refused():
    labels = [uniform("coin", i) < 0.5 for i in range(400)]  # their mean is all there is to learn
    with pytest.raises(ValueError, match="do not rank unseen texts"):
        fit_logistic_head(torch.zeros(400, 3, dtype=torch.float64).numpy(), labels, range(400), strength=1.0)


def test_the_threshold_leaves_as_large_a_share_above_it_as_was_labelled_unsafe():
    n = 2000
    signal = torch.tensor([uniform("signal", i) for i in range(n)], dtype=torch.float64)
    rare = [uniform("label", i) < 0.3 * float(signal[i]) for i in range(n)]  # 15 % unsafe, never likelier than not
    head, out_of_fold = fit_logistic_head(signal[:, None].numpy(), rare, range(n), strength=1e3)
    assert float((out_of_fold > head.threshold).double().mean()) == pytest.approx(sum(rare) / n, abs=1e-3)
    fresh = torch.tensor([uniform("fresh", i) for i in range(n)], dtype=torch.float64)
    share = float((head.log_odds(fresh[:, None].numpy()) > head.threshold).double().mean())
    assert share == pytest.approx(0.15, abs=0.03)
    predicted = head.log_odds(fresh[:, None].numpy()).sigmoid()
    assert float(predicted.mean()) == pytest.approx(0.15, abs=0.03)  # calibrated


def test_a_linear_head_on_hidden_states_reads_responses_in_their_context(tmp_path):
    scorer = HiddenLinearHarm(str(tmp_path), TinyLlama(), layer=1, batch_size=5, strength=1.0)
    prompts, responses, unsafe, ids = kitchen()
    scorer.fit(prompts, responses, unsafe, ids)
    costs = scorer(prompts, responses)
    assert ((costs > 0) == torch.tensor(unsafe)).double().mean() > 0.9
    scorer.save(CARD)
    loaded = HiddenLinearHarm(str(tmp_path), TinyLlama(), layer=1, batch_size=96)
    assert torch.equal(loaded(prompts, responses), costs)  # from the kept features: no model is loaded
    assert loaded.features._model is None
    fresh = HiddenLinearHarm(str(tmp_path), TinyLlama(), layer=1, batch_size=96)
    fresh.load()
    fresh.features._means.clear()
    assert torch.allclose(fresh(prompts, responses), costs, atol=1e-3)  # padding changes nothing
    assert torch.isfinite(fresh(["What?"], [""])).all()


def test_hidden_features_are_the_whole_models_states_after_the_layer():
    features = HiddenFeatures(TinyLlama(layers=4), layer=2, maximum_tokens=500)
    read = features._read(["What?"], ["That."])
    ids, start = features._tokens("What?", "That.")
    model = TinyLlama(layers=4).load_model()
    with torch.no_grad():
        hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0, start:]
    assert TinyLlama().load_tokenizer().decode(ids[start:]) == "That."
    assert torch.allclose(read[0], hidden.mean(0), atol=1e-6)


def test_a_layer_that_the_model_lacks_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"layer must lie in 0 \.\.\. 2"):
        HiddenLinearHarm(str(tmp_path), TinyLlama(layers=2), layer=3).fit(*kitchen())


@pytest.mark.parametrize("name", ["tfidf", "hidden_linear"])
def test_a_shipped_scorer_is_a_cost_function_to_the_command_line(name, pytestconfig):
    parser = ArgumentParser(parser_mode="yaml")
    parser.add_function_arguments(_takes_a_cost, sub_configs=True)
    path = pytestconfig.rootpath / "configs" / "scorer" / f"{name}.yaml"
    built = parser.instantiate(parser.parse_args([f"--scorer={path}"]))
    assert isinstance(built.scorer, CostFunction)
    assert built.scorer.minimum_auc == 0.6


def _takes_a_cost(scorer: CostFunction):
    """Nothing.

    Args:
        scorer: A cost function.
    """


def test_the_card_says_what_was_measured(fitted):
    card = json.loads((Path(fitted.folder) / "card.json").read_text(encoding="utf-8"))
    assert card["held_out"] == CARD["held_out"]
    assert card["features"]["kind"] == "tfidf"
