"""One command for a machine with a CUDA device: is every number right, and how fast is each part?

    make gpu                   # or: python -m models.gpu
    make gpu TUNE=1            # also times candidates for the kernels' static tables
    python -m models.gpu --device cpu --small      # a dry run, as CI does it

Runs the tests marked gpu, compares every kernel with float64 at shapes drawn anew, measures the device's own rates,
times the head (ops.sequence_logratio.bench) and whole training steps, prints one table last, and writes CSV and JSON.
The exit status is 1 if a number is wrong.
"""

import argparse
import csv
import importlib.util
import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from models.gpu import correctness, prediction, steps, tuning
from models.gpu.timing import Ceilings, ceilings

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str] | None = None) -> int:
    """Run all parts; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m models.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes: a dry run")
    parser.add_argument(
        "--seed", type=int, default=None, help="of the shapes and inputs; by default a new one each time"
    )
    parser.add_argument("--tune", action="store_true", help="time candidates for the kernels' static tables")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="parts that would start later than this are left out"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: torch finds no CUDA device\ntry: python -m models.gpu --device cpu --small", file=sys.stderr)
        return 2
    options.seed = int(time.time()) if options.seed is None else options.seed
    options.out.mkdir(parents=True, exist_ok=True)
    return _Session(options).run()


class _Session:
    """One run: its options, its rows by part, and what went wrong."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.started = time.monotonic()
        self.rows: dict[str, list[Row]] = {}
        self.wrong: list[str] = []
        self.left_out: list[str] = []
        self.ceiling: Ceilings | None = None

    def run(self) -> int:
        facts = self._facts()
        print(json.dumps(facts), flush=True)
        small, device = self.options.small, self.options.device
        self._part("kernels", self._kernels)
        self._part("tests", self._tests)
        ceiling = ceilings(device, torch.bfloat16 if device == "cuda" else torch.float32)
        self.ceiling = ceiling
        facts |= {"matmul_tflops": ceiling.matmul / 1e12, "copy_gb_per_second": ceiling.copy / 1e9}
        shapes = ["tiny"] if small else ["A", "B", "C"]
        for shape in shapes:
            self._part(f"head {shape}", lambda shape=shape: self._head(shape))
        for shape in ["tiny"] if small else ["0.5B", "1.5B"]:
            self._part(
                f"step {shape}",
                lambda shape=shape: steps.measure(
                    shape,
                    device,
                    ceiling,
                    pairs=2 if small else 8,
                    rounds=1 if small else 5,
                    seed=self.options.seed,
                ),
            )
        if self.options.tune:
            self._part("tuning", lambda: tuning.candidates(device, small))
        facts["seconds"] = time.monotonic() - self.started
        self._write(facts)
        print(self._table(facts))
        return 1 if self.wrong else 0

    def _part(self, name: str, work: Any) -> None:
        """Run a part. A fault in it is written down, and the others still run."""
        if time.monotonic() - self.started > 60 * self.options.minutes:
            self.left_out.append(f"{name}: --minutes {self.options.minutes:g} are over")
            return
        try:
            self.rows[name] = list(work())
        except Exception as error:  # whatever it is, one part's fault must not hide the numbers of the others
            self.wrong.append(f"{name}: {type(error).__name__}: {str(error).partition(chr(10))[0][:300]}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(f"{name}: done after {time.monotonic() - self.started:.0f} s", flush=True)

    def _kernels(self) -> list[Row]:
        problems = 3 if self.options.small else 9
        rows: list[Row] = list(correctness.check(self.options.device, self.options.small, self.options.seed, problems))
        for row in rows:
            if row["ok"] is False:
                self.wrong.append("{backend} {what} at {shape}: {error:.3g} > {allowed:.3g}".format(**row))
        if not any(row["ok"] for row in rows):
            self.wrong.append("kernels: no backend ran")
        self.left_out += sorted({f"{row['backend']}: {row['why']}" for row in rows if row["ok"] is None})
        return rows

    def _tests(self) -> list[Row]:
        if self.options.device == "cpu" or not importlib.util.find_spec("pytest"):
            self.left_out.append("tests marked gpu: " + ("no GPU" if self.options.device == "cpu" else "no pytest"))
            return []
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-W", "ignore", "-p", "no:cacheprovider", "tests"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=240, check=False)
        (self.options.out / "tests.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
        last = (done.stdout.strip().splitlines() or ["no output"])[-1]
        if done.returncode:
            self.wrong.append(f"tests marked gpu: {last}")
        return [{"tests": last}]

    def _head(self, shape: str) -> list[Row]:
        """The head's benchmark in a process of its own, so that its peaks are its own."""
        modes = ["cached"] if self.options.small else ["full", "cached", "frozen cached", "nograd"]
        command = [sys.executable, "-m", "ops.sequence_logratio.bench", "--shape", shape, "--modes", *modes]
        command += ["--repeats", "1" if self.options.small else "4", "--device", self.options.device]
        if self.options.small:  # under Triton's interpreter the fused backend takes minutes
            command += ["--providers", "chunked", "plain torch"]
        done = subprocess.run(
            [*command, "--out", str(self.options.out)],
            cwd=ROOT,
            capture_output=True,
            encoding="utf-8",
            timeout=150,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        with open(self.options.out / f"{shape}.csv", encoding="utf-8") as file:
            return prediction.beside(list(csv.DictReader(file)), self.options.device, self.ceiling)

    def _facts(self) -> Row:
        cuda = self.options.device == "cuda"
        return {
            "command": " ".join(["python -m models.gpu", *sys.argv[1:]]),
            "date": datetime.now(UTC).date().isoformat(),
            "device": torch.cuda.get_device_name() if cuda else "CPU",
            "capability": list(torch.cuda.get_device_capability()) if cuda else None,
            "memory_gib": torch.cuda.get_device_properties(0).total_memory / 2**30 if cuda else None,
            "seed": self.options.seed,
            "versions": {
                name: metadata.version(name)
                for name in ("torch", "triton", "transformers", "liger-kernel", "cut-cross-entropy", "quack-kernels")
                if _installed(name)
            },
        }

    def _write(self, facts: Row) -> None:
        report = {**facts, "wrong": self.wrong, "left_out": self.left_out, "parts": self.rows}
        (self.options.out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        rows = [{"part": part, **row} for part, rows in self.rows.items() for row in rows]
        with open(self.options.out / "gpu.csv", "w", newline="", encoding="utf-8") as file:
            sheet = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
            sheet.writeheader()
            sheet.writerows(rows)

    def _table(self, facts: Row) -> str:
        lines = [f"{facts['device']}, torch {facts['versions']['torch']}, {facts['date']}, seed {facts['seed']}"]
        lines.append(
            f"measured: {facts['matmul_tflops']:.4g} TFLOP/s of products, {facts['copy_gb_per_second']:.4g} GB/s"
        )
        kernels = [row for row in self.rows.get("kernels", []) if row["ok"] is not None]
        lines.append(
            f"kernels: {sum(bool(row['ok']) for row in kernels)} of {len(kernels)} comparisons with float64 right"
        )
        lines += [f"tests: {row['tests']}" for row in self.rows.get("tests", [])]
        heads = ("ms", "predicted", "/ plain", "ceiling", "peak MiB")
        lines.append(f"{'head: shape, mode, provider':<50}" + "".join(f"{head:>10}" for head in heads))
        lines += [_head_line(row) for part, rows in self.rows.items() if part.startswith("head ") for row in rows]
        lines.append(
            f"{'step: model, layout, reference':<50}{'seconds':>10}{'tokens/s':>10}{'ceiling':>10}{'peak GiB':>10}"
        )
        for part, rows in self.rows.items():
            if part.startswith("step "):
                lines += [_step_line(row) for row in rows]
        for row in self.rows.get("tuning", []):
            lines.append(f"tuning: {row['kernel']} {row['candidate']}: {row['ms']:.3f} ms")
        lines += [f"left out: {reason}" for reason in self.left_out]
        lines += [f"WRONG: {reason}" for reason in self.wrong] or ["every number is right"]
        return "\n".join(lines)


def _head_line(row: Row) -> str:
    predicted = "" if row["predicted_ms"] is None else f"{row['predicted_ms']:.1f}"
    name = f"{row['shape']} {row['mode']} {row['provider']}"
    return (
        f"{name:<50}{float(row['ms']):>10.1f}{predicted:>10}{float(row['over_plain']):>10.2f}"
        f"{float(row['of_ceiling']):>10.1%}{float(row['peak_mib']):>10.0f}"
    )


def _step_line(row: Row) -> str:
    if "why" in row:
        return f"{row['case']:<50}{row['why']}"
    peak = "" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"
    return (
        f"{row['case']:<50}{row['seconds']:>10.3f}{row['tokens_per_second']:>10.0f}{row['of_matmul']:>10.1%}{peak:>10}"
    )


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
