"""Merges models of the same architecture into one, by their weights."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from lit_safe.errors.message import SettingError
from lit_safe.merging.card import card
from lit_safe.merging.folders import merge_folders
from lit_safe.merging.methods import OF_PEFT, shares

log = logging.getLogger(__name__)


def merge(
    models: list[str],
    out: str,
    weight: float | list[float] | None = None,
    method: str = "linear",
    base: str | None = None,
    density: float = 0.2,
    seed: int = 0,
) -> int:
    """Merge exported models of the same architecture into a new folder, by their weights (P-SACPO).

    ``linear`` interpolates: (1 - WEIGHT) of the first model and WEIGHT of the second. At 0 and 1 the result is the
    first or second model, bit by bit. ``ties``, ``dare`` and ``dare_ties`` merge the changes from a base. Tensors are
    read one by one, so that memory for one file of weights suffices.

    Args:
        models: Folders that ``export`` wrote, with any adapter merged.
        out: Folder to write. It must not exist, or must be empty.
        weight: Share of the second of two models, from 0 to 1, or one number for each model. With null they count
            equally.
        method: linear, ties, dare or dare_ties.
        base: Folder of the model from which the others were trained, for every method but linear.
        density: Share of the changes that ties and dare keep, in (0, 1].
        seed: Of the random choice of dare.

    Returns:
        The exit status 0.

    Raises:
        SettingError: If the settings do not fit each other.
        FileExistsError: If ``out`` is not empty.
        ValueError: If the models differ in anything but the values of their weights.
    """
    weights = _checked(models, weight, method, base, density)
    folder = Path(out)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{out} exists and is not empty: name another folder, or delete it first")
    draft = folder.absolute().parent / f".{folder.name}.unfinished"
    shutil.rmtree(draft, ignore_errors=True)  # left by a merge that was killed
    folders, origin = [Path(name) for name in models], None if base is None else Path(base)
    try:
        merge_folders(folders, draft, weights, method, origin, density, seed)
        (draft / "README.md").write_text(card(folders, weights, method, origin, density, seed), encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    log.info("wrote %s: %s", folder, ", ".join(f"{w:g} x {m}" for w, m in zip(weights, models, strict=True)))
    return 0


def _checked(
    models: Sequence[str], weight: float | list[float] | None, method: str, base: str | None, density: float
) -> list[float]:
    if len(models) < 2:
        raise SettingError(f"merge needs at least two models, got {len(models)}")
    weights = shares(weight, len(models), method)
    if method in OF_PEFT and base is None:
        raise SettingError(f"method {method} merges changes from a base: give --base")
    if method not in OF_PEFT and base is not None:
        raise SettingError(f"method {method} reads no base: remove --base")
    if not 0 < density <= 1:
        raise SettingError(f"density must lie in (0, 1], got {density}")
    return weights
