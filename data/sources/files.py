"""Raw rows of a local file or a hub dataset, each with a name for messages; what columns mean is for sources to say."""

import csv
import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from data.schema import BadRow, check_flag, check_number

Record = Mapping[str, Any]
Parsed = TypeVar("Parsed")
FORMATS = (".jsonl", ".json", ".csv", ".parquet")


class Cell(str):
    """The text of a CSV cell: the only text that may stand for a number or a flag, as CSV has no types."""

    __slots__ = ()


class Table:
    """Rows of a local JSONL, JSON, CSV or Parquet file, or of one split of a hub dataset or a folder laid out like one.

    What ends like one of these four files is a file, what is a folder on disk is a folder, anything else is a hub id.
    Rows of a file are named by its name and their number from 1 (for JSONL: their line), others by their index from 0.

    Args:
        path: The file, the folder, or the hub id (``owner/name``).
        split: Hub and folder only: which split.
        revision: Hub only: branch, tag or commit; None is the newest, and the commit it stands for is described.
        data_dir: Hub only: the folder inside the repository that is the dataset.
    """

    def __init__(
        self, path: str, split: str = "train", revision: str | None = None, data_dir: str | None = None
    ) -> None:
        self.path, self.split, self.revision, self.data_dir = path, split, revision, data_dir

    @property
    def file(self) -> bool:
        """Whether this is a file rather than a hub dataset or a folder."""
        return Path(self.path).is_file() or (Path(self.path).suffix in FORMATS and not Path(self.path).is_dir())

    @property
    def name(self) -> str:
        """What rows are named after: the file's name, or the hub id with folder and split."""
        if self.file:
            return Path(self.path).name
        return f"{self.path}{'/' if self.data_dir else ''}{self.data_dir or ''}[{self.split}]"

    def describe(self) -> dict[str, str]:
        """Which data this is: the content's hash, or the hub id with split and the commit that is read."""
        if self.file:
            return {"name": self.name, "sha256": _sha256(Path(self.path))}
        if Path(self.path).is_dir():
            paths = sorted(path for path in Path(self.path).rglob("*") if path.is_file())
            names = "".join(f"{path.relative_to(self.path)}:{_sha256(path)}\n" for path in paths)
            return {"name": self.name, "sha256": hashlib.sha256(names.encode()).hexdigest()}
        return {"name": self.name, "commit": str(self._builder().hash)}

    def records(self) -> Iterator[tuple[str, Record] | BadRow]:
        """Every row with its name, in order; a ``BadRow`` where a line holds no row at all.

        Raises:
            ValueError: If the file is missing, is of an unknown kind, or cannot be read as what its name says.
        """
        if not self.file:
            builder = self._builder()
            builder.download_and_prepare()
            name = self.name
            yield from ((f"{name}:{i}", row) for i, row in enumerate(builder.as_dataset(split=self.split)))
            return
        readers = {".jsonl": self._jsonl, ".json": self._json, ".csv": self._csv, ".parquet": self._parquet}
        suffix = Path(self.path).suffix
        if suffix not in readers:
            raise ValueError(f"{self.path}: cannot read {suffix or 'such a file'}, only {', '.join(FORMATS)}")
        if not Path(self.path).is_file():
            raise ValueError(f"{self.path}: no such file")
        yield from readers[suffix]()

    def parsed(self, parse: Callable[[str, Record], Parsed]) -> Iterator[Parsed | BadRow]:
        """What ``parse(name, record)`` makes of every row, or the ``BadRow`` it raised."""
        for item in self.records():
            if isinstance(item, BadRow):
                yield item
                continue
            try:
                row = parse(*item)
            except BadRow as bad:
                yield bad
            else:
                yield row

    def _builder(self) -> Any:
        import datasets  # takes a second to import, and local files do without

        return datasets.load_dataset_builder(self.path, revision=self.revision, data_dir=self.data_dir)

    def _jsonl(self) -> Iterator[tuple[str, Record] | BadRow]:
        name = self.name
        with open(self.path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _json_object(f"{name}:{number}", line)

    def _json(self) -> Iterator[tuple[str, Record] | BadRow]:
        try:
            rows = json.loads(Path(self.path).read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.path}: is not JSON ({error})") from error
        if not isinstance(rows, list):
            raise ValueError(f"{self.path}: holds {type(rows).__name__}, not a list of rows")
        yield from (_checked(f"{self.name}:{number}", row) for number, row in enumerate(rows, 1))

    def _csv(self) -> Iterator[tuple[str, Record] | BadRow]:
        csv.field_size_limit(sys.maxsize)  # the text check names an overlong field; the reader would lose its place
        # bytes that are not UTF-8 become lone surrogates, which the text check names by row and column
        with open(self.path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            lines = itertools.dropwhile(lambda line: line.startswith("#"), file)  # a comment above the header
            for number, row in enumerate(csv.DictReader(lines), 1):
                cells = {key: Cell(value) for key, value in row.items() if key and isinstance(value, str)}
                yield f"{self.name}:{number}", cells

    def _parquet(self) -> Iterator[tuple[str, Record] | BadRow]:
        import datasets

        rows = datasets.load_dataset("parquet", data_files=self.path, split="train", streaming=True)
        yield from ((f"{self.name}:{number}", row) for number, row in enumerate(rows, 1))


def number_of(row: str, column: str, value: object) -> float:
    """``value`` as a finite number, read from its text where it is a CSV cell; or BadRow."""
    if isinstance(value, Cell):
        if not value.strip():
            raise BadRow(row, column, "is null or missing")
        try:
            value = float(value)
        except ValueError:
            raise BadRow(row, column, "is not a number") from None
    return check_number(row, column, value)


def flag_of(row: str, column: str, value: object) -> bool:
    """``value`` as a flag, read from its text where it is a CSV cell; or BadRow."""
    if isinstance(value, Cell):
        value = {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower(), value)
    return check_flag(row, column, value)


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error


def _json_object(name: str, line: bytes) -> tuple[str, Record] | BadRow:
    try:
        return _checked(name, json.loads(line))
    except UnicodeDecodeError:
        return BadRow(name, "*", "is not UTF-8")
    except RecursionError:
        return BadRow(name, "*", "nests too deep")
    except ValueError:
        return BadRow(name, "*", "is not JSON")


def _checked(name: str, row: object) -> tuple[str, Record] | BadRow:
    if isinstance(row, dict):
        return name, row
    return BadRow(name, "*", f"is {type(row).__name__}, not an object")
