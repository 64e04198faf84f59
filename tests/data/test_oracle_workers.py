import pytest

from data.oracle.study.workers import run, start


@pytest.mark.slow
def test_commands_side_by_side_write_to_their_own_files_and_a_failure_names_its(tmp_path):
    process = start("fit", "--help", log_to=tmp_path / "help.txt")
    with pytest.raises(RuntimeError, match=r"lit-safe fit failed: see .*wrong.txt"):
        run("fit", "--modle", "x", log_to=tmp_path / "wrong.txt")
    assert "--modle" in (tmp_path / "wrong.txt").read_text(encoding="utf-8")
    process.join()
    assert process.exitcode == 0
    assert "--trainer" in (tmp_path / "help.txt").read_text(encoding="utf-8")
