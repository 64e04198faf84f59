"""Rows tokenised together have the ids, and the faults, of rows tokenised one by one."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import ByT5Tokenizer

from data import tokeniser as tokeniser_module
from data.batch import BatchRenderer, Item, OneByOne
from data.render import BREAK, Renderer
from data.schema import BadRow, Message, PreferenceRow, SftRow
from data.split import assign
from data.tokeniser import Tokeniser
from data.tokens import to_arrays

KINDS = ["chatml", "system", "bare", "llama", "two_ends", "strict", "none", "rendered", "space_first", "like_llama"]
STRICT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ '<|im_start|>' + m.role + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)

pieces = [
    "a",
    "Red",
    " ",
    "\n",
    "  ",
    "é",
    "<s>",
    "</s>",
    "<|im_end|>",
    "<|im_start|>",
    "assistant",
    "<",
    "\x00",
    "[INST]",
]
texts = st.lists(st.sampled_from([*pieces, BREAK]), max_size=5).map("".join)
turns = st.builds(Message, st.sampled_from(["system", "user", "assistant"]), texts)
prompts = st.one_of(texts, st.lists(turns, min_size=1, max_size=3).map(tuple))
rows = st.lists(st.tuples(prompts, texts, texts), min_size=1, max_size=8)


def make(kind, make_tokenizer, make_llama_tokenizer):
    if kind == "like_llama":
        return Renderer(make_llama_tokenizer())
    template = {"strict": STRICT, "none": "x", "rendered": "chatml", "space_first": "bare"}.get(kind, kind)
    tokenizer = make_tokenizer(template, bos_habit=kind in ("rendered", "llama"), space_first=kind == "space_first")
    if kind == "none":
        tokenizer.chat_template = None
    return Renderer(tokenizer, rendered=kind == "rendered")


def items(drawn):
    return [
        Item(f"row {i}", prompt, (("chosen", a, ()), ("rejected", b, ()))) for i, (prompt, a, b) in enumerate(drawn)
    ]


def outcome(results):
    """Ids of each row, or its fault in words; a row that stops everything is the last."""
    found = []
    try:
        for result in results:
            if isinstance(result, BadRow):
                found.append(str(result))
                continue
            responses = [(list(response.ids), list(response.unscored)) for response in result.responses]
            found.append((list(result.prompt), responses))
    except ValueError as error:
        found.append(repr(error))
    return found


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(drawn=rows, cut=st.integers(1, 8))
def test_rows_have_the_same_ids_and_faults_together_as_one_by_one(
    make_tokenizer, make_llama_tokenizer, kind, drawn, cut
):
    renderer = make(kind, make_tokenizer, make_llama_tokenizer)
    chunks = [items(drawn)[:cut], items(drawn)[cut:]]
    assert outcome(BatchRenderer(renderer)(chunks)) == outcome(OneByOne(renderer)(chunks))


def test_a_slow_tokenizer_is_used_row_by_row():
    renderer = Renderer(ByT5Tokenizer())
    chunks = [items([("Name a colour:", " red", " blue"), ("", "x", "y")])]
    first, second = BatchRenderer(renderer)(chunks)
    assert [bytes(i - 3 for i in response.ids[:-1]) for response in first.responses] == [b" red", b" blue"]
    assert "has no tokens" in str(second)
    assert outcome(BatchRenderer(renderer)(chunks)) == outcome(OneByOne(renderer)(chunks))


@pytest.mark.parametrize(
    "token",
    [
        AddedToken("<|im_start|>assistant\nYes", special=True, normalized=False),
        AddedToken("\n<|im_start|>assistant\nYes", special=True, normalized=False),
        AddedToken("x<|im_start|>", special=False, normalized=False),
        AddedToken("\nYes", special=False, normalized=False),
        AddedToken("Yes", special=False, normalized=False, lstrip=True),
        AddedToken("Yes", special=False, single_word=True),
    ],
    ids=str,
)
def test_added_tokens_that_reach_over_the_end_of_a_prompt_are_found_as_in_the_whole_text(make_tokenizer, token):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([token])
    renderer = Renderer(tokenizer)
    chunk = items([((Message("user", "Is it redx"),), "Yes", "Yes it is"), ("Is it red\n", "Yes", " Yes")])
    assert outcome(BatchRenderer(renderer)([chunk])) == outcome(OneByOne(renderer)([chunk]))


def test_padding_and_truncation_of_an_earlier_caller_change_nothing(make_tokenizer):
    tokenizer = make_tokenizer()
    renderer, chunk = Renderer(tokenizer), items([((Message("user", "Name a colour"),), "Red", "Blue, I think")])
    expected = outcome(OneByOne(renderer)([chunk]))
    batches = BatchRenderer(renderer)
    tokenizer(["long text", "short"], padding=True, truncation=True, max_length=3)
    assert outcome(batches([chunk])) == expected


def test_each_distinct_prompt_and_response_is_encoded_once(renderer, monkeypatch):
    encoded = []
    real = BatchRenderer._encode
    monkeypatch.setattr(BatchRenderer, "_encode", lambda self, texts: encoded.append(texts) or real(self, texts))
    prompt = (Message("user", "Name a colour"),)
    found = list(BatchRenderer(renderer)([items([(prompt, "Red", "Blue"), (prompt, "Blue", "Green")])]))
    assert [len(row.responses) for row in found] == [2, 2]
    ((*texts,),) = encoded
    assert len(texts) == len(set(texts)) == 5  # the prompt, its end, and three responses
    assert sum("Name a colour" in text for text in texts) == 1


def test_the_next_chunk_is_rendered_while_one_is_encoded(renderer, monkeypatch):
    rendered, waited = threading.Event(), []
    real = BatchRenderer._encode

    def slow(self, texts):
        waited.append(rendered.wait(10))
        return real(self, texts)

    monkeypatch.setattr(BatchRenderer, "_encode", slow)

    def chunks():
        yield items([("a", "b", "c")])
        rendered.set()
        yield items([("d", "e", "f")])

    assert len(list(BatchRenderer(renderer)(chunks()))) == 2
    assert waited == [True, True]


def pair(number, prompt, chosen, rejected):
    labels = (0.5, -0.5, (-1.0,), (float("nan"),))
    return PreferenceRow(f"toy:{number}", prompt, chosen, rejected, *labels, "people")


@pytest.mark.parametrize("chunk", [1, 3, 4096])
def test_arrays_and_reports_are_bit_equal_whatever_the_chunk(renderer, monkeypatch, chunk):
    monkeypatch.setattr(tokeniser_module, "CHUNK", chunk)
    prompts = [(Message("user", f"question {i % 4} <|im_start|>" + "x" * 9 * (i % 3)),) for i in range(12)]
    answers = ["yes", "no </s>", "a" * 99, "", "yes " + BREAK, "no"]
    drawn = [pair(i, p, answers[i % 6], answers[(i * 5 + 1) % 6]) for i, p in enumerate(prompts)]
    found = []
    for batches in (OneByOne, BatchRenderer):
        tokeniser = Tokeniser(renderer, 70, "skip", batches)
        arrays, names = to_arrays(tokeniser.pairs(drawn, assign(drawn)))
        found.append((names, tokeniser.report, {k: (a.dtype, a.shape, a.tobytes()) for k, a in arrays.items()}))
    assert found[0] == found[1]
    assert sum(found[0][1].dropped.values()) > 2
    assert sum(found[0][1].cut.values()) > 2
    assert found[0][1].kept > 2


def test_the_first_faulty_row_is_the_one_that_stops(renderer, monkeypatch):
    monkeypatch.setattr(tokeniser_module, "CHUNK", 2)
    ask = (Message("user", "q"),)
    drawn = [SftRow(f"toy:{i}", ask, text) for i, text in enumerate(["a", "b", "c", "", BREAK])]
    with pytest.raises(BadRow, match="row toy:3, column 'response': has no tokens"):
        Tokeniser(renderer, 100).rows(drawn, assign(drawn))


def test_no_rows_give_empty_arrays(renderer):
    pairs = Tokeniser(renderer, 100).pairs([], {})
    assert (pairs.reward.shape, pairs.cost.shape, len(pairs.prompt.values)) == ((0, 2), (0, 2, 1), 0)
    assert pairs.prompt.offsets.tolist() == [0]
    assert pairs.prompt.values.dtype == np.int32
