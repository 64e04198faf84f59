"""Named chat templates for tokenizers without one. Each ends an answer with the tokenizer's eos token."""

from __future__ import annotations

from pathlib import Path

_TWO_ROLES = (
    "{{% for message in messages %}}"
    "{{% if message.role == 'user' %}}{{{{ {user!r} + message.content + {after_user!r} }}}}"
    "{{% elif message.role == 'assistant' %}}{{{{ {assistant!r} + {space!r} + message.content + eos_token }}}}"
    "{{% else %}}{{{{ raise_exception('it has no place for a turn of role ' + message.role) }}}}{{% endif %}}"
    "{{% endfor %}}{{% if add_generation_prompt %}}{{{{ {assistant!r} }}}}{{% endif %}}"
)

TEMPLATES: dict[str, str] = {
    # Safe-RLHF (Dai et al. 2023, arXiv:2310.12773, and its code); PKU's models and the papers' runs use it
    "safe_rlhf": "{{ bos_token }}{{ 'BEGINNING OF CONVERSATION: ' }}"
    + _TWO_ROLES.format(user="USER: ", after_user=" ", assistant="ASSISTANT:", space=""),
    # HH-RLHF's transcripts (Bai et al. 2022, arXiv:2204.05862)
    "human_assistant": "{{ bos_token }}"
    + _TWO_ROLES.format(user="\n\nHuman: ", after_user="", assistant="\n\nAssistant:", space=" "),
}


def template_text(name: str) -> str:
    """A named template, or the text of a ``.jinja`` file.

    Raises:
        ValueError: ``name`` is neither.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    path = Path(name).expanduser()
    if path.suffix != ".jinja":
        raise ValueError(f"template: {name!r} is not one of {', '.join(TEMPLATES)}, nor a file that ends in .jinja")
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"template: {name}: {error}") from error
