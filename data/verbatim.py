"""Renders a chat template that copies contents verbatim, without running it for every conversation.

Most ChatML templates put each turn's content between texts that depend on roles and positions alone. Such a template
runs once for each sequence of roles, with placeholders, and contents then take the placeholders' places. A template is
treated so only if its syntax tree shows that nothing but its output reads a content: no filter, test, condition,
assignment, macro or call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from jinja2 import Environment, TemplateSyntaxError, nodes

MARK = "\ue0f1"
PLACEHOLDER = re.compile(f"{MARK}(\\d+){MARK}")
JOINS = (nodes.Add, nodes.Concat)  # what may be done to a content on its way into the output
BODIES = (nodes.Template, nodes.For, nodes.If)  # statements that leave the output inside them as it is
KEYS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content"})  # no method of a dict
LOOP = frozenset({"first", "last", "index", "index0", "revindex", "revindex0", "length"})  # none of them is a turn

Turns = list[dict[str, str]]
Render = Callable[[list[Turns]], list[str]]


class Verbatim:
    """Renders conversations with a template for which ``copies_contents`` holds.

    Args:
        render: Runs the template on conversations. It raises jinja2's TemplateError where the template refuses one.
    """

    def __init__(self, render: Render) -> None:
        self._run = render
        self._pieces: dict[tuple[str, ...], list[str]] = {}

    def __call__(self, conversations: Sequence[Turns]) -> list[str]:
        """Every conversation as text. Raises what ``render`` raises."""
        return [self._render(turns) for turns in conversations]

    def _render(self, turns: Turns) -> str:
        roles = tuple(turn["role"] for turn in turns)
        if roles not in self._pieces:
            marked = [{"role": role, "content": f"{MARK}{i}{MARK}"} for i, role in enumerate(roles)]
            self._pieces[roles] = PLACEHOLDER.split(self._run([marked])[0])  # texts, with turns' numbers between them
        pieces = self._pieces[roles]
        return "".join(turns[int(piece)]["content"] if i % 2 else piece for i, piece in enumerate(pieces))


def copies_contents(template: str) -> bool:
    """Whether the template's output depends on contents only by copies of them."""
    if MARK in template:
        return False
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except TemplateSyntaxError:
        return False
    loops = [loop for loop in tree.find_all(nodes.For) if any(name.name == "messages" for name in _names(loop.iter))]
    turns = {name.name for loop in loops for name in _names(loop.target)}
    return _fine(tree, (), turns)


def _names(tree: nodes.Node) -> list[nodes.Name]:
    return [*([tree] if isinstance(tree, nodes.Name) else []), *tree.find_all(nodes.Name)]


def _fine(node: nodes.Node, above: tuple[nodes.Node, ...], turns: set[str]) -> bool:
    """Whether ``node``, inside the nodes ``above`` (outermost first), reads contents in the output alone."""
    parent = above[-1] if above else None
    if isinstance(node, nodes.Name) and node.ctx == "load":
        if node.name in turns and _key(parent) not in KEYS:
            return False  # a turn is used as a whole
        if node.name == "messages" and not _read_in_part(node, parent):
            return False
        if node.name == "loop" and not (isinstance(parent, nodes.Getattr) and parent.attr in LOOP):
            return False
        if node.name in {"self", "caller", "varargs", "kwargs"}:
            return False
    if isinstance(node, nodes.Getitem) and _is(node.node, "messages") and not _position(node, parent):
        return False
    if _key(node) == "content" and not _in_output(above):
        return False
    return all(_fine(child, (*above, node), turns) for child in node.iter_child_nodes())


def _is(node: nodes.Node, name: str) -> bool:
    return isinstance(node, nodes.Name) and node.name == name


def _key(node: nodes.Node | None) -> str | None:
    """The constant key that a node reads from a mapping, or None."""
    if isinstance(node, nodes.Getattr):
        return node.attr
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
        return node.arg.value
    return None


def _read_in_part(messages: nodes.Name, parent: nodes.Node | None) -> bool:
    """Whether a loop runs over ``messages``, or one of them or a part of them is taken."""
    return (isinstance(parent, nodes.Getitem) and parent.node is messages) or (
        isinstance(parent, nodes.For) and parent.iter is messages
    )


def _position(node: nodes.Getitem, parent: nodes.Node | None) -> bool:
    """Whether ``messages[...]`` is one turn of which a constant key is read, or a part that a loop runs over."""
    if isinstance(node.arg, nodes.Slice):
        return isinstance(parent, nodes.For) and parent.iter is node
    return _key(parent) in KEYS


def _in_output(above: tuple[nodes.Node, ...]) -> bool:
    """Whether only joins stand between a content and the output, and only plain bodies around the output."""
    rest = list(above)
    while rest and isinstance(rest[-1], JOINS):
        rest.pop()
    return bool(rest) and isinstance(rest.pop(), nodes.Output) and all(isinstance(node, BODIES) for node in rest)
