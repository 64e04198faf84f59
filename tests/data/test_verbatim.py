"""A chat template that copies contents gives the same text from pieces as when it runs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError

from data.render import Renderer
from data.templates import TEMPLATES
from data.verbatim import MARK, Verbatim, copies_contents

COPYING = (
    {name: name for name in ("chatml", "system", "bare", "two_ends")}
    | TEMPLATES
    | {
        "first": "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}Be kind. {% endif %}"
        "{{ '<' ~ m['role'] ~ '>' ~ m['content'] }}{% if not loop.last %};{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}",
        "twice": "{% for m in messages %}{{ m.content + m.role + m.content }}{% endfor %}",
        "part": "{{ messages[0].content }}{% for m in messages[1:] %}{% if m.role == 'user' %}{{ m.content }}"
        "{% endif %}{% endfor %}",
    }
)
READING = [
    "{% for m in messages %}{{ m.content|trim }}{% endfor %}",
    "{% for m in messages %}{% if m.content %}{{ m.content }}{% endif %}{% endfor %}",
    "{% for m in messages %}{{ 'x' if m.content == 'a' else 'y' }}{% endfor %}",
    "{% for m in messages %}{% set c = m.content %}{{ c|trim }}{% endfor %}",
    "{% set turn = messages[0] %}{{ turn.content|trim }}",
    "{{ messages|tojson }}",
    "{% for m in messages %}{{ m }}{% endfor %}",
    "{% for m in messages %}{{ m['con' ~ 'tent']|trim }}{% endfor %}",
    "{% for m in messages %}{{ m.get('content')|trim }}{% endfor %}",
    "{% for k, v in messages[0].items() %}{{ v|trim }}{% endfor %}",
    "{% for m in messages %}{% for k in m %}{{ m[k]|trim }}{% endfor %}{% endfor %}",
    "{% for m in messages %}{% for c in m.content %}{{ c|upper }}{% endfor %}{% endfor %}",
    "{% for m in messages if m.content %}{{ m.role }}{% endfor %}",
    "{% for m in messages|reverse %}{{ m.content }}{% endfor %}",
    "{% for m in [messages[0]] %}{{ m.content|trim }}{% endfor %}",
    "{% for m in messages %}{{ m.content[:3] }}{% endfor %}",
    "{% for m in messages %}{{ m.content * 2 }}{% endfor %}",
    "{% for m in messages %}{{ loop.previtem.content|trim if loop.previtem else '' }}{% endfor %}",
    "{% filter upper %}{% for m in messages %}{{ m.content }}{% endfor %}{% endfilter %}",
    "{% macro f(m) %}{{ m.content }}{% endmacro %}{% for m in messages %}{{ f(m)|trim }}{% endfor %}",
    "{% with m = messages[0] %}{{ m.content|trim }}{% endwith %}",
    "{% set text %}{{ messages[0].content }}{% endset %}{{ text|trim }}",
    "{{ messages[0].content.split('a')[0] }}",
    "{{ {'a': 1}[messages] }}",
    "{{ unclosed",
    MARK + "{{ messages[0].content }}",
]

contents = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
conversations = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), contents), min_size=1, max_size=4)


def run(tokenizer, turns, opened):
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=opened)
    except TemplateError as error:
        return repr(error)


@pytest.mark.parametrize("name", COPYING)
@settings(max_examples=30)
@given(drawn=conversations, opened=st.booleans())
def test_pieces_give_what_the_template_gives(make_tokenizer, name, drawn, opened):
    tokenizer = make_tokenizer(COPYING[name])
    assert copies_contents(tokenizer.chat_template)
    turns = [{"role": role, "content": content} for role, content in drawn]

    def render(several):
        return [tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=opened) for one in several]

    try:
        found = Verbatim(render)([turns, turns])
    except TemplateError as error:
        found = [repr(error)] * 2
    assert found == [run(tokenizer, turns, opened)] * 2


@pytest.mark.parametrize("template", READING)
def test_a_template_that_reads_a_content_is_run_for_every_conversation(template):
    assert not copies_contents(template)


def test_a_template_runs_once_for_each_sequence_of_roles(make_tokenizer):
    ran = []
    renderer = Renderer(make_tokenizer())

    def render(several):
        ran.extend(several)
        return renderer.render(several, opened=True)

    verbatim = Verbatim(render)
    texts = verbatim([[{"role": "user", "content": text}] for text in ("Hello", "\\1 {{ 1 }}", f"{MARK}0{MARK}")])
    assert len(ran) == 1
    assert texts[1:] == [texts[0].replace("Hello", text) for text in ("\\1 {{ 1 }}", f"{MARK}0{MARK}")]
