"""The checks of ``doctor`` for score models. Each is a function from a ``Patient`` to a ``Finding``.

Letters: N sequences, D hidden width, K outputs, B pairs.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lit_safe.doctor.checks import accumulation, memory, step, stop_token
from lit_safe.doctor.patient import Finding, Scores, beside_longer, take, take_ends
from lit_safe.types import PackedSequences

ROUNDING = 1e-6  # nats
LARGEST = 0.1  # difference of hidden states, as a share of their size, that no dtype explains


def labels(patient: Scores) -> Finding:
    """Check that the train split has labels for every output: two different rewards, safe and unsafe responses."""
    outputs = ", ".join(patient.module.pair.outputs)
    try:
        patient.module.check_labels(patient.data)
    except ValueError as missing:
        return Finding("labels", False, str(missing))
    return Finding("labels", True, f"the train split has labels for {outputs}")


def scores(patient: Scores) -> Finding:
    """Check that hidden states and scores are finite, and the same when computed twice."""
    first, second = _hidden(patient, patient.batch.sequences), _hidden(patient, patient.batch.sequences)
    score_NK = patient.module.pair.score_features(first).detach()
    good = bool(first.isfinite().all() and score_NK.isfinite().all() and torch.equal(first, second))
    seen = f"{score_NK.min():.2g} to {score_NK.max():.2g}, repeat differs by {_gap(first, second):.1e} of their size"
    return Finding("scores", good, seen)


@torch.no_grad()
def loss_at_step_zero(patient: Scores) -> Finding:
    """Check that an untrained model scores 0 everywhere, so that its loss is that of no information.

    A pair has the loss log 2 for a reward, and ``ranking`` log 2 and ``sign`` log 2 for each label for a cost.
    """
    pairs, score_NK = patient.module.scores(patient.batch)
    found = patient.module.losses(pairs, score_NK)
    blind = patient.module.losses(pairs, torch.zeros_like(score_NK))
    used = {name: bool((one.weight > 0).any()) for name, one in found.items()}
    off = 0.0
    for name, one in found.items():
        kept_B = one.weight > 0
        off = max(off, float((one.loss - blind[name].loss)[kept_B].abs().max()) if used[name] else 0.0)
    seen = ", ".join(
        f"{name} {float(one.loss[one.weight > 0].mean()):.4f}" if used[name] else f"{name} has no label here"
        for name, one in found.items()
    )
    good = math.isfinite(off) and off <= ROUNDING
    return Finding("loss at step 0", good, f"{seen} nats; {off:.1e} off the loss of scores of 0")


def batch_invariance(patient: Scores) -> Finding:
    """Check that a sequence has the same hidden state alone, in the batch, and in the reversed batch."""
    sequences = patient.batch.sequences
    count = len(sequences.cu_seqlens) - 1
    together = _hidden(patient, sequences)
    alone = torch.cat([_hidden(patient, take(sequences, [i])) for i in range(count)])
    turned = _hidden(patient, take(sequences, list(reversed(range(count))))).flip(0)
    return _within("batch invariance", patient, max(_gap(together, alone), _gap(together, turned)))


def padding_invariance(patient: Scores) -> Finding:
    """Check that the sequences' ends have the same hidden states with and without a longer sequence beside them."""
    sequences = patient.batch.sequences
    ends = take_ends(sequences, max(2, int(sequences.cu_seqlens.diff().max()) // 2))
    beside = _hidden(patient, beside_longer(sequences, ends))[:-1]
    return _within("padding", patient, _gap(_hidden(patient, ends), beside))


def packing_invariance(patient: Scores) -> Finding:
    """Check that the padded and the packed layout give the same hidden states, if the model supports both."""
    trunk = getattr(patient.module.pair, "trunk", None)
    layout = getattr(trunk, "layout", None)
    if trunk is None or layout is None:
        return Finding("packing", True, "this model knows one layout")
    found = {}
    try:
        for name in ("padded", "packed"):
            trunk.layout = name
            found[name] = _hidden(patient, patient.batch.sequences)
    except ValueError as refused:
        return Finding("packing", True, f"layout {name!r} is not used here, and refused: {refused}")
    finally:
        trunk.layout = layout
    return _within("packing", patient, _gap(found["padded"], found["packed"]))


def what_trains(patient: Scores) -> Finding:
    """Check that the heads train, and nothing else if the trunk is frozen."""
    module = patient.module
    trains = [name for name, p in module.named_parameters() if p.requires_grad]
    heads = [name for name in trains if ".head." in f".{name}"]
    others = len(trains) - len(heads)
    good = bool(heads) and (others == 0) == module.pair.frozen
    kind = "a frozen trunk" if module.pair.frozen else "a trunk that trains"
    return Finding("what trains", good, f"{kind}: {len(heads)} tensors of the heads, {others} of the trunk")


CHECKS: tuple[Callable[[Scores], Finding], ...] = (
    labels,
    scores,
    stop_token,
    loss_at_step_zero,
    batch_invariance,
    padding_invariance,
    packing_invariance,
    what_trains,
    accumulation,
    step,
    memory,
)


def examine(patient: Scores) -> Iterator[Finding]:
    """Run all checks in order, the cheap and informative ones first."""
    for check in CHECKS:
        yield check(patient)


@torch.no_grad()
def _hidden(patient: Scores, sequences: PackedSequences) -> Tensor:
    found: Tensor = patient.module.pair.features(sequences)
    return found


def _gap(one_ND: Tensor, two_ND: Tensor) -> float:
    """The largest difference as a share of the root mean square of the hidden states."""
    return float((one_ND - two_ND).abs().max() / one_ND.square().mean().sqrt().clamp(min=1e-12))


def _within(name: str, patient: Scores, gap: float) -> Finding:
    bound = min(LARGEST, patient.tolerance)
    return Finding(name, gap <= bound, f"hidden states differ by {gap:.1e} of their size (at most {bound:.0e})")
