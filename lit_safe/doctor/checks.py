"""The checks of ``doctor``. Each is a function from a ``Patient`` to a ``Finding``.

Letters: B pairs, N = 2B sequences.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.doctor.patient import Finding, Patient, Preference, beside_longer, gradient, take, take_ends, take_pairs
from lit_safe.objectives import DPO
from lit_safe.protocols.pair import has_reference
from lit_safe.protocols.trainer import connected
from lit_safe.types import IGNORE, PackedSequences, Pair, Scored

MOVED = 0.5  # share of weights that a step must change; in bf16, a step with rate 1e-6 changes about 1 %
STEP_ZERO = 1e-3  # nats: rounding does not explain a larger margin of an untrained policy


def labels(patient: Preference) -> Finding:
    """Check that these pairs have all labels that the objective needs."""
    needs, label = patient.module.objective.needs, patient.batch.label
    missing = [
        need
        for need, pair in (("reward", label.reward), ("cost", label.cost), ("flags", label.cost))
        if need in needs and bool(torch.cat([side.flatten() for side in pair]).isnan().any())
    ]
    return Finding("labels", not missing, f"needs {list(needs) or 'none'}, missing {missing or 'none'}")


def log_probs(patient: Preference) -> Finding:
    """Check that log-probabilities are finite, at most 0, and the same when computed twice."""
    first, second = _policy(patient, patient.batch.sequences), _policy(patient, patient.batch.sequences)
    good = bool(torch.isfinite(first).all() and (first <= 0).all() and torch.equal(first, second))
    return Finding(
        "log-probs", good, f"{first.min():.2f} to {first.max():.2f} nats, repeat differs by {_gap(first, second):.1e}"
    )


def step_zero_margin(patient: Preference) -> Finding:
    """Check that all margins of an untrained policy are 0; with another model as reference, that they are finite."""
    facts = patient.module.pair.facts()
    if patient.module.reference_free:
        return Finding("margin at step 0", True, "the objective needs no reference, so there is no log-ratio")
    worst = float(_logratio(patient).margin.abs().max())
    if not facts.own_reference:
        seen = f"largest |margin| {worst:.2g} nats; the reference is another model ({facts.reference})"
        return Finding("margin at step 0", math.isfinite(worst), seen)
    return Finding(
        "margin at step 0", worst <= STEP_ZERO, f"largest |margin| {worst:.1e} nats (at most {STEP_ZERO:.0e})"
    )


def step_zero_loss(patient: Preference) -> Finding:
    """Check that plain DPO's loss is log 2 and the objective's loss is its value at margin 0.

    If the reference is another model, plain DPO is evaluated at margin 0, and the objective's loss must be finite. If
    the objective needs no reference, only the latter is checked.
    """
    module, batch = patient.module, patient.batch
    policy, logratio, got = _forward(patient)
    # a dropped pair may have a NaN label and therefore a NaN loss
    finite = bool(got.loss[got.weight > 0].isfinite().all())
    if module.reference_free:
        return Finding("loss at step 0", finite, f"{module.objective!r} is {got.loss.mean():.6f} on these pairs")
    own = module.pair.facts().own_reference
    none = Pair(*(torch.zeros_like(side) for side in logratio))
    plain = DPO(module.objective.beta)(logratio if own else none, batch.label, module.multiplier).loss
    expected = module.score(batch, policy, none)
    with torch.enable_grad():
        at = Pair(*(side.requires_grad_() for side in none))
        slopes = torch.autograd.grad(module.score(batch, policy, at).loss.nansum(), at, materialize_grads=True)
    # links differ in their slope at margin 0: at most beta for DPO's kind
    steepest = max([module.objective.beta, *(2 * float(slope.abs().max()) for slope in slopes)])
    bound = steepest * STEP_ZERO + 1e-6
    off_plain, off_own = float((plain - math.log(2)).abs().max()), float((got.loss - expected.loss).abs().max())
    seen = f"plain DPO {plain.mean():.6f} (log 2 is 0.693147); {module.objective!r} is {off_own:.1e} off its value"
    good = off_own <= bound if own else finite
    return Finding("loss at step 0", off_plain <= bound and good, seen)


def batch_invariance(patient: Preference) -> Finding:
    """Check that a sequence has the same score alone, in the batch, and in the reversed batch."""
    sequences = patient.batch.sequences
    count = len(sequences.cu_seqlens) - 1
    together = _policy(patient, sequences)
    alone = torch.cat([_policy(patient, take(sequences, [i])) for i in range(count)])
    turned = _policy(patient, take(sequences, list(reversed(range(count))))).flip(0)
    return _within("batch invariance", patient, max(_gap(together, alone), _gap(together, turned)))


def padding_invariance(patient: Preference) -> Finding:
    """Check that the sequences' ends have the same scores with and without a sequence of twice their length."""
    sequences = patient.batch.sequences
    length_N = sequences.cu_seqlens.diff()
    ends = take_ends(sequences, max(2, int(length_N.max()) // 2))
    beside = beside_longer(sequences, ends)
    return _within("padding", patient, _gap(_policy(patient, ends), _policy(patient, beside)[:-1]))


def packing_invariance(patient: Preference) -> Finding:
    """Check that the layouts give the same log-probs: padded, packed, and the one in use."""
    pair = patient.module.pair
    layout = getattr(pair, "layout", None)
    if layout is None:
        return Finding("packing", True, "this pair knows one layout")
    scores = {}
    for name in dict.fromkeys(["padded", "packed", layout]):
        try:
            pair.layout = name  # type: ignore[attr-defined]
        except ValueError as refused:
            pair.layout = layout  # type: ignore[attr-defined]
            return Finding("packing", True, f"layout {name!r} is not used here, and refused: {refused}")
        scores[name] = _policy(patient, patient.batch.sequences)
    pair.layout = layout  # type: ignore[attr-defined]
    return _within("packing", patient, max(_gap(scores["padded"], other) for other in scores.values()))


def stop_token(patient: Patient[Any]) -> Finding:
    """Check that each scored turn ends with exactly one scored stop token. A response has one turn or several."""
    sequences = patient.batch.sequences
    wrong, cut = [], 0
    bounds = sequences.cu_seqlens.tolist()
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
        target = sequences.target[start:end].tolist()
        turns = [list(turn) for scored, turn in itertools.groupby(target, lambda t: t != IGNORE) if scored]
        stops = [[i for i, token in enumerate(turn) if token in patient.stop_ids] for turn in turns]
        whole = [places == [len(turn) - 1] for places, turn in zip(stops, turns, strict=True)]
        if all(whole[:-1]) and not (stops and stops[-1]):
            cut += 1  # a response cut to max_length has no stop token at its end
        elif not all(whole):
            wrong.append(number)
    total = len(bounds) - 1
    seen = f"{total - cut - len(wrong)} of {total} responses end with one, {cut} were cut, {len(wrong)} do not"
    return Finding("stop token", not wrong and cut < total, seen + (f": sequences {wrong[:8]}" if wrong else ""))


def accumulation(patient: Patient[Any]) -> Finding:
    """Check that one micro-batch of B pairs and B micro-batches of one pair give the same gradient."""
    batch = patient.batch
    whole = gradient(patient.module, [batch])
    parts = gradient(patient.module, [take_pairs(batch, [i]) for i in range(len(batch.present))])
    # the gradient is 0 if all pairs are tied or dropped; then it must be 0 for the parts too
    off = float((whole - parts).norm() / whole.norm().clamp(min=1e-12)) if bool(whole.any() or parts.any()) else 0.0
    bound = min(0.1, max(1e-3, patient.tolerance))
    return Finding("accumulation", off <= bound, f"gradients differ by {off:.1e} of their norm (at most {bound:.0e})")


def reference_identity(patient: Preference) -> Finding:
    """Check that the reference has no gradient and does not change when the policy changes."""
    module, sequences = patient.module, patient.batch.sequences
    if not has_reference(module.pair):
        return Finding("reference", True, "none is loaded, because the objective needs none")
    with torch.enable_grad():
        before = module.pair.reference_logp(sequences)
    policy_before = _policy(patient, sequences)
    parameters = [p for p in module.parameters() if p.requires_grad]
    kept = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for index, p in enumerate(parameters):  # a fixed pattern, so no random state changes
            wave = torch.sin(torch.arange(p.numel(), device=p.device) + index).to(p.dtype)
            p.add_(0.02 * wave.view_as(p))
    after, policy_after = module.pair.reference_logp(sequences), _policy(patient, sequences)
    with torch.no_grad():
        for p, old in zip(parameters, kept, strict=True):
            p.copy_(old)
    moved, stayed = _gap(policy_before, policy_after), torch.equal(before.detach(), after.detach())
    good = not before.requires_grad and stayed and moved > 0
    seen = (
        f"weights changed: policy moved by {moved:.2g} nats, reference by {_gap(before.detach(), after.detach()):.2g}"
    )
    return Finding("reference", good, seen + ("" if not before.requires_grad else ", but it has a gradient"))


def step(patient: Patient[Any]) -> Finding:
    """Check that a step of the run's optimizer, at its learning rate, changes the trainable weights."""
    module = patient.module
    parameters = [p for p in module.parameters() if p.requires_grad]
    kept = [p.detach().clone() for p in parameters]
    optimizer = module.optimizer(parameters)
    for p in parameters:
        p.grad = torch.ones_like(p)
        p.grad.view(-1)[::2] = -1  # gradients of +1 and -1, so AdamW's step has the size of the learning rate
    optimizer.step()
    moved = sum(int((p != old).sum()) for p, old in zip(parameters, kept, strict=True))
    with torch.no_grad():
        for p, old in zip(parameters, kept, strict=True):
            p.copy_(old)
            p.grad = None
    share, lr = moved / sum(p.numel() for p in parameters), optimizer.param_groups[0]["lr"]
    held = sorted({str(p.dtype).removeprefix("torch.") for p in parameters})
    seen = f"at lr {lr:g} one step changes {share:.1%} of the trainable weights, which are in {', '.join(held)}"
    return Finding("step", share >= MOVED or lr == 0, seen)


def dual(patient: Preference) -> Finding:
    """Check that limit, multiplier, constraints and cost function fit together."""
    trainer = patient.trainer
    callbacks = [] if trainer is None else connected(trainer).callbacks
    found = [callback for callback in callbacks if isinstance(callback, DualAscent)]
    if trainer is None or not found:
        return Finding("dual", True, "no dual group")
    try:
        found[0].check(trainer, patient.module, patient.data)
    except Exception as fault:  # a user's cost function may raise any exception
        return Finding("dual", False, f"{type(fault).__name__}: {fault}")
    shape = list(patient.module.multiplier.shape)
    estimator = type(found[0].estimator).__name__ if found[0].estimator is not None else "no estimator"
    return Finding("dual", True, f"multiplier of shape {shape} in {patient.module.multiplier.dtype}, {estimator}")


def memory(patient: Patient[Any]) -> Finding:
    """Check that the largest training step fits into memory."""
    return Finding("memory", patient.plan.fits, patient.plan.sentence())


CHECKS: tuple[Callable[[Preference], Finding], ...] = (
    labels,
    log_probs,
    stop_token,
    step_zero_margin,
    step_zero_loss,
    batch_invariance,
    padding_invariance,
    packing_invariance,
    accumulation,
    reference_identity,
    step,
    dual,
    memory,
)


def examine(patient: Preference) -> Iterator[Finding]:
    """Run all checks in order, the cheap and informative ones first."""
    for check in CHECKS:
        yield check(patient)


@torch.no_grad()
def _policy(patient: Preference, sequences: PackedSequences) -> Tensor:
    return patient.module.pair.policy_logp(sequences)


@torch.no_grad()
def _forward(patient: Preference) -> tuple[Pair, Pair, Scored]:
    found: tuple[Pair, Pair, Scored] = patient.module(patient.batch)
    return found


def _logratio(patient: Preference) -> Pair:
    return _forward(patient)[1]


def _gap(one: Tensor, two: Tensor) -> float:
    return float((one - two).abs().max())


def _within(name: str, patient: Preference, gap: float) -> Finding:
    return Finding(
        name, gap <= patient.tolerance, f"log-probs differ by {gap:.1e} nats (at most {patient.tolerance:.0e})"
    )
