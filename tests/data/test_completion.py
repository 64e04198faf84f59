"""Responses of several turns: the assistant's turns are scored, the turns between them are not."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.completion import Completion, completion
from data.pack import pack_pairs
from data.render import Renderer
from data.schema import BadRow, Message, PreferenceRow, SftRow
from data.sft import SftData
from data.split import assign
from data.tokeniser import Tokeniser
from lit_safe.sequences import pack_sequences
from lit_safe.types import IGNORE

ASK = (Message("user", "Name a colour"),)
TALK = (Message("assistant", "Red."), Message("user", "Another."), Message("assistant", "Blue, I think."))
STRIPPING = (  # as templates that remove the reasoning of earlier turns
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{{ m.content.split('.')[-1] if m.role == 'assistant' and not loop.last else m.content }}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def of(renderer, turns, prompt=ASK):
    ids = renderer.prompt("row", prompt)
    return ids, completion(renderer, "row", "chosen", prompt, ids, "", turns)


def parts(found):
    """The scored and the unscored parts of a completion, as lists of ids."""
    edges = [0, *found.unscored, len(found.ids)]
    spans = [found.ids[a:b] for a, b in itertools.pairwise(edges)]
    return spans[::2], spans[1::2]


@pytest.mark.parametrize("template", ["chatml", "system", "llama", "two_ends"])
def test_the_assistants_turns_are_scored_each_to_its_one_stop_token(make_tokenizer, template):
    renderer = Renderer(make_tokenizer(template))
    scored, between = parts(of(renderer, TALK)[1])
    texts = [renderer.tokenizer.decode(ids).strip() for ids in scored]
    stop = renderer.tokenizer.decode([renderer.stop_id])
    assert [text.removesuffix(stop).strip() for text in texts] == ["Red.", "Blue, I think."]
    assert [ids.count(renderer.stop_id) for ids in scored] == [1, 1]
    assert [ids[-1] for ids in scored] == [renderer.stop_id] * 2
    assert len(between) == 1
    assert "Another." in renderer.tokenizer.decode(between[0])


def test_prompt_and_completion_are_the_rendered_conversation_up_to_its_last_stop_token(renderer):
    prompt, found = of(renderer, TALK)
    turns = [turn.to_dict() for turn in (*ASK, *TALK)]
    whole = renderer.tokenizer.apply_chat_template(turns, tokenize=False)
    assert renderer.tokenizer.decode(prompt + found.ids) == whole.rstrip("\n")


def test_the_last_turn_has_the_ids_of_one_response_to_everything_before_it(renderer):
    prompt, found = of(renderer, TALK)
    before = (*ASK, *TALK[:2])
    context = renderer.prompt("row", before)
    last = renderer.response("row", "chosen", before, context, "Blue, I think.")
    assert prompt + found.ids == context + last
    assert parts(found)[0][-1] == last


def test_one_turn_is_one_response(renderer):
    ids = renderer.prompt("row", ASK)
    one = completion(renderer, "row", "chosen", ASK, ids, "Red.", (Message("assistant", "Red."),))
    assert one == completion(renderer, "row", "chosen", ASK, ids, "Red.") == Completion(one.ids, [])


@pytest.mark.parametrize("template", [STRIPPING, "bare"])
def test_a_template_that_changes_or_does_not_end_an_earlier_turn_is_refused_with_the_column(make_tokenizer, template):
    renderer = Renderer(make_tokenizer(template))
    turns = (Message("assistant", "Hm. Red"), *TALK[1:])
    with pytest.raises(BadRow, match=r"row row, column 'chosen': has a turn that the chat template changes, or does"):
        of(renderer, turns)


def test_turns_after_a_plain_prompt_are_refused(renderer):
    with pytest.raises(BadRow, match="its prompt is plain text"):
        completion(renderer, "row", "chosen", "The sky", renderer.prompt("row", "The sky"), "", TALK)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=4), st.integers(1, 30))
def test_a_cut_keeps_the_beginning_and_ends_with_a_scored_token(lengths, size):
    marks = list(itertools.chain.from_iterable([True] * scored + [False] * context for scored, context in lengths))
    while not marks[-1]:
        marks.pop()
    edges = [i for i in range(1, len(marks)) if marks[i] != marks[i - 1]]
    whole = Completion(list(range(len(marks))), edges)
    cut = whole.cut(size)
    assert cut.ids == whole.ids[: len(cut.ids)]
    kept = marks[: len(cut.ids)]
    assert kept[-1]
    assert len(kept) <= size
    assert not any(marks[len(kept) : size]), "only unscored tokens are left out beyond the size"
    assert cut.unscored == [edge for edge in edges if edge < len(kept)]


@given(st.lists(st.tuples(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(1, 3)), min_size=1, max_size=4))
def test_no_unscored_position_is_a_target_when_packed(rows):
    prompts = [[7] * size for _, size in rows]
    responses = [list(range(len(marks))) for marks, _ in rows]
    places = [[i for i in range(len(m) + 1) if (i < len(m) and m[i]) != (i > 0 and m[i - 1])] for m, _ in rows]
    packed = pack_sequences(prompts, responses, places)
    plain = pack_sequences(prompts, responses)
    assert packed.input_ids.equal(plain.input_ids)
    expected = [
        [IGNORE] * (size - 1) + [IGNORE if out else i for i, out in enumerate(m)] + [IGNORE] for m, size in rows
    ]
    assert packed.target.tolist() == list(itertools.chain(*expected))


def pair(chosen, rejected, number=0):
    texts = ["\n".join(turn.content for turn in turns) for turns in (chosen, rejected)]
    labels = (0.5, -0.5, (-1.0,), (1.0,))
    return PreferenceRow(f"toy:{number}", ASK, *texts, *labels, "people", turns=(chosen, rejected))


def packed(renderer, rows, max_length=300):
    tokeniser = Tokeniser(renderer, max_length)
    pairs = tokeniser.pairs(rows, assign(rows))
    return pack_pairs(pairs, np.arange(len(pairs.name)), 1, len(rows), 0), tokeniser.report


def scored_text(renderer, batch, number):
    start, end = batch.sequences.cu_seqlens[number : number + 2].tolist()
    target = batch.sequences.target[start:end]
    return renderer.tokenizer.decode(target[target != IGNORE])


def test_a_batch_scores_the_assistants_turns_and_counts_their_tokens(renderer):
    batch, _ = packed(renderer, [pair(TALK, (*TALK[:2], Message("assistant", "No.")))])
    assert scored_text(renderer, batch, 0) == "Red.<|im_end|>Blue, I think.<|im_end|>"
    assert scored_text(renderer, batch, 1) == "Red.<|im_end|>No.<|im_end|>"
    assert batch.response_length.chosen.tolist() == [4 + 1 + 14 + 1, 0]
    assert batch.response_length.rejected.tolist() == [4 + 1 + 3 + 1, 0]


@pytest.mark.parametrize("pad", ["<|im_end|>", "</s>"])
def test_the_pad_token_decides_nothing_even_if_it_is_the_stop_token(make_tokenizer, pad):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = pad
    batch, _ = packed(Renderer(tokenizer), [pair(TALK, TALK[:1])])
    stops = batch.sequences.target == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert int(stops.sum()) == 3


def test_a_cut_in_the_users_turn_leaves_the_turn_before_it_whole(renderer):
    prompt, found = of(renderer, TALK)
    room = found.unscored[0] + 3  # reaches three tokens into the user's turn
    batch, report = packed(renderer, [pair(TALK, (Message("assistant", "No."),))], renderer.opening + room)
    assert scored_text(renderer, batch, 0) == "Red.<|im_end|>"
    assert report.cut["a response cut (no stop token is scored there)"] == 1
    assert len(prompt) > renderer.opening


def test_fine_tuning_scores_and_counts_the_assistants_turns(renderer):
    class Rows:
        licence = "CC0"

        def describe(self):
            return {}

        def __iter__(self):
            return iter([SftRow("toy:0", ASK, "Red. Another. Blue.", turns=TALK)])

    data = SftData([Rows()], held_out=False, max_length=300)
    data._tokenizer = renderer.tokenizer
    data.setup()
    ((batch,),) = data.train_dataloader()
    assert scored_text(renderer, batch, 0) == "Red.<|im_end|>Blue, I think.<|im_end|>"
    assert batch.tokens_in_step == 20
    assert int((batch.sequences.target != IGNORE).sum()) == 20
    assert isinstance(batch.tokens_in_step, torch.Tensor)
