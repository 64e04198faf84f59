import gzip
import json
from pathlib import Path

import datasets
import pyarrow
import pytest

from data.schema import BadRow
from data.sources.files import Cell, Table, flag_of, number_of
from data.sources.tables import table

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
    assert len(list(Table(str(tmp_path / "set"), "train+test[:1]").records())) == 2
    with pytest.raises(ValueError, match=r"set.*: cannot be loaded \(it has no split 'tset': set split to one of t"):
        list(Table(str(tmp_path / "set"), "tset").records())
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


# -- strictness: nothing is cut, merged or replaced without a word


def test_a_csv_row_with_surplus_cells_is_a_bad_row_and_the_next_one_is_read(tmp_path: Path) -> None:
    bad, good = write(tmp_path / "a.csv", "a,b\none,two,three\nfour,five\n").records()
    assert isinstance(bad, BadRow)
    assert (bad.row, bad.reason) == ("a.csv:1", "has more cells than the header has names (2)")
    assert good == ("a.csv:2", {"a": "four", "b": "five"})


def test_a_column_named_twice_in_a_csv_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a.csv: the header names column 'b' more than once"):
        list(write(tmp_path / "a.csv", "a,b,b\n1,2,3\n").records())
    assert list(write(tmp_path / "b.csv", ",a,\n0,x,\n").records()) == [("b.csv:1", {"a": "x"})], "no name is no column"


@pytest.mark.parametrize(
    "rows", ['q1,"Hi" she said\nq2,"Bye" he said\n', 'q1,"open\nq2,"again\n', 'q1,"never closed\nq2,x\n']
)
def test_a_field_that_begins_with_a_quote_and_does_not_end_with_one_is_named_and_merges_no_rows(
    tmp_path: Path, rows: str
) -> None:
    found = list(write(tmp_path / "a.csv", f"# version\na,b\nq0,fine\n{rows}").records())
    assert found[0] == ("a.csv:1", {"a": "q0", "b": "fine"})
    assert isinstance(found[1], BadRow)
    assert (found[1].row, found[1].reason) == ("a.csv:2 (line 4)", "has a quote that does not end its field")
    assert all(isinstance(item, BadRow) for item in found[1:])


@pytest.mark.parametrize(
    ("text", "key"),
    [('{"a": 1, "b": 2, "a": 3}', "a"), ('{"a": [{"role": "user", "role": "x"}]}', "role")],
    ids=["top", "inside"],
)
def test_a_json_object_that_names_a_key_twice_is_a_bad_row(tmp_path: Path, text: str, key: str) -> None:
    for name, content in (("a.jsonl", f'{text}\n{{"a": 1}}\n'), ("a.json", f'[{text}, {{"a": 1}}]')):
        bad, good = write(tmp_path / name, content).records()
        assert isinstance(bad, BadRow)
        assert (bad.row, bad.column, bad.reason) == (f"{name}:1", key, "appears more than once in one object")
        assert good == (f"{name}:2", {"a": 1})


def test_a_damaged_parquet_file_is_refused_by_name_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = tmp_path / "whole.parquet"
    datasets.Dataset.from_list([{"text": f"row {i} " * 20} for i in range(500)]).to_parquet(str(whole))
    content = whole.read_bytes()
    for size in (0, 3, len(content) // 2, len(content) - 5):
        with pytest.raises(ValueError, match=r"cut.parquet: cannot be read as Parquet"):
            list(write(tmp_path / "cut.parquet", content[:size]).records())
    middle = len(content) // 2
    flipped = content[: middle - 500] + b"\xff" * 1000 + content[middle + 500 :]
    with pytest.raises(ValueError, match=r"flipped.parquet: cannot be read as Parquet"):
        list(write(tmp_path / "flipped.parquet", flipped).records())


# -- several files, folders, gzip, configurations


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_a_gzipped_file_holds_the_rows_of_the_file_inside(tmp_path: Path, kind: str) -> None:
    text = {"jsonl": '{"a": "x"}\n{"a": "y"}', "json": '[{"a": "x"}, {"a": "y"}]', "csv": "a\nx\ny\n"}[kind]
    plain = list(write(tmp_path / f"p.{kind}", text).records())
    zipped = write(tmp_path / f"p.{kind}.gz", gzip.compress(text.encode()))
    assert list(zipped.records()) == [(name.replace(kind, f"{kind}.gz"), row) for name, row in plain]
    for damage in (gzip.compress(text.encode())[:-6], b"no gzip", gzip.compress(text.encode())[:12] + b"\xff" * 20):
        with pytest.raises(ValueError, match=rf"bad.{kind}.gz: the gzip data are damaged"):
            list(write(tmp_path / f"bad.{kind}.gz", damage).records())


def test_a_pattern_and_a_folder_are_all_their_files_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "set.jsonl"  # a folder may be named like a file
    folder.mkdir()
    write(folder / "b.jsonl", '{"n": 2}')
    write(folder / "a.jsonl.gz", gzip.compress(b'{"n": 1}'))
    write(folder / "c.csv", "n\n3\n")
    write(folder / "notes.txt", "no data")
    expected = [("a.jsonl.gz:1", {"n": 1}), ("b.jsonl:1", {"n": 2}), ("c.csv:1", {"n": "3"})]
    assert list(Table(str(folder)).records()) == expected
    pattern = Table(str(folder / "[ab].*"))
    assert list(pattern.records()) == expected[:2]
    before = pattern.describe()
    write(folder / "c.csv", "n\n4\n")
    assert pattern.describe() == before
    write(folder / "b.jsonl", '{"n": 9}')
    assert pattern.describe() != before


def test_a_pattern_without_a_file_and_a_folder_without_data_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").mkdir()
    with pytest.raises(ValueError, match=r"none-\*\.jsonl: matches no file"):
        list(Table(str(tmp_path / "none-*.jsonl")).records())
    with pytest.raises(ValueError, match=r"empty\.jsonl: is a folder without a file that ends in \.jsonl"):
        list(Table(str(tmp_path / "empty.jsonl")).records())


CARD = """---
configs:
- {config_name: first, data_files: [{split: train, path: one.jsonl}]}
- {config_name: second, data_files: [{split: train, path: two.jsonl}]}
---
"""


def test_a_configuration_is_chosen_by_name_and_asked_for_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    for name in ("one", "two"):
        write(folder / f"{name}.jsonl", json.dumps({"text": name}))
    second = Table(str(folder), config="second")
    assert list(second.records()) == [(f"{folder}/second[train]:0", {"text": "two"})]
    with pytest.raises(ValueError, match=r"set\[train\]: cannot be loaded; name one with config: .*first.*second"):
        list(Table(str(folder)).records())
    with pytest.raises(ValueError, match=r"set/third\[train\]: cannot be loaded.*third"):
        list(Table(str(folder), config="third").records())


def packed(path: Path, content: bytes) -> None:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content))
    elif path.suffix == ".zst":
        with pyarrow.output_stream(str(path), compression="zstd") as file:
            file.write(content)
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["utf-8", "utf-8 with a byte order mark"])
def test_packed_files_and_byte_order_marks_change_no_row(tmp_path: Path, packing: str, mark: bytes) -> None:
    rows = [{"a": "é", "b": "two"}, {"a": "x" * 70_000, "b": "four"}]
    texts = {
        "jsonl": "\n".join(map(json.dumps, rows)),
        "json": json.dumps(rows),
        "csv": "a,b\n" + "".join(f"{row['a']},{row['b']}\n" for row in rows),
    }
    for kind, text in texts.items():
        path = tmp_path / f"rows.{kind}{packing}"
        packed(path, mark + text.encode())
        assert list(Table(str(path)).records()) == [(f"{path.name}:{i}", row) for i, row in enumerate(rows, 1)]


@pytest.mark.parametrize("damage", [lambda b: b[:60], lambda b: b[:20] + b"x" + b[21:], lambda b: b"nonsense"])
def test_damaged_zstd_data_are_named(tmp_path: Path, damage) -> None:
    path = tmp_path / "a.jsonl.zst"
    packed(path, "\n".join(f'{{"a": "{i} {hash(str(i))}"}}' for i in range(200)).encode())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"a.jsonl.zst: the zstd data are damaged"):
        list(Table(str(path)).records())


def test_a_list_of_paths_is_read_in_order_and_described_by_every_file(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", json.dumps(ROWS[0]))
    write(tmp_path / "a.jsonl", json.dumps(ROWS[1]))
    both = table([str(tmp_path / "b.jsonl"), str(tmp_path / "a.jsonl")])
    assert list(both.records()) == [("b.jsonl:1", ROWS[0]), ("a.jsonl:1", ROWS[1])]
    before = both.describe()
    assert before["name"] == "b.jsonl, a.jsonl"
    assert table([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]).describe() != before
    write(tmp_path / "a.jsonl", "{}")
    assert both.describe() != before


def test_a_folder_of_parquet_files_is_read_in_order_of_name(tmp_path: Path) -> None:
    for name, row in (("part-1", ROWS[1]), ("part-0", ROWS[0])):
        datasets.Dataset.from_list([row]).to_parquet(str(tmp_path / f"{name}.parquet"))
    assert list(Table(str(tmp_path)).records()) == [("part-0.parquet:1", ROWS[0]), ("part-1.parquet:1", ROWS[1])]
