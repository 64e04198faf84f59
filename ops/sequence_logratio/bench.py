"""Times the backends, plain torch and other people's fused losses on one DPO step's head: python -m ops...bench --help.

Letters: T scored positions, N sequences (the first half chosen, the second rejected), D hidden width, V vocabulary.
"""

import argparse
import csv
import ctypes
import datetime
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ops.sequence_logratio import api, token_logp

F = torch.nn.functional
SHAPES = {  # T, D, V, tokens of a sequence, dtype
    "A": (16384, 4096, 128256, 512, torch.bfloat16),
    "B": (8192, 2048, 151936, 512, torch.bfloat16),
    "C": (8192, 2304, 256000, 512, torch.bfloat16),
    "cpu": (2048, 576, 49152, 256, torch.float32),
    "tiny": (64, 32, 4096, 16, torch.float32),
}
# operations over TDV of a method that holds no logits: 2 for each forward pass, 6 backward with recomputation, 2 for
# the slopes of a frozen head
FLOOR = {"full": 10, "cached": 8, "frozen": 6, "frozen cached": 4, "forward": 2, "backward": 6, "nograd": 2}
PROMPT_PER_RESPONSE = 0.42  # UltraFeedback's median, the lowest of the common preference sets
PLAIN, PROMPTED = "plain torch", "plain torch, prompt too"
Logp = Callable[[Tensor, Tensor, Tensor], Tensor]


class Case(NamedTuple):
    """Inputs of one shape. The ``prompted`` ones carry prompt positions too, which score nothing."""

    hidden_TD: Tensor
    weight_VD: Tensor
    target_T: Tensor
    reference_TD: Tensor
    prompted_hidden: Tensor
    prompted_target: Tensor
    prompted_reference: Tensor
    sequences: int


class Provider(NamedTuple):
    """A way to compute the same thing."""

    logp: Logp | None = None
    prompted: bool = False
    loss: Callable[[Case, Tensor, bool], Tensor] | None = None  # of a whole step, for those that fuse the loss too
    missing: str | None = None


def make_case(name: str, device: str, seed: int = 0) -> Case:
    """Random states that are sure of some targets and not of others; a flat softmax would flatter gradient filters."""
    tokens, width, vocabulary, length, dtype = SHAPES[name]
    random = torch.Generator(device).manual_seed(seed)
    weight_VD = torch.randn(vocabulary, width, generator=random, device=device, dtype=dtype)
    target_T = torch.randint(vocabulary, (tokens,), generator=random, device=device)
    sure_T1 = 24 * torch.rand(tokens, 1, generator=random, device=device)
    toward_TD = sure_T1 * F.normalize(weight_VD[target_T].float(), dim=1)
    policy, reference = (
        (toward_TD + torch.randn(tokens, width, generator=random, device=device)).to(dtype) for _ in range(2)
    )
    prompt = math.ceil(tokens * PROMPT_PER_RESPONSE)
    prompt_TD = torch.randn(prompt, width, generator=random, device=device).to(dtype)
    return Case(
        policy,
        weight_VD,
        target_T,
        reference,
        torch.cat([policy, prompt_TD]),
        torch.cat([target_T, target_T.new_full((prompt,), -100)]),
        torch.cat([reference, prompt_TD]),
        tokens // length,
    )


def plain(hidden_TD: Tensor, weight_VD: Tensor, target_T: Tensor) -> Tensor:
    """What one writes: all logits, in fp32 for the softmax."""
    return -F.cross_entropy(F.linear(hidden_TD, weight_VD).float(), target_T, reduction="none")


def providers(names: list[str] | None) -> dict[str, Provider]:
    """Everything that can be asked for; what is not installed says so."""
    found = [module.__name__.rpartition(".")[2] for module in api.PREFERENCE]
    known = {name: Provider(partial(token_logp, backend=name)) for name in found}
    known[PLAIN] = Provider(plain)
    known[PROMPTED] = Provider(plain, prompted=True)
    known["F.linear_cross_entropy"] = _linear_cross_entropy()
    known["TRL selective_log_softmax"] = _trl()
    known["CCE"], known["CCE exact"] = _cce("cce"), _cce("cce_exact")
    known["Liger DPO"] = _liger()
    if unknown := set(names or ()) - set(known):
        raise SystemExit(f"no such provider: {sorted(unknown)}; there are {list(known)}")
    return {name: known[name] for name in names or known}


def _linear_cross_entropy() -> Provider:
    if not hasattr(F, "linear_cross_entropy"):
        return Provider(missing=f"torch {torch.__version__} has none")
    options = torch.nn.LinearCrossEntropyOptions()
    return Provider(lambda h, w, t: -F.linear_cross_entropy(h, w, t, reduction="none", options=options))


def _trl() -> Provider:
    if not util.find_spec("trl"):
        return Provider(missing="trl is not installed")
    selective_log_softmax = import_module("trl.trainer.utils").selective_log_softmax
    return Provider(lambda h, w, t: selective_log_softmax(F.linear(h, w), t))


def _cce(kind: str) -> Provider:
    if not util.find_spec("cut_cross_entropy"):
        return Provider(missing="cut-cross-entropy is not installed")
    linear_cross_entropy = import_module("cut_cross_entropy").linear_cross_entropy
    return Provider(lambda h, w, t: -linear_cross_entropy(h, w, t, reduction="none", impl=kind))


def _liger() -> Provider:
    if not util.find_spec("liger_kernel"):
        return Provider(missing="liger-kernel is not installed")
    chunked_loss = import_module("liger_kernel.chunked_loss")

    def loss(case: Case, hidden: Tensor, with_reference: bool) -> Tensor:
        shape = (case.sequences, -1, hidden.shape[1])
        fused = chunked_loss.LigerFusedLinearDPOLoss(beta=0.1, use_ref_model=with_reference)
        reference = {"ref_input": case.reference_TD.view(shape), "ref_weight": case.weight_VD.detach()}
        target = case.target_T.view(case.sequences, -1)
        return fused(case.weight_VD, hidden.view(shape), target, **(reference if with_reference else {}))[0]

    return Provider(loss=loss)


def dpo_loss(logp_T: Tensor, reference_T: Tensor, sequences: int) -> Tensor:
    """-log sigmoid(0.1 * margin), averaged over pairs."""
    logratio_N = (logp_T - reference_T)[: len(logp_T)].view(sequences, -1).sum(1)
    chosen, rejected = logratio_N.chunk(2)
    return -F.logsigmoid(0.1 * (chosen - rejected)).mean()


def step(case: Case, provider: Provider, mode: str) -> Callable[[], dict[str, float]]:
    """A step to time; it gives seconds by part."""
    tokens = len(case.target_T)
    hidden, target, reference = case.hidden_TD, case.target_T, case.reference_TD
    if provider.prompted:
        hidden, target, reference = case.prompted_hidden, case.prompted_target, case.prompted_reference
    weight = case.weight_VD.detach().requires_grad_("frozen" not in mode and mode != "nograd")
    hidden = hidden.detach().requires_grad_(mode != "nograd")
    case = case._replace(weight_VD=weight)
    cached_T = torch.zeros(tokens, device=hidden.device)

    def run() -> dict[str, float]:
        hidden.grad = weight.grad = None
        start, cpu = now(hidden), time.process_time()
        if provider.loss is not None:
            loss = provider.loss(case, hidden, "cached" not in mode)
        else:
            assert provider.logp is not None
            if mode in ("full", "frozen"):
                with torch.no_grad():
                    reference_T = provider.logp(reference, weight, target)[:tokens]
            else:
                reference_T = cached_T
            logp_T = provider.logp(hidden, weight, target)[:tokens]
            loss = dpo_loss(logp_T, reference_T, case.sequences)
        middle = now(hidden)
        if mode != "nograd":
            loss.backward()
        end = now(hidden)
        cpu = time.process_time() - cpu
        return {"total": end - start, "forward": middle - start, "backward": end - middle, "cpu": cpu}

    return run


def now(tensor: Tensor) -> float:
    """Seconds, once the device has done all it was asked."""
    if tensor.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def matmul_rate(case: Case) -> float:
    """Operations a second of the best of the three products of a slab: the ceiling of this run."""
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
    """Root mean square over sequences of the error of their log-prob."""
    if provider.logp is None:
        return math.nan
    with torch.no_grad():
        logp_T = provider.logp(case.hidden_TD, case.weight_VD, case.target_T)
    sum_N = logp_T.view(case.sequences, -1).to(logp_T.dtype).sum(1).double()
    return float((sum_N - truth_N).square().mean().sqrt())


def peak_mib(arguments: argparse.Namespace, case: Case, name: str, mode: str) -> float:
    """MiB over the inputs at the peak of one step, gradients included. A CPU's is read in a process of its own."""
    if case.hidden_TD.is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(case, providers([name])[name], mode)()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    command = [sys.executable, "-m", __spec__.name, "--shape", arguments.shape, "--threads", str(arguments.threads)]
    done = subprocess.run([*command, "--peak", name, mode], capture_output=True, text=True, check=True)
    return float(done.stdout)


def _print_peak(case: Case, name: str, mode: str) -> None:
    provider = providers([name])[name]
    step(make_case("tiny", "cpu"), provider, mode)()  # libraries load and set their buffers aside
    ctypes.CDLL(None).malloc_trim(0)  # what making the case left free would serve the step unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak falls to what is held now
    before = _peak_kib()
    step(case, provider, mode)()
    print((_peak_kib() - before) / 1024)


def _peak_kib() -> int:
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])


def gradient_mib(case: Case, mode: str) -> float:
    """MiB of the gradients of the hidden states and, where it learns, the weight."""
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
        except (ValueError, RuntimeError) as error:  # out of memory, or a device it does not know: a result, and said
            failed[name] = _first_line(error)
    for name, why in failed.items():
        print(f"left out: {name}: {why}")
    operations = 2 * len(case.target_T) * case.weight_VD.numel() / 2  # TDV
    rows = []
    peaks: dict[tuple[str, str], float] = {}  # by provider and kind of step, which modes share
    for mode in arguments.modes:
        part, base = (mode, "cached") if mode in ("forward", "backward") else ("total", mode)
        running = {
            name: step(case, provider, base)
            for name, provider in chosen.items()
            if name not in failed and (provider.logp is not None or base in ("full", "frozen"))
        }
        rounds, exhausted = take_turns(running, arguments.repeats)
        running.clear()  # the gradients they hold need not fit beside the step whose peak is read
        for name, why in exhausted.items():
            print(f"left out of {mode}: {name}: {why}")
        seconds = {name: [taken[part] for taken in rounds[name]] for name in rounds}
        for name in rounds:
            if (name, base) not in peaks:
                peaks[name, base] = peak_mib(arguments, case, name, base)
        peak = {name: peaks[name, base] for name in rounds}
        beyond = {name: mib - gradient_mib(case, base) for name, mib in peak.items()}
        ours = min(
            (statistics.median(times) for name, times in seconds.items() if name in ("fused", "chunked")),
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
                    # of the whole step; steadier than ms where others work too
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
            print(_table(of_mode), flush=True)
        rows += of_mode
    return rows


def take_turns(
    running: dict[str, Callable[[], dict[str, float]]], repeats: int
) -> tuple[dict[str, list[dict[str, float]]], dict[str, str]]:
    """What every step took, round by round, so that a busy minute hits them all, and why some did not last.

    The first round warms up. A step that fails is taken out of ``running`` with the gradients it holds.
    """
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in running}
    failed: dict[str, str] = {}
    for _ in range(repeats + 1):
        for name in list(running):
            try:
                rounds[name].append(running[name]())
            except (ValueError, RuntimeError) as error:  # the backward pass may not fit where the forward pass did
                failed[name] = _first_line(error)
                del running[name], rounds[name]
    return {name: taken[1:] for name, taken in rounds.items()}, failed


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _over(times: list[float], base: list[float] | None) -> float:
    """Median of the ratios of the same round."""
    return math.nan if base is None else statistics.median(a / b for a, b in zip(times, base, strict=True))


def _fewer(mib: float, base: float | None) -> float:
    """How many times less than the base; a small case may need nothing that shows."""
    return math.nan if base is None or mib <= 0 else base / mib


COLUMNS = {  # of the printed table: heading and how a number is written
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


def _table(rows: list[dict[str, Any]]) -> str:
    width = max(len(row["provider"]) for row in rows)
    heading = rows[0]["mode"].ljust(width) + "".join(title.rjust(12) for title, _ in COLUMNS.values())
    lines = [
        row["provider"].ljust(width) + "".join(form.format(row[key]).rjust(12) for key, (_, form) in COLUMNS.items())
        for row in rows
    ]
    return "\n".join([heading, *lines])


def write(rows: list[dict[str, Any]], arguments: argparse.Namespace, out: Path) -> None:
    """CSV, what it was measured on, and a plot."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / f"{arguments.shape}.csv", "w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    cuda = arguments.device == "cuda"
    facts = {
        "command": " ".join(["python", "-m", __spec__.name, *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU",
        "threads": arguments.threads,
        "dtype": str(SHAPES[arguments.shape][4]),
        "versions": {name: metadata.version(name) for name in ("torch", "triton") if util.find_spec(name)},
    }
    (out / f"{arguments.shape}.json").write_text(json.dumps(facts, indent=2) + "\n")
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


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__)
    shapes = ["A", "B", "C"] if torch.cuda.is_available() else ["cpu"]
    parser.add_argument("--shape", dest="shapes", nargs="+", choices=SHAPES, default=shapes, help="one table for each")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--modes", nargs="+", choices=FLOOR, default=list(FLOOR))
    parser.add_argument("--providers", nargs="+", help="all by default")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--peak", nargs=2, metavar=("PROVIDER", "MODE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        _print_peak(make_case(arguments.shapes[0], arguments.device), *arguments.peak)
        return
    print(
        "Times are medians; '/' columns divide by the best of ours, by plain torch over the same positions, and by\n"
        f"it over prompt + response ({PROMPT_PER_RESPONSE} positions of a prompt to one of a response). Peaks are\n"
        "over the inputs; 'plain /' is plain torch's peak over this one. '- gradients': without those that all return."
    )
    for shape in arguments.shapes:
        arguments.shape = shape
        print(f"shape {shape}")
        if rows := measure(arguments, make_case(shape, arguments.device)):
            write(rows, arguments, arguments.out)


if __name__ == "__main__":
    main()
