"""Raw rows of local files or a hub dataset, each with a name for messages. Sources interpret the columns."""

import glob
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from data.schema import BadRow, check_flag, check_number
from data.sources.formats import FORMATS, Cell, Record, Records, format_of, read

__all__ = ["Cell", "Record", "Table", "flag_of", "number_of"]

Parsed = TypeVar("Parsed")
# A folder laid out like a hub dataset has a card, or files and folders named after a split
SPLIT_NAME = re.compile(r"(^|[-._ 0-9])(train|training|test|testing|val|valid|validation|dev|eval)([-._ 0-9]|$)", re.I)


class Table:
    """Rows of local JSONL, JSON, CSV or Parquet files, or of one split of a hub dataset or a folder laid out like one.

    A path with one of these endings (also followed by ``.gz``) is a file. A pattern such as ``shards/*.jsonl`` means
    all files that match it; a folder means all such files in it, in order of name. A folder with a README.md, or with
    files or folders named after splits, is laid out like a hub dataset; ``split`` chooses from it. Any other path is a
    hub id. Rows of a file are named by the file's name and their number from 1 (for JSONL: their line). Other rows are
    named by their index from 0.

    Args:
        path: The file, the pattern, the folder, or the hub id (``owner/name``).
        split: Hub, and folder laid out like one: the split to read.
        revision: Hub only: branch, tag or commit. None reads the newest commit, and ``describe`` names that commit.
        data_dir: Hub only: the folder inside the repository that holds the dataset.
        config: Hub, and folder laid out like one: name of the dataset's configuration.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        revision: str | None = None,
        data_dir: str | None = None,
        config: str | None = None,
    ) -> None:
        self.path, self.split, self.revision, self.data_dir, self.config = path, split, revision, data_dir, config

    @property
    def file(self) -> bool:
        """Whether this is one file, and not several files, a folder or a hub dataset."""
        path = Path(self.path)
        return path.is_file() or (format_of(path) is not None and not path.is_dir() and not self._pattern)

    @property
    def name(self) -> str:
        """The prefix of row names: the file's name, or the folder or hub id with configuration, folder and split."""
        if self.file:
            return Path(self.path).name
        if self._pattern or (Path(self.path).is_dir() and not self._like_a_hub):
            return self.path
        parts = [part for part in (self.path, self.data_dir, self.config) if part]
        return f"{'/'.join(parts)}[{self.split}]"

    def describe(self) -> dict[str, str]:
        """Identifies the data: a hash of the content, or the hub id with the split and the commit that is read."""
        if self.file:
            return {"name": self.name, "sha256": _sha256(Path(self.path))}
        if self._pattern:
            return {"name": self.name, "sha256": _sha256_of(self._files())}
        if Path(self.path).is_dir():
            paths = sorted(path for path in Path(self.path).rglob("*") if path.is_file())
            return {"name": self.name, "sha256": _sha256_of(paths, self.path)}
        return {"name": self.name, "commit": str(self._builder().hash)}

    def records(self) -> Records:
        """Every row with its name, in order; a ``BadRow`` for a line that holds no row.

        Raises:
            ValueError: A file is missing, has an unknown format or cannot be read in the format of its name, or a hub
                dataset cannot be loaded.
        """
        if self.file:
            yield from read(Path(self.path))
        elif self._pattern or (Path(self.path).is_dir() and not self._like_a_hub):
            for path in self._files():
                yield from read(path)
        else:
            name = self.name
            yield from ((f"{name}:{i}", row) for i, row in enumerate(self._dataset()))

    def parsed(self, parse: Callable[[str, Record], Parsed]) -> Iterator[Parsed | BadRow]:
        """The result of ``parse(name, record)`` for every row, or the ``BadRow`` that it raised."""
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

    @property
    def _pattern(self) -> bool:
        return glob.has_magic(self.path) and not Path(self.path).exists()

    @property
    def _like_a_hub(self) -> bool:
        folder = Path(self.path)
        inside = [path.relative_to(folder) for path in folder.rglob("*")]
        named = [part for path in inside for part in path.parts if SPLIT_NAME.search(part)]
        return (folder / "README.md").is_file() or bool(named)

    def _files(self) -> list[Path]:
        """The files that match the pattern or lie in the folder, sorted by name."""
        found = glob.glob(self.path, recursive=True) if self._pattern else Path(self.path).rglob("*")
        paths = sorted(path for path in map(Path, found) if path.is_file())
        files = paths if self._pattern else [path for path in paths if format_of(path) is not None]
        if not files:
            what = (
                "matches no file" if self._pattern else f"is a folder without a file that ends in {', '.join(FORMATS)}"
            )
            raise ValueError(f"{self.path}: {what}")
        return files

    def _builder(self) -> Any:
        return self._loaded(lambda datasets: self._open(datasets))

    def _dataset(self) -> Any:
        def load(datasets: Any) -> Any:
            builder = self._open(datasets)
            self._check_split(builder)
            builder.download_and_prepare()
            return builder.as_dataset(split=self.split)

        return self._loaded(load)

    def _check_split(self, builder: Any) -> None:
        """Refuse a split that the dataset does not have, before anything is downloaded."""
        known = list(builder.info.splits or builder.config.data_files or ())
        unknown = [name for name in re.findall(r"(?:^|\+)\s*([^\[+\s]+)", self.split) if name != "all"]
        missing = next((name for name in unknown if known and name not in known), None)
        if missing is not None:
            raise ValueError(f"it has no split {missing!r}: set split to one of {', '.join(known)}")

    def _open(self, datasets: Any) -> Any:
        return datasets.load_dataset_builder(
            self.path, name=self.config, revision=self.revision, data_dir=self.data_dir
        )

    def _loaded(self, load: Callable[[Any], Any]) -> Any:
        """Calls ``load`` with the datasets package. On failure, raises an error of one line that names the dataset."""
        import datasets  # the import takes a second, and local files do not need it

        try:
            return load(datasets)
        except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            hint = "; name one with config:" if "Config name is missing" in reason else ""
            raise ValueError(f"{self.name}: cannot be loaded{hint} ({reason[:300]})") from error


def number_of(row: str, column: str, value: object) -> float:
    """``value`` as a finite number; the text of a CSV cell is parsed. Raises BadRow if that fails."""
    if isinstance(value, Cell):
        if not value.strip():
            raise BadRow(row, column, "is null or missing")
        try:
            value = float(value)
        except ValueError:
            raise BadRow(row, column, "is not a number") from None
    return check_number(row, column, value)


def flag_of(row: str, column: str, value: object) -> bool:
    """``value`` as a flag; the text of a CSV cell is parsed. Raises BadRow if that fails."""
    if isinstance(value, Cell):
        value = {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower(), value)
    return check_flag(row, column, value)


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error


def _sha256_of(paths: list[Path], folder: str | None = None) -> str:
    """One hash of the names and contents of several files."""
    names = (path.relative_to(folder).as_posix() if folder else path.name for path in paths)
    lines = [f"{name}:{_sha256(path)}\n" for name, path in zip(names, paths, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
