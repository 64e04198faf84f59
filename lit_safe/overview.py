"""Prints the list of commands without importing their dependencies, so it appears in a fraction of a second."""

import ast
from pathlib import Path

COMMANDS = Path(__file__).with_name("commands")

LIGHTNING = {
    "fit": "Train. `--ckpt_path last` continues the run of the run folder.",
    "validate": "Evaluate on the val split.",
    "test": "Evaluate on the val split, logged as test/*.",
    "predict": "Write log-probs, margins and labels of the val split's pairs as Parquet.",
}

PROGRAMS = {
    "oracle": "Train every objective in a world whose optimum is known, and report.",
    "bench": "Time the log-prob kernels.",
}


def overview(program: str) -> str:
    """The text that ``--help`` prints without a command.

    Args:
        program: Name with which the program was called, such as ``lit-safe``.
    """
    groups = {"train and evaluate": LIGHTNING, "around a run": summaries(), "instruments": PROGRAMS}
    lines = [f"usage: {program} COMMAND [options]", ""]
    for title, commands in groups.items():
        lines += [f"{title}:", *(f"  {name:<11} {summary}" for name, summary in commands.items()), ""]
    lines += [
        f"`{program} COMMAND --help` lists the important settings of a command, `--help_all` every one.",
        "The shortest run:",
        f"  {program} fit -c configs/base.yaml --data configs/data/scored.yaml",
    ]
    return "\n".join(lines)


def summaries() -> dict[str, str]:
    """The first line of the docstring of each function in ``lit_safe/commands``, by command."""
    return {name: first_line(function) for name, function in command_functions().items()}


def command_functions() -> dict[str, ast.FunctionDef]:
    """The function of each of our commands, as source. A file of helpers has none."""
    found = {path.stem: _function(path) for path in sorted(COMMANDS.glob("[a-z]*.py"))}
    return {name: function for name, function in found.items() if function is not None}


def _function(path: Path) -> ast.FunctionDef | None:
    """The function that a file of ``lit_safe/commands`` is named after."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return next((node for node in body if isinstance(node, ast.FunctionDef) and node.name == path.stem), None)


def first_line(function: ast.FunctionDef) -> str:
    """The first line of a function's docstring, in plain text."""
    return (ast.get_docstring(function) or "").partition("\n")[0].replace("``", "`")
