"""TensorBoard's table of several runs (HPARAMS): the settings that differ, and every measure after training."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.tensorboard import SummaryWriter

from lit_safe.statistics.clustered import Estimate


class Entry(NamedTuple):
    """A run in the table: its name, its objective, its ``config.yaml`` and its measures after training."""

    name: str
    objective: str
    config: Mapping[str, Any]
    after: Mapping[str, Estimate]


def write_hparams(folder: Path, runs: Sequence[Entry]) -> None:
    """Write one entry per run, in place of those of an earlier comparison."""
    shutil.rmtree(folder, ignore_errors=True)  # otherwise entries of an earlier comparison would appear twice
    flat = [dict(_leaves(run.config)) for run in runs]
    differing = [key for key in dict.fromkeys(k for f in flat for k in f) if len({str(f.get(key)) for f in flat}) > 1]
    for run, leaves in zip(runs, flat, strict=True):
        hparams = {"objective": run.objective, **{key: _plain(leaves.get(key)) for key in differing}}
        metrics = {f"after/{name}": estimate.mean for name, estimate in run.after.items()}
        with SummaryWriter(str(folder / run.name.replace("/", "_"))) as writer:
            writer.add_hparams(hparams, metrics, run_name=".")


def _leaves(config: object, key: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of each value in a nested configuration. Positions in a list are keys."""
    items: Iterator[tuple[object, object]] | None = None
    if isinstance(config, Mapping):
        items = iter(config.items())
    elif isinstance(config, list):
        items = iter(enumerate(config))
    if items is None:
        yield key, config
        return
    for name, value in items:
        yield from _leaves(value, f"{key}.{name}" if key else str(name))


def _plain(value: object) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
