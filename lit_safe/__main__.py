"""The entry point of ``lit-safe``, ``python -m lit_safe`` and ``python train.py``."""

import os
import runpy
import sys
from importlib.metadata import PackageNotFoundError, version

from lit_safe import installation
from lit_safe.errors.program import short_errors, short_usage_errors
from lit_safe.overview import overview
from lit_safe.short_help import HELP_ALL, short_help, wanted

PROGRAMS = {"oracle": "data.oracle.run", "bench": "ops.sequence_logratio.bench"}
"""Programs with their own command lines: name → module."""


def main() -> None:
    """Run the command in ``sys.argv``. A user's mistake ends in a short message (``lit_safe.errors``)."""
    try:
        try:
            with short_errors(sys.argv[1:]):
                _run()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        sys.exit(1)


def _run() -> None:
    for sentence in installation.add_to_path():
        print(f"warning: {sentence}", file=sys.stderr)
    words = sys.argv[1:]
    if words == ["--version"]:
        print(f"lit-safe {_version()}")
    elif words in ([], ["-h"], ["--help"]):
        print(overview(_program()))
        sys.exit(0 if words else 2)
    elif wanted(words):
        print(short_help(_program(), words[0]))
    elif words[:1] == ["configs"] and not any(word.startswith("-") for word in words):
        from lit_safe.commands.configs import configs  # needs neither torch nor lightning

        sys.exit(configs(words[1:]))
    elif words and words[0] in PROGRAMS:
        sys.argv[:2] = [f"lit-safe {words[0]}"]
        with short_usage_errors():
            runpy.run_module(PROGRAMS[words[0]], run_name="__main__", alter_sys=False)
    else:
        from lit_safe.cli import main as command_line

        sys.argv[1:] = ["--help" if word == HELP_ALL else word for word in words]
        command_line()


def _program() -> str:
    return "python train.py" if sys.argv[0].endswith("train.py") else "lit-safe"


def _version() -> str:
    try:
        return version("lit-safe")
    except PackageNotFoundError:
        return "(not installed: running from a folder)"


if __name__ == "__main__":
    main()
