"""Finds every command in the documents and in the headers of the shipped YAML files."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAMS = r"(?:python3? (?!-c )|lit-safe\b|make [a-z]|pip |uv |tensorboard |docker |bash |sbatch |git |scontrol )"


def documented() -> dict[str, set[str]]:
    """Command → the files that name it. Line continuations are joined, and comments behind a command are cut."""
    found: dict[str, set[str]] = {}
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *_below("docs", "md"), *_below("ops", "md")]:
        for command in _of_markdown(path.read_text(encoding="utf-8")):
            found.setdefault(command, set()).add(path.relative_to(ROOT).as_posix())
    for path in _below("configs", "yaml"):
        for command in _of_header(path.read_text(encoding="utf-8")):
            found.setdefault(command, set()).add(path.relative_to(ROOT).as_posix())
    return found


def _below(folder: str, ending: str) -> list[Path]:
    return sorted((ROOT / folder).rglob(f"*.{ending}"))


def _of_markdown(text: str) -> list[str]:
    """Commands in fenced blocks, in indented blocks, and between backticks."""
    fenced = [body for language, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S) if language != "python"]
    rest = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    indented = re.findall(r"(?:^ {4}.*\n)+", rest, re.M)
    lines = [_plain(line) for block in (*fenced, *indented) for line in _joined(block).splitlines()]
    lines = [line.removeprefix("next ") for line in lines]  # the last line of a run names the next commands
    lines = [part for line in lines for part in line.split(", or ")]
    inline = [_plain(word) for word in re.findall(r"`([^`]+)`", rest)]
    return [line for line in (*lines, *inline) if re.match(PROGRAMS, line)]


def _of_header(text: str) -> list[str]:
    """Commands in comments, each up to a gap, a backtick, a bracket or the end of a sentence."""
    comments = "\n".join(line.partition("#")[2] for line in text.splitlines())
    lines = _joined(comments).splitlines()
    found = [re.search(PROGRAMS + r"[^`]*", line) for line in lines if "python -c" not in line]
    return [_plain(re.split(r"\s{2,}|`|, which| \(", one[0])[0]) for one in found if one]


def _joined(text: str) -> str:
    return re.sub(r"\s*\\\n\s*", " ", text)


def _plain(line: str) -> str:
    return " ".join(re.sub(r"\s+#.*", "", line).split())
