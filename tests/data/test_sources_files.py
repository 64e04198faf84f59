import json
from pathlib import Path

import datasets
import pytest

from data.schema import BadRow
from data.sources.files import Cell, Table, flag_of, number_of

ROWS = [{"text": "first"}, {"text": "second", "n": 2}]


def write(path: Path, text: str | bytes) -> Table:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Table(str(path))


def test_jsonl_rows_are_named_by_file_and_line_and_blank_lines_hold_no_row(tmp_path: Path) -> None:
    table = write(tmp_path / "a.jsonl", "\n" + json.dumps(ROWS[0]) + "\n\n" + json.dumps(ROWS[1]))
    assert list(table.records()) == [("a.jsonl:2", ROWS[0]), ("a.jsonl:4", ROWS[1])]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": ', "is not JSON"),
        (b"[1, 2]", "is list, not an object"),
        (b"null", "is NoneType, not an object"),
        (b'{"text": "\xff"}', "is not UTF-8"),
        (b'{"n": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"[" * 100_000, "nests too deep"),
    ],
)
def test_a_line_that_holds_no_row_is_named_and_the_next_one_is_read(tmp_path: Path, line: bytes, reason: str) -> None:
    bad, good = write(tmp_path / "a.jsonl", line + b'\n{"text": "fine"}\n').records()
    assert isinstance(bad, BadRow)
    assert (bad.row, bad.reason) == ("a.jsonl:1", reason)
    assert good == ("a.jsonl:2", {"text": "fine"})


def test_a_line_of_far_over_100_000_characters_is_read_whole(tmp_path: Path) -> None:
    row = {"text": "x" * 300_000}
    for name, text in (("a.jsonl", json.dumps(row)), ("a.csv", "text\n" + row["text"])):
        ((_, record),) = write(tmp_path / name, text).records()  # type: ignore[misc]
        assert record == row


def test_every_kind_of_file_holds_the_same_rows(tmp_path: Path) -> None:
    rows = [{"a": "one, two", "b": 'say "three"\nfour'}, {"a": "5", "b": "six"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "a.csv").write_text('# version 1\na,b\n"one, two","say ""three""\nfour"\n5,six\n', encoding="utf-8")
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "a.parquet"))
    for kind in ("jsonl", "json", "csv", "parquet"):
        found = list(Table(str(tmp_path / f"a.{kind}")).records())
        assert found == [(f"a.{kind}:{i}", row) for i, row in enumerate(rows, 1)], kind


def test_a_folder_is_read_as_a_hub_dataset_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    for split in ("train", "test"):
        datasets.Dataset.from_list([{"text": split}]).to_parquet(str(tmp_path / "set" / f"{split}.parquet"))
    table = Table(str(tmp_path / "set"), "test")
    assert list(table.records()) == [(f"{table.name}:0", {"text": "test"})]
    before = table.describe()
    (tmp_path / "set" / "test.parquet").write_bytes(b"other")
    assert table.describe() != before


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "is not JSON"),
        ("a.json", '{"rows": []}', "holds dict, not a list of rows"),
        ("a.txt", "text", "cannot read .txt"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(write(tmp_path / name, text).records())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    table = Table(str(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match=r"none.jsonl: no such file"):
        list(table.records())
    with pytest.raises(ValueError, match=r"none.jsonl: No such file"):
        table.describe()


def test_a_file_is_described_by_its_content_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    one, two = write(tmp_path / "a.jsonl", "{}"), write(tmp_path / "b" / "a.jsonl", "{}")
    assert one.describe() == two.describe()
    assert one.describe()["sha256"] == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert write(tmp_path / "a.jsonl", "{ }").describe() != two.describe()


def test_a_bad_byte_in_csv_is_a_lone_surrogate_in_its_own_cell(tmp_path: Path) -> None:
    ((_, record),) = write(tmp_path / "a.csv", b"a,b\nfine,\xff\n").records()  # type: ignore[misc]
    assert record == {"a": "fine", "b": "\udcff"}


def test_a_short_csv_row_lacks_its_last_columns(tmp_path: Path) -> None:
    ((_, record),) = write(tmp_path / "a.csv", "a,b\nfine\n").records()  # type: ignore[misc]
    assert record == {"a": "fine"}


def test_text_stands_for_a_number_or_a_flag_in_csv_alone() -> None:
    assert number_of("r", "c", Cell(" 0.25 ")) == 0.25
    assert [flag_of("r", "c", Cell(text)) for text in ("TRUE", "false", "1", "0")] == [True, False, True, False]
    for value, reason in ((Cell(""), "is null"), (Cell("x"), "is not a number"), (Cell("nan"), "is not finite")):
        with pytest.raises(BadRow, match=reason):
            number_of("r", "c", value)
    with pytest.raises(BadRow, match="is str, not a number"):
        number_of("r", "c", "0.25")
    with pytest.raises(BadRow, match="is str, not a flag"):
        flag_of("r", "c", "true")


def test_what_neither_exists_nor_ends_like_a_file_is_a_hub_id() -> None:
    table = Table("owner/name", "test", data_dir="part")
    assert not table.file
    assert table.name == "owner/name/part[test]"
