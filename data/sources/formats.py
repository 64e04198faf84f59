"""Rows of one file. Its name gives the format: JSONL, JSON, CSV (each also compressed by gzip or zstd) or Parquet."""

import csv
import gzip
import itertools
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO

from data.schema import BadRow

Record = Mapping[str, Any]
Records = Iterator[tuple[str, Record] | BadRow]


class Cell(str):
    """The text of a CSV cell. CSV has no types, so only this text may be parsed as a number or a flag."""

    __slots__ = ()


@dataclass(frozen=True)
class _Doubled:
    """Marks a JSON object that contains ``key`` more than once."""

    key: str


def format_of(path: Path) -> str | None:
    """The entry of ``FORMATS`` that ``path`` ends with, or None."""
    return next((ending for ending in FORMATS if path.name.endswith(ending)), None)


def read(path: Path) -> Records:
    """Every row of a file, named by the file's name and its number from 1 (for JSONL: its line).

    A line that holds no row gives a ``BadRow``.

    Raises:
        ValueError: The file is missing, has an unknown format, or cannot be read in the format of its name.
    """
    ending = format_of(path)
    if ending is None:
        raise ValueError(f"{path}: cannot read {path.suffix or 'such a file'}, only {', '.join(FORMATS)}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    yield from FORMATS[ending](path)


def _jsonl(path: Path) -> Records:
    parse = _Parser()
    with _opened(path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _json_object(f"{path.name}:{number}", line, parse)


def _json(path: Path) -> Records:
    with _opened(path) as file:
        content = file.read()
    try:
        rows, doubled = _Parser()(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not JSON ({error})") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: holds {type(rows).__name__}, not a list of rows")
    yield from (_checked(f"{path.name}:{number}", row, doubled) for number, row in enumerate(rows, 1))


def _csv(path: Path) -> Records:
    csv.field_size_limit(sys.maxsize)  # the text check reports overlong fields; the reader's own limit loses the line
    # bytes that are not UTF-8 become lone surrogates, which the text check reports with row and column
    with _opened(path) as file, TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="") as text:
        above = 0  # comment lines above the header

        def comment(line: str) -> bool:
            nonlocal above
            above += line.startswith("#")
            return line.startswith("#")

        reader = csv.reader(itertools.dropwhile(comment, text), strict=True)
        header: list[str] | None = None
        number = 0
        while True:
            start = above + reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error:
                if header is None:
                    raise ValueError(f"{path}: a quote in the header does not end its name") from None
                number += 1
                yield BadRow(f"{path.name}:{number} (line {start})", "*", "has a quote that does not end its field")
                continue
            if header is None:
                header = _header(path, cells)
            elif cells:
                number += 1
                yield _csv_row(f"{path.name}:{number}", header, cells)


def _header(path: Path, names: list[str]) -> list[str]:
    doubled = [name for i, name in enumerate(names) if name and name in names[:i]]
    if doubled:
        raise ValueError(f"{path}: the header names column {doubled[0]!r} more than once")
    return names


def _csv_row(name: str, header: list[str], cells: list[str]) -> tuple[str, Record] | BadRow:
    if len(cells) > len(header):
        return BadRow(name, "*", f"has more cells than the header has names ({len(header)})")
    return name, {key: Cell(value) for key, value in zip(header, cells, strict=False) if key}


def _parquet(path: Path) -> Records:
    import datasets  # the import takes a second, and other formats do not need it

    try:
        rows = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        yield from ((f"{path.name}:{number}", row) for number, row in enumerate(rows, 1))
    except (
        datasets.exceptions.DatasetsError,
        OSError,
        ValueError,
        TypeError,
        RuntimeError,
    ) as error:  # the types that Arrow raises
        raise ValueError(f"{path}: cannot be read as Parquet ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked if its name ends with .gz or .zst. An error names the file."""
    try:
        with UNPACKED.get(path.suffix, lambda path: open(path, "rb"))(path) as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: the gzip data are damaged ({_first_line(error)})") from error
    except OSError as error:
        if path.suffix != ".zst" or error.errno is not None:
            raise
        raise ValueError(f"{path}: the zstd data are damaged ({_first_line(error)})") from error


def _zstd(path: Path) -> Any:
    import pyarrow  # datasets needs it anyway, and other formats do not

    return BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))


class _Parser:
    """Parses JSON values. One decoder serves every line of a file, because making one takes as long as a short line."""

    def __init__(self) -> None:
        self._doubled = False
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def __call__(self, content: bytes) -> tuple[Any, bool]:
        """A value, and whether an object in it contains a key more than once (that object is then a ``_Doubled``)."""
        self._doubled = False
        text = content.decode(json.detect_encoding(content), "surrogatepass")  # as json.loads does
        return self._decoder.decode(text), self._doubled

    def _object(self, items: list[tuple[str, Any]]) -> Any:
        found = dict(items)
        if len(found) == len(items):
            return found
        self._doubled = True
        keys = [key for key, _ in items]
        return _Doubled(next(key for i, key in enumerate(keys) if key in keys[:i]))


def _json_object(name: str, line: bytes, parse: _Parser) -> tuple[str, Record] | BadRow:
    try:
        return _checked(name, *parse(line))
    except UnicodeDecodeError:
        return BadRow(name, "*", "is not UTF-8")
    except RecursionError:
        return BadRow(name, "*", "nests too deep")
    except ValueError:
        return BadRow(name, "*", "is not JSON")


def _checked(name: str, row: object, doubled: bool) -> tuple[str, Record] | BadRow:
    twice = _find_doubled(row) if doubled else None
    if twice is not None:
        return BadRow(name, twice.key, "appears more than once in one object")
    if isinstance(row, dict):
        return name, row
    return BadRow(name, "*", f"is {type(row).__name__}, not an object")


def _find_doubled(value: object) -> _Doubled | None:
    if isinstance(value, _Doubled):
        return value
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for part in inside if (found := _find_doubled(part)) is not None), None)


UNPACKED: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".zst": _zstd}
PLAIN: dict[str, Callable[[Path], Records]] = {".jsonl": _jsonl, ".json": _json, ".csv": _csv}
FORMATS: dict[str, Callable[[Path], Records]] = {
    **{ending + packed: read_rows for ending, read_rows in PLAIN.items() for packed in ("", *UNPACKED)},
    ".parquet": _parquet,
}
