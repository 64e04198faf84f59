"""Runs a command. Mistakes end in short messages; faults keep their traceback."""

import argparse
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn
from unittest.mock import patch

from lit_safe.errors import names
from lit_safe.errors.exceptions import mistake
from lit_safe.errors.message import FAILED, USAGE, Message, UsageExit, shows_tracebacks
from lit_safe.errors.places import Words


@contextmanager
def short_errors(words: Sequence[str]) -> Iterator[None]:
    """Turns a mistake inside into a message on stderr and an exit status. Faults and plain exits are passed on.

    Args:
        words: The words of the command line.

    Raises:
        SystemExit: With status 2 for usage, 1 for data, model and disk, 130 after Ctrl-C.
    """
    try:
        yield
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            raise
        cause = stop.__context__
        message = mistake(cause, Words(words)) if isinstance(cause, Exception) and str(cause) == stop.code else None
        _end(message or Message(str(stop.code), status=USAGE if isinstance(stop, UsageExit) else FAILED), stop)
    except KeyboardInterrupt as error:
        _end(Message("stopped by Ctrl-C", status=130), error)
    except Exception as error:
        message = mistake(error, Words(words))
        if message is None:
            raise
        _end(message, error)


@contextmanager
def short_usage_errors() -> Iterator[None]:
    """Makes argparse print mistakes without usage text, for programs with their own parser."""
    with patch.object(argparse.ArgumentParser, "error", _argparse_error):
        yield


def _end(message: Message, cause: BaseException) -> NoReturn:
    if shows_tracebacks():
        traceback.print_exception(cause)
    print(message, file=sys.stderr, flush=True)
    raise SystemExit(message.status) from None


def _argparse_error(self: argparse.ArgumentParser, message: str) -> NoReturn:
    flags = [flag for action in self._actions for flag in action.option_strings]
    instead = f"`{self.prog} --help` lists the options"
    if found := re.match(r"unrecognized arguments: (\S+)", message):
        message = f"there is no option {found[1]}"
        instead = " or ".join(names.nearest(found[1].partition("=")[0], flags)) or instead
    elif found := re.search(r"there is no (\S+\.yaml)", message):
        instead = " or ".join(names.nearest_files(found[1])) or "`lit-safe configs` lists the files"
    self.exit(USAGE, f"{Message(message, instead=instead)}\n")
