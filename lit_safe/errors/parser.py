"""An argument parser with short errors: the mistake, its flag or line of YAML, and a correct alternative."""

import argparse
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lit_safe.errors import names
from lit_safe.errors.message import Message, shows_tracebacks
from lit_safe.errors.places import Words
from lit_safe.errors.tree import Problem, read, without_retries
from lit_safe.errors.values import class_path_message, value_message

OF_FIT = {"ckpt_path", "weights_only"}
"""Keys of ``fit`` alone that the config.yaml of a run holds, as null. Every command reads such a file."""


class SafeParser(LightningArgumentParser):
    """LightningCLI's parser, without usage text in errors. Options cannot be abbreviated."""

    typed: Sequence[str] = ()
    """The words that the outermost parser received."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """Parse words as jsonargparse does."""
        words = sys.argv[1:] if args is None else list(args)
        for parser in (self, *self._commands().values()):
            parser.typed = words
        try:
            found = super().parse_args(args, *rest, **kwargs)
        except (UnicodeDecodeError, OSError, RecursionError) as error:  # from a YAML file
            message = Words(words).unreadable()
            if message is None:
                raise
            self._end(message, error)
        self._refuse_empty_unknown(Words(words))
        return found

    def _refuse_empty_unknown(self, words: Words) -> None:
        """Refuse a group that is unknown and empty, such as ``modle: {}``. jsonargparse passes over it."""
        flags = [flag for parser in (self, *self._commands().values()) for flag in parser.flags(Words(()))]
        known = {flag.lstrip("-").partition(".")[0] for flag in flags} | {*self._commands()} | OF_FIT
        for key in words.empty_groups():
            if key not in known:
                self._end(_unknown_key(key, self, words), None)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the mistake and exit with status 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        self._end(condense(without_retries(message, ex), self), ex)

    def _end(self, message: Message, cause: Exception | None) -> NoReturn:
        if shows_tracebacks() and cause is not None:
            traceback.print_exception(cause)
        sys.stderr.write(f"{message}\n")
        self.exit(message.status)

    def _commands(self) -> dict[str, Any]:
        action = self._subcommands_action
        return {} if action is None else dict(action._name_parser_map)

    def flags(self, words: Words) -> list[str]:
        """All options of this parser, and the keys in the YAML files, as options of the selected classes."""
        own = [flag for action in self._actions for flag in action.option_strings if re.fullmatch(r"--[\w.]+", flag)]
        return [
            *own,
            *("--" + ".".join(setting.keys) for setting in words.settings() if not setting.place.startswith("-")),
        ]


def condense(message: str, parser: SafeParser) -> Message:
    """The short form of a parser's message.

    Args:
        message: jsonargparse's message.
        parser: The parser that raised it.
    """
    words = Words(parser.typed)
    if (unreadable := words.unreadable()) is not None:
        return unreadable
    simple = _simple(message, parser, words)
    if simple is not None:
        return simple
    problem = read(message)
    if problem is None:
        return Message(" ".join(message.split()))
    return _nested(problem, words)


def help_of(parser: argparse.ArgumentParser) -> str:
    """The command that lists a parser's options."""
    program, _, command = parser.prog.partition(" [options] ")
    return f"`{program} {command} --help_all`" if command else f"`{parser.prog.replace(' [options]', '')} --help`"


def _simple(message: str, parser: SafeParser, words: Words) -> Message | None:
    """One-line messages about words, options and commands."""
    first = message.splitlines()[0]
    commands = list(parser._commands())
    if found := re.match(r"unrecognized arguments: (.*)", first):
        return _unrecognised(found[1].split()[0], parser, words)
    if found := re.search(r"invalid choice: '([^']*)' \(choose from", first):
        command = found[1]
        if not commands:
            return Message(first)
        near = " or ".join(names.nearest(command, [*commands, "oracle", "bench"])) or f"one of {', '.join(commands)}"
        return Message(f"there is no command {command!r}", instead=near)
    if first.startswith('expected "subcommand" to be one of'):
        return Message("no command was typed", instead=f"one of {', '.join(commands)}; {help_of(parser)} explains them")
    if found := re.match(r"argument ([^:]+): (expected .*)", first):
        return Message(f"{found[1].split('/')[-1]} {found[2]}", instead=f"{found[1].split('/')[-1]} VALUE")
    if found := re.match(r"the following arguments are required: (.*)", first):
        return _required(found[1].split(", "), parser)
    if found := re.match(
        r"(?:Subcommand '[^']+' does not accept option|Option|Group '(?P<group>[^']+)' does not accept option) "
        r"'(?P<key>[^']+)'",
        first,
    ):
        key = ".".join(part for part in (found["group"], found["key"]) if part)
        return _unknown_key(key, parser, words)
    return None


def _unrecognised(word: str, parser: SafeParser, words: Words) -> Message:
    command = next((w for w in parser.typed if w in parser._commands()), None)
    at = parser._commands()[command] if command else parser
    flag = word.partition("=")[0]
    if not flag.startswith("-"):
        return Message(
            f"{flag!r} is a word too many", instead=f"an option before it, as in `--option {flag}`; {help_of(at)}"
        )
    near = names.nearest(flag, at.flags(words))
    if not near:  # perhaps typed without its group
        last = flag.rpartition(".")[2].lstrip("-")
        near = [f for f in dict.fromkeys(at.flags(words)) if f.rpartition(".")[2].lstrip("-") == last][: names.SHOWN]
    return Message(f"there is no option {flag}", instead=" or ".join(near) or f"{help_of(at)} lists the options")


def _required(keys: list[str], parser: SafeParser) -> Message:
    commands = parser._commands()
    flags = [k if k not in commands and k.partition(".")[0] not in commands else k.partition(".")[2] for k in keys]
    known = {"data": "--data configs/data/<name>.yaml", "model": "-c configs/base.yaml"}
    known["stages"] = "-c configs/pipeline/sacpo.yaml"
    advice = [known.get(flag, f"--{flag} VALUE") for flag in flags]
    missing = ", ".join(f"--{flag}" for flag in flags)
    return Message(
        f"{missing} must be given", instead=f"{' '.join(advice)} (`lit-safe configs` lists the shipped files)"
    )


def _unknown_key(key: str, parser: SafeParser, words: Words) -> Message:
    command, _, rest = key.partition(".")
    if command in parser._commands():
        key, parser = rest, parser._commands()[command]
    typed = next((w for w in parser.typed if w in parser._commands()), None)
    at = parser._commands()[typed] if typed else parser
    names_of = [flag.lstrip("-") for flag in at.flags(Words(()))]
    tops = list(dict.fromkeys(name.partition(".")[0] for name in names_of))
    parts = key.split(".")
    if parts[0] not in tops:
        near = names.nearest(parts[0], tops)
        key = parts[0]
    else:
        near = names.nearest(key, names_of)
    instead = " or ".join(near) or f"{help_of(at)} lists the options"
    return Message(f"there is no setting {key!r}", words.find(key.split(".")), instead)


def _nested(problem: Problem, words: Words) -> Message:
    """Messages about a class, one of its arguments, or a value."""
    first = problem.texts[0]
    name = ".".join(problem.keys)
    if found := re.match(r"(?:Option|Group '[^']+' does not accept option) '([^']+)'", first):
        key = found[1]
        place = words.find((*problem.keys, *key.split("."))) or words.find(problem.keys)
        known = _parameters(problem.class_path)
        near = names.suggestion(key, known) if known else ""
        owner = problem.class_path or name
        return Message(f"{owner} has no argument {key!r}", place, near or f"`--{name}.help {owner}` lists them")
    if found := re.match(r"the following arguments are required: (.*)", first):
        missing = found[1].split(", ")
        place = words.find((*problem.keys, "class_path")) or words.find(problem.keys)
        example = ".".join((*problem.keys, missing[0]))
        return Message(f"{problem.class_path or name} needs {', '.join(missing)}", place, f"a value for {example}")
    return class_path_message(problem, words) or value_message(problem, words)


def _parameters(class_path: str | None) -> list[str]:
    from jsonargparse._util import import_object

    try:
        cls = import_object(str(class_path))
    except (ImportError, AttributeError, ValueError):
        return []
    return names.parameters(cls) if isinstance(cls, type) else []
