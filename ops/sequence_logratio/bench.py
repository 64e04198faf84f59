"""Times the backends, plain torch and other fused losses on one DPO step's head: python -m ops...bench --help.

Letters: T scored positions, N sequences (the first half chosen, the second rejected), D hidden width, V vocabulary.
"""

import argparse
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ops.sequence_logratio import api, peak_memory
from ops.sequence_logratio.bench_cases import (
    FLOOR,
    PLAIN,
    PROMPT_PER_RESPONSE,
    PROMPTED,
    SHAPES,
    Case,
    F,
    Provider,
    make_case,
    now,
    providers,
    step,
)
from ops.sequence_logratio.bench_output import table, write


def matmul_rate(case: Case) -> float:
    """Operations per second of the fastest of the three products of a slab: an upper bound for this run."""
    weight_SD = case.weight_VD[:8192]
    logit_TS = case.hidden_TD @ weight_SD.T
    products: list[Callable[[], Tensor]] = [
        lambda: torch.mm(case.hidden_TD, weight_SD.T, out=logit_TS),
        lambda: logit_TS @ weight_SD,
        lambda: logit_TS.T @ case.hidden_TD,
    ]
    rates = []
    for multiply in products:
        seconds = []
        for _ in range(5):
            start = now(logit_TS)
            multiply()
            seconds.append(now(logit_TS) - start)
        rates.append(2 * logit_TS.numel() * case.hidden_TD.shape[1] / min(seconds))
    return max(rates)


def truth(case: Case) -> Tensor:
    """[N] sums of log-probs in float64, a few rows at a time."""
    weight_VD = case.weight_VD.double()
    parts = [
        -F.cross_entropy(h.double() @ weight_VD.T, t, reduction="none")
        for h, t in zip(case.hidden_TD.split(128), case.target_T.split(128), strict=True)
    ]
    return torch.cat(parts).view(case.sequences, -1).sum(1)


def error_nats(case: Case, provider: Provider, truth_N: Tensor) -> float:
    """Root mean square over sequences of the error of their log-probs."""
    if provider.logp is None:
        return math.nan
    with torch.no_grad():
        logp_T = provider.logp(case.hidden_TD, case.weight_VD, case.target_T)
    sum_N = logp_T.view(case.sequences, -1).to(logp_T.dtype).sum(1).double()
    return float((sum_N - truth_N).square().mean().sqrt())


def peak_mib(arguments: argparse.Namespace, case: Case, name: str, mode: str) -> float:
    """MiB above the inputs at the peak of one step, including gradients; nan if it cannot be read.

    On a CPU it is read in a separate process.
    """
    if case.hidden_TD.is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(case, providers([name])[name], mode)()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if peak_memory.missing():
        return math.nan
    command = [sys.executable, "-m", __spec__.name, "--shape", arguments.shape, "--threads", str(arguments.threads)]
    done = subprocess.run([*command, "--peak", name, mode], capture_output=True, encoding="utf-8", check=True)
    return float(done.stdout)


def _print_peak(case: Case, name: str, mode: str) -> None:
    provider = providers([name])[name]
    step(make_case("tiny", "cpu"), provider, mode)()  # loads libraries and allocates their buffers
    peak_memory.lower()  # otherwise the step could reuse memory freed by make_case, which the peak would not show
    before = peak_memory.peak_mib()
    step(case, provider, mode)()
    print(peak_memory.peak_mib() - before)


def gradient_mib(case: Case, mode: str) -> float:
    """MiB of the gradients of the hidden states and, if it trains, of the weight."""
    tensors = [] if mode == "nograd" else [case.hidden_TD] if "frozen" in mode else [case.hidden_TD, case.weight_VD]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20


def measure(arguments: argparse.Namespace, case: Case) -> list[dict[str, Any]]:
    """One row for each provider and mode."""
    chosen = providers(arguments.providers)
    rate = matmul_rate(case)
    truth_N = truth(case)
    errors: dict[str, float] = {}
    failed = {name: provider.missing for name, provider in chosen.items() if provider.missing}
    for name, provider in chosen.items():
        if name in failed:
            continue
        try:
            errors[name] = error_nats(case, provider, truth_N)
        except (ValueError, RuntimeError) as error:  # out of memory or an unsupported device: reported as a result
            failed[name] = _first_line(error)
    for name, why in failed.items():
        print(f"left out: {name}: {why}")
    if not case.hidden_TD.is_cuda and (why_no_peak := peak_memory.missing()):
        print(f"left out: peaks: {why_no_peak}")
    operations = 2 * len(case.target_T) * case.weight_VD.numel() / 2  # TDV
    rows = []
    peaks: dict[tuple[str, str], float] = {}  # by provider and kind of step; modes share them
    for mode in arguments.modes:
        part, base = (mode, "cached") if mode in ("forward", "backward") else ("total", mode)
        running = {
            name: step(case, provider, base)
            for name, provider in chosen.items()
            if name not in failed and (provider.logp is not None or base in ("full", "frozen"))
        }
        rounds, exhausted = take_turns(running, arguments.repeats)
        running.clear()  # frees their gradients before a step's peak is read
        for name, why in exhausted.items():
            print(f"left out of {mode}: {name}: {why}")
        seconds = {name: [taken[part] for taken in rounds[name]] for name in rounds}
        for name in rounds:
            if (name, base) not in peaks:
                peaks[name, base] = peak_mib(arguments, case, name, base)
        peak = {name: peaks[name, base] for name in rounds}
        beyond = {name: mib - gradient_mib(case, base) for name, mib in peak.items()}
        ours = min(
            (
                statistics.median(times)
                for name, times in seconds.items()
                if name in api.BACKENDS and name != "reference"
            ),
            default=math.nan,
        )
        of_mode = []
        for name, times in seconds.items():
            median = statistics.median(times)
            of_mode.append(
                {
                    "shape": arguments.shape,
                    "mode": mode,
                    "provider": name,
                    "ms": 1e3 * median,
                    "ms_min": 1e3 * min(times),
                    "ms_max": 1e3 * max(times),
                    # of the whole step; varies less than ms if other processes run
                    "cpu_ms_of_step": 1e3 * statistics.median(taken["cpu"] for taken in rounds[name]),
                    "over_ours": median / ours,
                    "over_plain": _over(times, seconds.get(PLAIN)),
                    "over_prompted": _over(times, seconds.get(PROMPTED)),
                    "of_ceiling": FLOOR[mode] * operations / median / rate,
                    "peak_mib": peak[name],
                    "beyond_gradients_mib": beyond[name],
                    "plain_peak_over": _fewer(peak[name], peak.get(PLAIN)),
                    "plain_beyond_over": _fewer(beyond[name], beyond.get(PLAIN)),
                    "error_nats": errors[name],
                }
            )
        if of_mode:
            print(table(of_mode), flush=True)
        rows += of_mode
    return rows


def take_turns(
    running: dict[str, Callable[[], dict[str, float]]], repeats: int
) -> tuple[dict[str, list[dict[str, float]]], dict[str, str]]:
    """Times of every step, round by round, so that other load affects all of them; and why some steps failed.

    The first round is a warm-up. A step that fails is removed from ``running``, with its gradients.
    """
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in running}
    failed: dict[str, str] = {}
    for _ in range(repeats + 1):
        for name in list(running):
            try:
                rounds[name].append(running[name]())
            except (ValueError, RuntimeError) as error:  # the backward pass may not fit even if the forward pass did
                failed[name] = _first_line(error)
                del running[name], rounds[name]
    return {name: taken[1:] for name, taken in rounds.items()}, failed


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _over(times: list[float], base: list[float] | None) -> float:
    """Median of the ratios of the same round."""
    return math.nan if base is None else statistics.median(a / b for a, b in zip(times, base, strict=True))


def _fewer(mib: float, base: float | None) -> float:
    """Ratio of the base's memory to this one. A small case may have no measurable memory."""
    return math.nan if base is None or mib <= 0 else base / mib


def main() -> None:
    """Parse the arguments, measure, write the results."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__)
    shapes = ["A", "B", "C"] if torch.cuda.is_available() else ["cpu"]
    parser.add_argument("--shape", dest="shapes", nargs="+", choices=SHAPES, default=shapes, help="one table for each")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--modes", nargs="+", choices=FLOOR, default=list(FLOOR))
    parser.add_argument("--providers", nargs="+", help="all by default")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--peak", nargs=2, metavar=("PROVIDER", "MODE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        _print_peak(make_case(arguments.shapes[0], arguments.device), *arguments.peak)
        return
    print(
        "Times are medians. '/' columns are ratios to our best backend, to plain torch over the same positions, and\n"
        f"to plain torch over prompt + response ({PROMPT_PER_RESPONSE} prompt positions per response position). Peaks\n"
        "exclude the inputs; 'plain /' is plain torch's peak / this peak. '- gradients' excludes those that all return."
    )
    for shape in arguments.shapes:
        arguments.shape = shape
        print(f"shape {shape}")
        if rows := measure(arguments, make_case(shape, arguments.device)):
            write(rows, arguments, arguments.out)


if __name__ == "__main__":
    main()
