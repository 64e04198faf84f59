"""Tools in conversations: named by a column, called by the assistant, answered by turns of role tool."""

import json

import pytest

from data.annotators.flags import Flags
from data.completion import completion
from data.conversation import plain_text
from data.preparation import prepare
from data.render import Renderer
from data.schema import BadRow, Message, Row
from data.sources.trl import TRL
from data.split import prompt_id, split_key
from data.texts import text_pairs

TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\n' + tools|tojson + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '[CALL]' + c.function.name + c.function.arguments|tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}
USER = {"role": "user", "content": "Rain in Ulm?"}
CHOSEN = [
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "content": "dry"},
    {"role": "assistant", "content": "No."},
]
RECORD = {
    "prompt": [USER],
    "chosen": CHOSEN,
    "rejected": [{"role": "assistant", "content": "Maybe."}],
    "tools": [WEATHER],
}


def only(record, **options):
    (row,) = TRL([record], **options)
    return row


@pytest.mark.parametrize("tools", [[WEATHER], json.dumps([WEATHER]), [{**WEATHER, "strict": None}]])
def test_tools_calls_and_answers_are_rendered_by_the_template_and_the_calls_are_scored(make_tokenizer, tools):
    row, renderer = only(RECORD | {"tools": tools}), Renderer(make_tokenizer(TEMPLATE))
    ids = renderer.prompt("row", row.prompt)
    found = completion(
        renderer, "row", "chosen", row.prompt, ids, *(getattr(row.responses[0], n) for n in ("text", "turns"))
    )
    turns = [USER, {**CHOSEN[0], "content": ""}, *CHOSEN[1:]]
    whole = renderer.tokenizer.apply_chat_template(turns, tools=[WEATHER], tokenize=False)
    assert renderer.tokenizer.decode(ids + found.ids) == whole.rstrip("\n")
    start, end = found.unscored
    assert renderer.tokenizer.decode(found.ids[:start]) == '[CALL]weather{"city": "Ulm"}<|im_end|>'
    assert renderer.tokenizer.decode(found.ids[end:]) == "No.<|im_end|>"
    assert "dry" in renderer.tokenizer.decode(found.ids[start:end])


def test_special_tokens_inside_tools_and_calls_stay_text(make_tokenizer):
    renderer = Renderer(make_tokenizer(TEMPLATE))
    call = {"function": {"name": "f", "arguments": {"x": "<|im_end|>"}}}
    quoting = {**WEATHER, "description": "ends with <|im_end|>"}
    row = only(RECORD | {"tools": [quoting], "chosen": [{"role": "assistant", "tool_calls": [call]}]})
    ids = renderer.prompt("row", row.prompt)
    response = renderer.response("row", "chosen", row.prompt, ids, row.responses[0].turns[0])
    assert ids.count(renderer.stop_id) == 2
    assert response.count(renderer.stop_id) == 1
    assert "<|im_end|>" in renderer.tokenizer.decode(response[:-1])


def test_prompts_with_other_tools_are_other_prompts_of_the_same_split():
    with_tools, without = only(RECORD).prompt, only({**RECORD, "tools": None}).prompt
    assert prompt_id(with_tools) != prompt_id(without)
    assert split_key(with_tools) == split_key(without)
    assert plain_text(with_tools) == plain_text(without) == "Rain in Ulm?"


def test_a_scorer_reads_calls_as_text_and_an_annotated_file_gives_the_same_row():
    row = only(RECORD)
    assert row.responses[0].text.startswith('assistant: [{"type": "function"')
    assert row.responses[0].text.endswith("\n\ntool: dry\n\nassistant: No.")
    source = TRL([RECORD])
    (pair,) = text_pairs(prepare([source], Flags())[0], [source], None)
    chosen, rejected = pair.responses
    again = only(json.loads(json.dumps({"prompt": pair.turns, "chosen": chosen, "rejected": rejected})))
    assert isinstance(again, Row)
    assert (again.prompt, again.responses) == (row.prompt, row.responses)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"tools": "[{"}, "tools: is not JSON"),
        ({"tools": {"name": "f"}}, "tools: is not a list of functions"),
        ({"tools": ["f"]}, "tools: is not a list of functions"),
        ({"prompt": "Rain?", "chosen": "No.", "rejected": "Yes."}, "tools: needs a prompt of turns"),
        ({"prompt": [{**USER, "tool_calls": [CALL]}]}, "prompt[0].tool_calls: belongs to a turn of the assistant"),
        ({"chosen": [{"role": "assistant", "tool_calls": ["f"]}]}, "chosen[0].tool_calls: is not a list of calls"),
        ({"chosen": [{"role": "assistant", "content": ""}]}, "chosen[0].content: is empty"),
        ({"chosen": CHOSEN[:2]}, "chosen: does not end with the assistant"),
        ({"chosen": [CHOSEN[1], CHOSEN[2]]}, "chosen: begins neither with prompt nor with the assistant's answer"),
    ],
)
def test_unusable_tools_and_turns_are_named(changes, fault):
    bad = only(RECORD | changes)
    assert isinstance(bad, BadRow)
    assert f"{bad.column}: {bad.reason}".startswith(fault)


SAID = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
LAST = [Message("assistant", "d"), Message("assistant", "e")]


@pytest.mark.parametrize(
    ("record", "prompt", "chosen"),
    [
        # explicit, several turns
        ({"prompt": SAID[:1], "chosen": [*SAID[1:], LAST[0]], "rejected": [LAST[1]]}, SAID[:1], [*SAID[1:], LAST[0]]),
        # explicit, whole conversations
        (
            {"prompt": SAID[:1], "chosen": [*SAID, LAST[0]], "rejected": [*SAID, LAST[1]]},
            SAID[:1],
            [*SAID[1:], LAST[0]],
        ),
        # implicit: the prompt is what both share, up to a turn of the assistant
        ({"chosen": [*SAID, LAST[0]], "rejected": [*SAID, LAST[1]]}, SAID, [LAST[0]]),
        ({"chosen": [*SAID, LAST[0]], "rejected": [SAID[0], LAST[1]]}, SAID[:1], [*SAID[1:], LAST[0]]),
        (
            {"chosen": [*SAID, LAST[0]], "rejected": [*SAID[:2], Message("user", "other"), LAST[0]]},
            SAID[:1],
            [*SAID[1:], LAST[0]],
        ),
    ],
)
def test_trl_completions_of_several_turns_are_read_in_every_form(record, prompt, chosen):
    row = only({key: [turn.to_dict() for turn in turns] for key, turns in record.items()})
    assert row.prompt == tuple(prompt)
    turns = row.responses[0].turns
    assert turns == (tuple(chosen) if len(chosen) > 1 else ())
    assert row.responses[0].text == plain_text(tuple(chosen))
