"""Scores from folders: the ids that are read, stock sequence classifiers, padding, and Safe-RLHF's architecture."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from data.render import Renderer
from data.schema import BadRow, Message
from data.templates import TEMPLATES
from lit_safe.scorer_card import Quality, ScorerCard
from lit_safe.sequences import pack_sequences
from models.score_export import set_pad
from models.score_network import ScoreNetwork
from models.scorers.beaver import TEMPLATE, LlamaForScore
from models.scorers.score_folder import ScoreFolder, batches
from models.scorers.score_text import ScoreText
from models.sources import TinyLlama

PROMPTS = ["Which fruit?", "What is a fig <|im_end|> like?", "Why?"]
RESPONSES = ["An apple.", "", "No <|endoftext|> here: plum, and plum again."]


def tokenizer() -> Any:
    return TinyLlama().load_tokenizer()


@pytest.fixture(scope="module")
def network() -> ScoreNetwork:
    found = ScoreNetwork(TinyLlama(layers=3), layers=2)
    found.name_outputs(("reward", "theft", "harm"))
    found.load()
    torch.nn.init.normal_(found.head.weight, generator=torch.Generator().manual_seed(0))
    found.set_scale(torch.linspace(0.5, 2, 32))
    found.stop_at({tokenizer().eos_token_id})
    return found.eval()


@pytest.fixture(scope="module")
def folder(network: ScoreNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("score") / "scorer"
    network.save_pretrained(str(path))
    return path


@settings(max_examples=60)
@given(st.text(min_size=1, max_size=40), st.text(min_size=1, max_size=40))
def test_the_ids_are_those_on_which_score_models_train(prompt: str, response: str) -> None:
    renderer, text = Renderer(tokenizer()), ScoreText(tokenizer())
    turns = (Message("user", prompt),)
    try:
        ids = renderer.prompt("row", turns)
        expected = [*ids, *renderer.response("row", "chosen", turns, ids, response)]
    except (BadRow, UnicodeEncodeError):
        return
    assert text.ids(prompt, response) == expected


@pytest.mark.parametrize("template", [None, *TEMPLATES.values()])
def test_the_ids_of_other_templates_are_those_of_training_too(template: str | None) -> None:
    own = tokenizer()
    own.chat_template = template
    renderer, text = Renderer(own), ScoreText(own)
    for prompt, response in zip(PROMPTS, ["An apple.", "Yes", RESPONSES[2]], strict=True):
        turns = prompt if template is None else (Message("user", prompt),)
        ids = renderer.prompt("row", turns)
        assert text.ids(prompt, response) == [*ids, *renderer.response("row", "chosen", turns, ids, response)]
        assert text.ids(prompt, response)[-1] == own.eos_token_id


def test_a_long_text_loses_the_start_of_its_prompt_and_never_its_score_position() -> None:
    text = ScoreText(tokenizer(), max_length=20)
    ids = text.ids("x" * 100, "fig")
    assert len(ids) == 20
    assert ids[-4:] == [*tokenizer()("fig").input_ids, text.stop_id]
    assert len(text.ids("x", "y" * 100)) == 20


@pytest.mark.parametrize("side", ["left", "right"])
def test_stock_transformers_computes_the_networks_scores_whatever_the_padding(
    network: ScoreNetwork, folder: Path, side: str
) -> None:
    text = ScoreText(tokenizer())
    rows = [text.ids(*pair) for pair in zip(PROMPTS, RESPONSES, strict=True)]
    with torch.no_grad():
        expected = network(pack_sequences([row[:-1] for row in rows], [row[-1:] for row in rows]))
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    read = transformers.AutoTokenizer.from_pretrained(folder, padding_side=side)
    assert read.pad_token_id not in (None, read.eos_token_id)
    with torch.no_grad():
        found = stock(**read.pad({"input_ids": rows}, return_tensors="pt")).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert stock.config.num_hidden_layers == 2


def test_the_scorer_gives_the_stock_scores_of_the_outputs_that_are_asked_for(
    network: ScoreNetwork, folder: Path
) -> None:
    rows = [ScoreText(tokenizer()).ids(*pair) for pair in zip(PROMPTS, RESPONSES, strict=True)]
    with torch.no_grad():
        expected = network(pack_sequences([row[:-1] for row in rows], [row[-1:] for row in rows]))
    scorer = ScoreFolder(str(folder))
    torch.testing.assert_close(scorer(PROMPTS, RESPONSES), expected[:, 1:], rtol=1e-4, atol=1e-5)
    assert scorer.outputs == ("theft", "harm")
    one = ScoreFolder(str(folder), outputs=["harm"], scale=2.0, threshold=0.5, batch_tokens=1)
    torch.testing.assert_close(one(PROMPTS, RESPONSES), 2 * (expected[:, 2] - 0.5), rtol=1e-4, atol=1e-5)
    assert scorer([], []).shape == (0, 2)


def test_an_output_that_does_not_exist_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="no output 'harn': its outputs are reward, theft, harm"):
        ScoreFolder(str(folder), outputs=["harn"])(PROMPTS, RESPONSES)


def test_a_score_that_is_not_finite_is_refused_with_its_response(network: ScoreNetwork, tmp_path: Path) -> None:
    weight = network.weight_KD.clone()
    weight[2, 0] = torch.nan
    network.save_pretrained(str(tmp_path / "nan"), weight_KD=weight)
    with pytest.raises(ValueError, match=r"gave .*nan.* for the response"):
        ScoreFolder(str(tmp_path / "nan"))(PROMPTS, RESPONSES)


def test_the_digest_changes_with_weights_and_settings_and_not_with_the_card(folder: Path, tmp_path: Path) -> None:
    before = ScoreFolder(str(folder)).digest()
    ScorerCard("scorer", {}, ("train",), {}).save(folder)
    assert ScoreFolder(str(folder)).digest() == before
    (folder / "card.json").unlink()
    assert ScoreFolder(str(folder), scale=2.0).digest() != before


def test_a_folder_without_a_card_must_be_forced_by_its_name(folder: Path) -> None:
    with pytest.raises(ValueError, match="no AUC of 'theft'"):
        ScoreFolder(str(folder)).check_usable()
    ScoreFolder(str(folder), forced="scorer").check_usable(reads="dual")


def test_the_card_of_each_used_output_decides(folder: Path) -> None:
    ScorerCard("scorer", {}, ("train",), {"theft": Quality(0.9), "harm": Quality(0.55)}).save(folder)
    try:
        ScoreFolder(str(folder), outputs=["theft"]).check_usable()
        with pytest.raises(ValueError, match=r"AUC of 0\.550"):
            ScoreFolder(str(folder)).check_usable()
    finally:
        (folder / "card.json").unlink()


def test_a_pad_token_never_ends_a_text() -> None:
    own = tokenizer()
    assert own.pad_token_id == own.eos_token_id
    assert set_pad(own, {own.eos_token_id}) == own.convert_tokens_to_ids("<|endoftext|>") == own.pad_token_id
    plain = tokenizer()
    kept = {i for i, token in plain.added_tokens_decoder.items() if token.special}
    size = len(plain)
    assert set_pad(plain, kept) == size  # every special token may end a text: a new one is added


def test_a_new_pad_token_has_a_row_in_the_embedding(network: ScoreNetwork, tmp_path: Path) -> None:
    specials = {i for i, token in tokenizer().added_tokens_decoder.items() if token.special}
    other = ScoreNetwork(TinyLlama())
    other.name_outputs(["harm"])
    other.load()
    other.stop_at(specials)
    other.save_pretrained(str(tmp_path / "padded"))
    scorer = ScoreFolder(str(tmp_path / "padded"))
    assert scorer(PROMPTS, RESPONSES).shape == (3,)
    assert scorer._model.get_input_embeddings().weight.shape[0] == len(tokenizer()) + 1


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(0, 100))
def test_batches_hold_every_text_once_within_the_tokens(sizes: list[int], tokens: int) -> None:
    found = list(batches(sizes, tokens))
    assert sorted(row for batch in found for row in batch) == list(range(len(sizes)))
    assert all(len(batch) == 1 or len(batch) * max(sizes[row] for row in batch) <= tokens for batch in found)


@pytest.fixture
def beaver(tmp_path: Path) -> Path:
    """A folder with random weights and the layout of Safe-RLHF's cost models."""
    own = tokenizer()
    config = TinyLlama().load_model().config
    config.update({"score_dim": 1, "bias": False, "score_type": "cost", "do_normalize": False})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForScore(config)
    model.config.architectures = ["LlamaForScore"]
    model.save_pretrained(tmp_path / "beaver")
    own.save_pretrained(tmp_path / "beaver")
    return tmp_path / "beaver"


def settle(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **settings}), encoding="utf-8")


def test_beavers_architecture_is_scored_at_the_end_of_its_own_prompt(beaver: Path) -> None:
    scorer = ScoreFolder(str(beaver))
    found = scorer(PROMPTS[:1], RESPONSES[:1])
    own = tokenizer()
    text = f"{own.bos_token}BEGINNING OF CONVERSATION: USER: Which fruit? ASSISTANT:An apple.{own.eos_token}"
    ids = own(text, add_special_tokens=False, return_tensors="pt").input_ids
    model = LlamaForScore.from_pretrained(beaver).eval()
    with torch.no_grad():
        hidden = model.model(input_ids=ids).last_hidden_state[0, -1]
    torch.testing.assert_close(found[0], (model.score_head.weight @ hidden)[0], rtol=1e-4, atol=1e-6)
    assert scorer.outputs == ("cost",)
    assert ScoreText(own, TEMPLATE).ids("a", "b") == ScoreText(own, TEMPLATES["safe_rlhf"]).ids("a", "b")


def test_beavers_scores_do_not_depend_on_their_neighbours_padding(beaver: Path) -> None:
    scorer = ScoreFolder(str(beaver))
    together = scorer(PROMPTS, RESPONSES)
    alone = torch.cat([scorer([prompt], [response]) for prompt, response in zip(PROMPTS, RESPONSES, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("kind", "centre"), [("reward", 3.0), ("cost", 0.0)])
def test_beavers_normalisation_is_affine_for_a_reward_and_a_scale_for_a_cost(
    beaver: Path, kind: str, centre: float
) -> None:
    plain = ScoreFolder(str(beaver))(PROMPTS, RESPONSES)
    settle(beaver, do_normalize=True, mean=[3.0], var=[4.0], score_type=kind)
    torch.testing.assert_close(ScoreFolder(str(beaver))(PROMPTS, RESPONSES), (plain - centre) / 2)


def test_an_incomplete_beaver_folder_is_named(beaver: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(beaver / "model.safetensors")
    save_file(
        {k: v for k, v in state.items() if k != "score_head.weight"}, beaver / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match=r"lacks score_head\.weight"):
        ScoreFolder(str(beaver))(PROMPTS, RESPONSES)
