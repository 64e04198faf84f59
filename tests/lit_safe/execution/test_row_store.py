"""Rows by key in a folder, written piece by piece."""

from pathlib import Path

import numpy as np
import pytest

from lit_safe.execution.row_store import RowStore


def test_what_several_processes_wrote_is_read_together(tmp_path: Path) -> None:
    one, two = (RowStore(tmp_path / "rows", np.float32) for _ in range(2))
    one.add([1, -2], np.array([[1.0, 2], [3, 4]]))
    two.add([5], np.array([[5.0, 6]]))
    one.flush(0)
    two.flush(1)
    one.add([7], np.array([[7.0, 8]]))
    found = RowStore(tmp_path / "rows", np.float32).read()
    assert {key: row.tolist() for key, row in found.items()} == {1: [1, 2], -2: [3, 4], 5: [5, 6]}
    assert one.pending == 1


def test_a_folder_that_is_not_there_holds_nothing_and_is_not_made_by_reading(tmp_path: Path) -> None:
    store = RowStore(tmp_path / "rows", np.float32)
    store.flush()
    assert store.read() == {}
    assert not store.folder.exists()


def test_a_killed_write_leaves_no_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RowStore(tmp_path, np.float32)
    store.add([1], np.ones((1, 2)))

    def killed(*given: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(OSError, match="no space"):
        store.flush()
    assert store.read() == {}
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    store.flush()
    assert set(store.read()) == {1}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    store = RowStore(tmp_path, np.float32)
    store.add([1], np.ones((1, 2)))
    store.flush()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        store.read()


def test_rows_of_another_type_are_not_read_as_if_they_were(tmp_path: Path) -> None:
    store = RowStore(tmp_path, np.float64)
    store.add([1], np.ones((1, 2)))
    store.flush()
    with pytest.raises(ValueError, match="damaged"):
        RowStore(tmp_path, np.float32).read()
