"""A user's mistake is answered in at most six lines that name it; faults of our own code keep their traceback."""

import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_safe.__main__ import PROGRAMS, main
from lit_safe.errors.exceptions import mistake as mistake_of
from lit_safe.errors.message import LINES, TRACEBACK, Message, SettingError
from lit_safe.errors.places import Words
from lit_safe.errors.program import short_errors
from tests.lit_safe.errors import mistakes
from tests.lit_safe.errors.mistaken_run import RUN, Mistake, pairs

ROOT = Path(__file__).parents[3]
FAULTS = (
    "{}['a']",
    "[][0]",
    "None.a",
    "assert 1 > 2",
    "len(3)",
    "int('a')",
    "1 / 0",
    "raise KeyError('a')",
    "import no",
)
RAISED = ("ValueError", "TypeError", "RuntimeError", "FloatingPointError", "OSError", "ImportError")
FILES = ("lit_safe/training/module.py", "models/pair.py", "data/module.py", "ops/sequence_logratio/api.py")

ROWS = [pytest.param(name, marks=pytest.mark.slow if name in mistakes.SLOW else ()) for name in mistakes.TABLE]
Typed = Callable[..., tuple[int, str]]


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Typed:
    """Types a command in a folder with ``run.yaml`` and ``pairs.jsonl``; the exit status and what stderr shows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(TRACEBACK, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(logging, "raiseExceptions", False)  # handlers of an earlier test hold its closed stderr

    def run(mistake: Mistake) -> tuple[int, str]:
        files = {"run.yaml": RUN, "pairs.jsonl": pairs(), **mistake.files}
        for name, content in files.items():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        monkeypatch.setattr(sys, "argv", ["train.py", *mistake.words])
        for module in PROGRAMS.values():  # imported by an earlier test; a fresh process has not
            monkeypatch.delitem(sys.modules, module, raising=False)
        with pytest.raises(SystemExit) as stopped:
            main()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, capfd.readouterr().err

    return run


@pytest.mark.parametrize("name", ROWS)
def test_a_mistake_is_named_in_at_most_six_lines(typed: Typed, name: str) -> None:
    mistake = mistakes.TABLE[name]
    code, shown = typed(mistake)
    message = shown[shown.index("error: ") :].rstrip().splitlines()
    assert message[0].startswith(f"error: {mistake.says[0]}")
    assert not [text for text in mistake.says if text not in "\n".join(message)], message
    assert len(message) <= LINES
    assert code == mistake.code
    assert "Traceback" not in shown
    assert "usage:" not in shown


def test_there_are_enough_mistakes_and_no_two_are_one() -> None:
    rows = list(mistakes.TABLE.values())
    assert len(rows) >= 50
    assert len({(row.words, tuple(row.files.items())) for row in rows}) == len(rows)


@pytest.mark.parametrize("name", ["beta", "YAML unknown key", "run folder is an address"])
def test_the_environment_variable_adds_the_traceback(typed: Typed, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRACEBACK, "1")
    code, shown = typed(mistakes.TABLE[name])
    assert "Traceback (most recent call last)" in shown
    assert f"error: {mistakes.TABLE[name].says[0]}" in shown[shown.index("Traceback") :]
    assert code == mistakes.TABLE[name].code


def raised(code: str, file: str = "lit_safe/training/module.py") -> Exception:
    """The exception of code that claims to stand in one of our files."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  # each case raises another kind
        exec(compile(code, str(ROOT / file), "exec"), {"SettingError": SettingError})
    return caught.value


@pytest.mark.parametrize(
    "code",
    [
        "{}['a']",
        "[][0]",
        "None.a",
        "assert 1 > 2",
        "len(3)",
        "int('a')",
        "1 / 0",
        "raise KeyError('a')",
        "import no_such",
    ],
)
def test_a_fault_of_our_own_code_is_no_mistake(code: str) -> None:
    assert mistake_of(raised(code), Words(())) is None


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", RAISED)
def test_what_our_code_raises_on_purpose_is_a_mistake(file: str, kind: str) -> None:
    found = mistake_of(raised(f"raise {kind}('the limit is unknown')", file), Words(()))
    assert found == Message("the limit is unknown", status=1)


def test_settings_that_do_not_fit_each_other_are_usage() -> None:
    found = mistake_of(raised("raise SettingError('limit 3 is above the start')"), Words(["fit", "--dual.limit", "3"]))
    assert found == Message("limit 3 is above the start", "--dual.limit", status=2)


def test_a_fault_inside_a_command_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lit_safe.commands.configs._copy", lambda names: {}[names[0]])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["train.py", "configs", "copy", "objective/dpo"])
    with pytest.raises(KeyError, match="objective/dpo"):
        main()
    assert "error:" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("raise KeyboardInterrupt", 130, "error: stopped by Ctrl-C"),
        ("raise SystemExit('no room')", 1, "error: no room"),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit", None, ""),
        ("open('no/such/file')", 1, "error: no/such/file: No such file or directory"),
        ("raise MemoryError", 1, "error: out of memory"),
        ("raise ValueError('\\n'.join('abcdefghij'))", 1, "5 more lines, which LIT_SAFE_TRACEBACK=1 prints"),
    ],
)
def test_exit_statuses(
    code: str, status: int | None, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TRACEBACK, raising=False)
    with pytest.raises(SystemExit) as stopped, short_errors([]):
        exec(compile(code, str(ROOT / "lit_safe" / "module.py"), "exec"))
    assert stopped.value.code == status
    shown = capsys.readouterr().err
    assert said in shown
    assert len(shown.splitlines()) <= LINES


def test_the_documented_messages_are_those_of_the_table() -> None:
    lines = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| `")]
    documented = [re.sub(r"^`|`$", "", row[0]) for row in cells]
    said = {mistake.says[0] for mistake in mistakes.TABLE.values()}
    assert len(documented) >= 30
    assert not set(documented) - said
    assert all(len(row) == 3 and all(row) for row in cells)
