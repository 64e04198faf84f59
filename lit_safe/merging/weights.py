"""The weights of a model folder, read tensor by tensor."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"


class ModelWeights:
    """The tensors of a Hugging Face folder (safetensors). A tensor is read when it is asked for.

    Args:
        folder: A folder that ``export`` wrote, or another one in this format.

    Raises:
        FileNotFoundError: If there is no such folder, or it has no safetensors.
        ValueError: If it holds only an adapter, or is a checkpoint, or a file is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._files = _files(self.folder)
        self._open: dict[str, Any] = {}
        try:
            for name in self.layout:
                self._open[name] = safe_open(self.folder / name, framework="pt").__enter__()
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{self.folder / name} cannot be read ({error})") from error
        if not self._files:
            self._files = {key: SINGLE for key in self._open[SINGLE].keys()}  # noqa: SIM118  (it is no mapping)

    @property
    def layout(self) -> dict[str, list[str]]:
        """File → names of its tensors, in the order of the folder."""
        if not self._files:
            return {SINGLE: []}
        found: dict[str, list[str]] = {}
        for name, file in self._files.items():
            found.setdefault(file, []).append(name)
        return found

    @property
    def names(self) -> set[str]:
        """The names of all tensors. Of tied weights only one is stored."""
        return set(self._files)

    def shape(self, name: str) -> list[int]:
        """The shape of a tensor, which is not read."""
        found: list[int] = self._open[self._files[name]].get_slice(name).get_shape()
        return found

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._open[self._files[name]].get_tensor(name)
        return tensor

    def __enter__(self) -> "ModelWeights":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for file in self._open.values():
            file.__exit__(kind, error, at)


def config_of(folder: Path) -> dict[str, Any]:
    """``config.json`` of a model folder.

    Raises:
        ValueError: If it is missing or damaged.
    """
    try:
        found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'} cannot be read ({error}): is {folder} a model?") from error
    return found


def _files(folder: Path) -> dict[str, str]:
    """Name of each tensor → its file; empty if there is a single file, which says itself what it holds."""
    if folder.suffix == ".ckpt" or (folder / "checkpoints").is_dir():
        raise ValueError(f"{folder} is {'a checkpoint' if folder.suffix == '.ckpt' else 'a run folder'}: {EXPORT}")
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: merge takes folders that export wrote")
    if (folder / ADAPTER).exists():
        raise ValueError(f"{folder} holds only an adapter, whose weights are no weights of a model: {EXPORT}")
    if (folder / INDEX).exists():
        index: Mapping[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return dict(index["weight_map"])
    if not (folder / SINGLE).exists():
        raise FileNotFoundError(f"{folder} has neither {SINGLE} nor {INDEX}: {EXPORT}")
    return {}


EXPORT = "`python train.py export` writes its policy, with any adapter merged, as a folder that merge takes"
