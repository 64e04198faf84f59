"""Processed rows on disk. The key is a hash of named inputs; nothing else decides whether an entry is found."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from data.schema import SftSource, Source

CODE = Path(__file__).parent
STORED = ("arrays.npz", "facts.json")
CHECKSUMS = "sha256.json"


class Cache:
    """One folder for each set of inputs, named by their sha256: ``inputs.json``, ``facts.json`` and ``arrays.npz``.

    ``sha256.json`` holds the checksums of the last two files. A file that does not match its checksum is never read.

    Args:
        folder: Folder of the cache, created on the first write.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()

    def entry(self, inputs: Mapping[str, Any]) -> Path:
        """The folder for these inputs, whether it exists or not."""
        return self.folder / hashlib.sha256(_canonical(inputs).encode()).hexdigest()

    def read(self, inputs: Mapping[str, Any]) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]] | None:
        """Arrays and facts stored under these inputs, or None.

        Raises:
            ValueError: The entry is damaged. The message names its file.
        """
        entry = self.entry(inputs)
        if not entry.is_dir():
            return None
        sums = _checksums(entry)
        for name in STORED:
            if _sha256(entry / name) != sums.get(name):
                raise _damaged(entry / name)
        with np.load(entry / "arrays.npz", allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        return arrays, json.loads((entry / "facts.json").read_text("utf-8"))

    def write(self, inputs: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]], facts: object) -> None:
        """Stores an entry atomically: readers never see part of it. Of two writers, the first one wins."""
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / f".unfinished-{uuid.uuid4().hex}"
        unfinished.mkdir()  # not mkdtemp: its mode would exclude other users of a shared cache
        try:
            np.savez(unfinished / "arrays.npz", **arrays)  # type: ignore[arg-type]
            (unfinished / "facts.json").write_text(json.dumps(facts), "utf-8")
            (unfinished / "inputs.json").write_text(json.dumps(inputs, indent=2, sort_keys=True), "utf-8")
            sums = {name: _sha256(unfinished / name) for name in STORED}
            (unfinished / CHECKSUMS).write_text(json.dumps(sums), "utf-8")
            try:
                os.rename(unfinished, self.entry(inputs))
            except OSError:
                if not self.entry(inputs).is_dir():
                    raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _checksums(entry: Path) -> dict[str, str]:
    try:
        sums = json.loads((entry / CHECKSUMS).read_bytes())
    except (OSError, ValueError) as error:
        raise _damaged(entry / CHECKSUMS) from error
    if not isinstance(sums, dict):
        raise _damaged(entry / CHECKSUMS)
    return sums


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> ValueError:
    return ValueError(
        f"{path}: this file of the data cache is damaged; delete the folder {path.parent}, and the next "
        "run makes it again"
    )


def named_inputs(
    sources: Sequence[Source | SftSource], tokenizer: PreTrainedTokenizerBase, **options: object
) -> dict[str, Any]:
    """All inputs that decide the processed rows, by name. An option without a JSON value is stored as its ``repr``.

    Raises:
        ValueError: The ``repr`` of an option is the default one, an address in memory.
    """
    for name, value in options.items():
        if type(value).__repr__ is object.__repr__:
            raise ValueError(f"{name}: {type(value).__name__} has no repr that names its options: make it a dataclass")
    return {
        "sources": [{"class": type(source).__qualname__, **source.describe()} for source in sources],
        "tokenizer": tokenizer_digest(tokenizer),
        "template": hashlib.sha256(_canonical(tokenizer.chat_template).encode()).hexdigest(),
        "code": _code_digest(),
        **{name: value if isinstance(value, str | int | None) else repr(value) for name, value in options.items()},
    }


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the tokenizer's behaviour. It leaves out padding and truncation, which depend on the last caller."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = {"vocabulary": tokenizer.get_vocab()} if backend is None else json.loads(backend.to_str())
    content.pop("padding", None)
    content.pop("truncation", None)
    content["class"] = type(tokenizer).__name__
    content["special"] = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


def _code_digest() -> str:
    """A hash of this package's source code, so that changed code invalidates the cache."""
    digest = hashlib.sha256()
    for path in sorted(CODE.rglob("*.py")):
        digest.update(f"{path.relative_to(CODE).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True)
