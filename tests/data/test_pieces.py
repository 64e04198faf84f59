"""A text has the ids of its pieces, end to end, for the tokenizers of which ``encodes_pieces`` says so."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from data import pieces as pieces_module
from data.pieces import GPT2, KNOWN, PIECE, Pieces, encodes_pieces

CORPUS = [
    "the dog's bone, and the cat.",
    "It is 12:30; isn't it?",
    "x = f(a, b)   # why\n\n\tnot\r\n",
    "    é ü 中文    ",
] * 9
LETTERS = "abIs's.,:;!?  \n\r\t\x1c\x85  '\"-(=#1290éß中‘😀\u0301\u0338KĿ"  # noqa: RUF001  # such letters are the point
TEXT = st.text(st.sampled_from(LETTERS), max_size=24)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split(pattern, behavior="isolated", **options):
    return pre_tokenizers.Split(Regex(pattern), behavior, **options)


SPLITTERS = {
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm2": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    **{f"known {i}": pre_tokenizers.Sequence([split(known), BYTES]) for i, known in enumerate(sorted(KNOWN))},
}


def made(splitter, normalizer=None, model=None, tokens=("<|im_end|>",), **options):
    backend = Tokenizer(model or models.BPE())
    backend.pre_tokenizer, backend.decoder = splitter, decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    if model is None:
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
        backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens([AddedToken(token, normalized=False, **options) for token in tokens])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=tokens[0])


MADE = {name: made(splitter) for name, splitter in SPLITTERS.items()}
MADE["qwen2"] = made(SPLITTERS["known 1"], normalizers.NFC())


@pytest.mark.parametrize("name", MADE)
@settings(max_examples=30)
@given(texts=st.lists(st.lists(st.one_of(TEXT, st.sampled_from([*CORPUS, "<|im_end|>"]))).map("".join), max_size=4))
def test_texts_have_the_ids_that_the_tokenizer_gives_them(name, texts):
    tokenizer = MADE[name]
    assert encodes_pieces(tokenizer)
    encode = Pieces(tokenizer.backend_tokenizer)
    for _ in range(2):  # nothing is remembered yet; everything is
        ids, bounds = encode(texts)
        found = [ids[a:b].tolist() for a, b in pairwise(bounds.tolist())]
        assert found == [tokenizer(text, add_special_tokens=False).input_ids for text in texts]


def test_a_piece_is_mostly_a_word():
    text = "Don't you say (no), or 1 a? See e.g. here.\n\nNew  line."
    words = ["Don't", " you", " say (no),", " or 1", " a", "?", " See", " e", ".g", ".", " here"]
    assert PIECE.findall(text) == [*words, ".\n\nNew  line", "."]


def test_a_piece_is_encoded_once_until_too_much_is_remembered(monkeypatch):
    tokenizer, seen = MADE["gpt2"], []

    class Backend:
        def encode_batch_fast(self, texts, add_special_tokens):
            seen.extend(texts)
            return tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)

    encode = Pieces(Backend())
    first = encode(["the dog and the dog", "and"])
    again = encode(["and the dog"])
    assert seen == ["the", " dog", " and", " the", "and"]
    assert again.ids.tolist() == tokenizer("and the dog").input_ids
    monkeypatch.setattr(pieces_module, "REMEMBERED", 4)
    assert encode(["the dog and the dog", "and"]).ids.tolist() == first.ids.tolist()
    assert len(seen) == 10


def test_no_texts_and_empty_texts_have_no_ids():
    for texts in ([], ["", ""]):
        ids, bounds = Pieces(MADE["gpt2"].backend_tokenizer)(texts)
        assert (ids.tolist(), bounds.tolist()) == ([], [0] * (len(texts) + 1))


OTHERS = {
    "a space before every text": made(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "bytes without words": made(BYTES),
    "an unknown expression": made(pre_tokenizers.Sequence([split(GPT2 + "|x"), BYTES])),
    "spaces are removed": made(pre_tokenizers.Sequence([split(GPT2, "removed"), BYTES])),
    "the other way round": made(pre_tokenizers.Sequence([split(GPT2, invert=True), BYTES])),
    "bytes before words": made(pre_tokenizers.Sequence([BYTES, split(GPT2)])),
    "words at spaces": made(pre_tokenizers.Whitespace()),
    "another normal form": made(SPLITTERS["gpt2"], normalizers.NFKC()),
    "no words": made(SPLITTERS["gpt2"], model=models.WordLevel({"a": 0}, "a")),
    "merges by chance": made(SPLITTERS["gpt2"], model=models.BPE({"a": 0}, [], dropout=0.5)),
    "a token that takes spaces": made(SPLITTERS["gpt2"], rstrip=True),
    "a token that is a word": made(SPLITTERS["gpt2"], single_word=True),
    "a token with a space": made(SPLITTERS["gpt2"], tokens=("end of",)),
    "a token with a full stop": made(SPLITTERS["gpt2"], tokens=("e.g.",)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_tokenizers_encode_whole_texts(name):
    assert not encodes_pieces(OTHERS[name])


def test_a_tokenizer_without_splits_encodes_whole_texts():
    backend = Tokenizer(models.BPE())
    assert not encodes_pieces(PreTrainedTokenizerFast(tokenizer_object=backend))
