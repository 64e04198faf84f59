"""Output of the benchmark: a table on the terminal, a CSV, a description of the machine, and a plot."""

import argparse
import csv
import datetime
import json
import platform
import sys
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch

from ops.sequence_logratio.bench_cases import SHAPES

COLUMNS = {  # of the printed table: heading and number format
    "ms": ("ms", "{:.1f}"),
    "ms_min": ("least", "{:.1f}"),
    "ms_max": ("most", "{:.1f}"),
    "cpu_ms_of_step": ("processor", "{:.1f}"),
    "over_ours": ("/ ours", "{:.2f}"),
    "over_plain": ("/ plain", "{:.2f}"),
    "over_prompted": ("/ prompted", "{:.2f}"),
    "of_ceiling": ("of ceiling", "{:.1%}"),
    "peak_mib": ("peak MiB", "{:.0f}"),
    "beyond_gradients_mib": ("- gradients", "{:.0f}"),
    "plain_peak_over": ("plain /", "{:.1f}"),
    "plain_beyond_over": ("- gradients", "{:.1f}"),
    "error_nats": ("nats", "{:.1e}"),
}


def table(rows: list[dict[str, Any]]) -> str:
    """One line for each provider of one mode."""
    width = max(len(row["provider"]) for row in rows)
    heading = rows[0]["mode"].ljust(width) + "".join(title.rjust(12) for title, _ in COLUMNS.values())
    lines = [
        row["provider"].ljust(width) + "".join(form.format(row[key]).rjust(12) for key, (_, form) in COLUMNS.items())
        for row in rows
    ]
    return "\n".join([heading, *lines])


def write(rows: list[dict[str, Any]], arguments: argparse.Namespace, out: Path) -> None:
    """Write the CSV, a description of the machine, and the plot."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / f"{arguments.shape}.csv", "w", newline="", encoding="utf-8") as file:
        sheet = csv.DictWriter(file, list(rows[0]))
        sheet.writeheader()
        sheet.writerows(rows)
    cuda = arguments.device == "cuda"
    facts = {
        "command": " ".join(["python", "-m", "ops.sequence_logratio.bench", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU",
        "threads": arguments.threads,
        "dtype": str(SHAPES[arguments.shape][4]),
        "versions": {name: metadata.version(name) for name in ("torch", "triton") if util.find_spec(name)},
    }
    (out / f"{arguments.shape}.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    import matplotlib.pyplot as plt

    modes = list(dict.fromkeys(row["mode"] for row in rows))
    figure, axes = plt.subplots(2, len(modes), figsize=(3.2 * len(modes), 5.6), squeeze=False, layout="constrained")
    for column, mode in zip(axes.T, modes, strict=True):
        here = [row for row in rows if row["mode"] == mode]
        for axis, key in zip(column, ("ms", "beyond_gradients_mib"), strict=True):
            axis.barh([row["provider"] for row in here], [row[key] for row in here])
        column[0].set(title=mode, xlabel="ms")
        column[1].set(xlabel="peak MiB beyond inputs and gradients")
        for axis in column:
            axis.tick_params(labelleft=mode == modes[0])
    figure.suptitle(f"{arguments.shape}: {facts['device']}, torch {facts['versions']['torch']}")
    figure.savefig(out / f"{arguments.shape}.png", dpi=120)
    plt.close(figure)
