"""Merges model folders into a new one, a file of weights at a time."""

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from lit_safe.hashing import hash64
from lit_safe.merging.methods import OF_PEFT, linear, of_changes
from lit_safe.merging.weights import INDEX, ModelWeights, config_of

COPIED = (".json", ".jinja", ".txt", ".model", ".tiktoken")
"""Endings of the files of a model folder that are copied: config, tokenizer, chat template."""
MAY_DIFFER = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}
MAY_DIFFER |= {"bos_token_id", "eos_token_id", "pad_token_id"}
"""Settings of ``config.json`` that do not change what the weights mean."""


def merge_folders(
    folders: Sequence[Path],
    out: Path,
    weights: Sequence[float],
    method: str,
    base: Path | None,
    density: float,
    seed: int,
) -> None:
    """Write the merged model into ``out``, with the first folder's config and tokenizer.

    Args:
        folders: M models.
        out: Folder to write, which does not exist.
        weights: M factors.
        method: ``linear``, ``ties``, ``dare`` or ``dare_ties``.
        base: Model from which the others were trained. ``linear`` reads none.
        density: Share of the changes that the other methods keep.
        seed: Of ``dare``.

    Raises:
        ValueError: If the models differ in anything but the values of their weights. Names the difference.
    """
    every = [*folders, *([] if base is None else [base])]
    with ExitStack() as stack:
        models = [stack.enter_context(ModelWeights(folder)) for folder in every]
        _check_configs(every)
        _check_tokenizers(every)
        _check_tensors(models)

        def merged(name: str) -> Tensor:
            tensors = [model[name] for model in models]
            if not tensors[0].is_floating_point():
                if any(not torch.equal(tensors[0], other) for other in tensors[1:]):
                    raise ValueError(f"{name} holds whole numbers that differ: they cannot be merged")
                return tensors[0]
            if method not in OF_PEFT:
                return linear(tensors[: len(folders)], weights)
            assert base is not None
            drawn = hash64("merge", seed, name) % 2**63
            return of_changes(method, tensors[-1], tensors[:-1], weights, density, drawn)

        out.mkdir(parents=True)
        kinds, size = set(), 0
        for file, names in models[0].layout.items():
            content = {name: merged(name).contiguous() for name in names}
            kinds |= {one.dtype for one in content.values() if one.is_floating_point()}
            size += sum(one.numel() * one.element_size() for one in content.values())
            save_file(content, out / file, metadata={"format": "pt"})
    _copy(folders[0], out)
    _write_config(folders[0], out, kinds)
    if (folders[0] / INDEX).exists():
        index = json.loads((folders[0] / INDEX).read_text(encoding="utf-8"))
        index["metadata"] = {**index.get("metadata", {}), "total_size": size}
        _write(out / INDEX, index)


def _check_configs(folders: Sequence[Path]) -> None:
    first = config_of(folders[0])
    for folder in folders[1:]:
        other = config_of(folder)
        for key in sorted({*first, *other} - MAY_DIFFER):
            if first.get(key) != other.get(key):
                raise ValueError(
                    f"{folders[0]} and {folder} are different models: {key} is {first.get(key)!r} and "
                    f"{other.get(key)!r}"
                )


def _check_tokenizers(folders: Sequence[Path]) -> None:
    """Refuse different vocabularies: the same row of the embedding would be another token."""
    vocabularies = {}
    for folder in folders:
        if any(folder.glob("tokenizer*")):
            vocabularies[folder] = transformers.AutoTokenizer.from_pretrained(
                str(folder), trust_remote_code=False
            ).get_vocab()
    for folder, vocabulary in list(vocabularies.items())[1:]:
        first = next(iter(vocabularies))
        if vocabulary != vocabularies[first]:
            raise ValueError(f"the tokenizers of {first} and {folder} have different vocabularies")


def _check_tensors(models: Sequence[ModelWeights]) -> None:
    first = models[0]
    for other in models[1:]:
        if first.names != other.names:
            name = min(first.names ^ other.names)
            has, lacks = (first, other) if name in first.names else (other, first)
            raise ValueError(f"{has.folder} has a weight {name}, and {lacks.folder} has none: they cannot be merged")
        for name in sorted(first.names):
            if first.shape(name) != other.shape(name):
                raise ValueError(
                    f"{name} has the shape {first.shape(name)} in {first.folder} and {other.shape(name)} in "
                    f"{other.folder}"
                )


def _copy(folder: Path, out: Path) -> None:
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in COPIED and path.name != INDEX:
            shutil.copyfile(path, out / path.name)


def _write_config(folder: Path, out: Path, kinds: set[torch.dtype]) -> None:
    """The first model's ``config.json``, with the type of the merged weights if they have one."""
    config = config_of(folder)
    for key in ("dtype", "torch_dtype"):
        if key in config and len(kinds) == 1:
            config[key] = str(next(iter(kinds))).removeprefix("torch.")
    _write(out / "config.json", config)


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
