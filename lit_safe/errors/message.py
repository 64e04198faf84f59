"""An error message of at most six lines: what is wrong, where, and what would be right."""

import os
import re
from dataclasses import dataclass

USAGE = 2
"""Exit status for flags, YAML files, class paths and values that cannot be used."""

FAILED = 1
"""Exit status for data, models, checkpoints, devices and disks that cannot be used."""

LINES = 6
WIDTH = 500
"""Maximum length of a line in characters. The rest is cut."""

TRACEBACK = "LIT_SAFE_TRACEBACK"
"""Environment variable. With the value 1, the traceback of a user's mistake is printed too."""


class SettingError(ValueError):
    """Settings that do not fit each other. The command ends with exit status 2."""


class UsageExit(SystemExit):
    """Ends the command with a message and exit status 2."""


@dataclass(frozen=True)
class Message:
    """One mistake.

    Args:
        what: The mistake, with the name of the wrong thing. It may have several lines; surplus lines are left out.
        where: The flag to change, or the YAML file with line and key.
        instead: A correct alternative: the nearest name, accepted values, or a command.
        status: The exit status.
    """

    what: str
    where: str = ""
    instead: str = ""
    status: int = USAGE

    def __str__(self) -> str:
        """The lines to print, at most ``LINES``."""
        after = [
            f"{label} {_one_line(text)}" for label, text in (("where:", self.where), ("try:", self.instead)) if text
        ]
        before = [_cut(line.rstrip()) for line in self.what.strip().splitlines() if line.strip()] or ["failed"]
        room = LINES - len(after)
        if len(before) > room:
            left_out = len(before) - room + 1
            before = [*before[: room - 1], f"... {left_out} more lines, which {TRACEBACK}=1 prints"]
        return "\n".join([f"error: {before[0]}", *before[1:], *after])


def shows_tracebacks() -> bool:
    """Whether the user asked for tracebacks of mistakes."""
    return os.environ.get(TRACEBACK, "") not in ("", "0")


def _one_line(text: str) -> str:
    return _cut(re.sub(r"\s+", " ", text).strip())


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 4]} ..."
