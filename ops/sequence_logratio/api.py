"""The public functions: they check inputs, choose a backend, and reduce tokens to sequences.

A backend is a module of this folder, named after its file, with ``unsupported(hidden_TD, weight_VD) -> str | None``
(the reason why it cannot run here) and ``token_logp(hidden_TD, weight_VD, target_T, bias_V, scale, softcap,
grad_rows)``.
"""

import functools
import logging
from types import ModuleType
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ops.sequence_logratio import chunked, evidence, fused, reference
from ops.sequence_logratio.checks import check_dtypes, check_head, check_ids, check_targets, under_autocast
from ops.sequence_logratio.reference import IGNORE

log = logging.getLogger(__name__)

PREFERENCE = (fused, chunked, reference)  # best first: the order in which ``auto`` tries the backends
BACKENDS = {module.__name__.rpartition(".")[2]: module for module in PREFERENCE}  # in that order
# up to this many logits (1 MiB per copy in plain torch) the reference is as fast on a CPU and has no overhead
SMALL_LOGITS = 2**18


class Head(NamedTuple):
    """Hidden states of one model at the scored positions, and its head: logits = softcap(scale * (h W^T + b)).

    Example:
        >>> Head(torch.zeros(3, 2), torch.zeros(4, 2), softcap=30.0).scale
        1.0
    """

    hidden_TD: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


def token_logp(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    target_T: Tensor,
    *,
    bias_V: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Log-probability of each target token under ``softmax(softcap(scale * (hidden @ weight.T + bias)))``.

    Under autocast on CUDA, products use autocast's dtype and are summed in fp32. On a CPU, and everywhere else in the
    computation, nothing is rounded below fp32.

    Args:
        hidden_TD: Hidden states at the positions that predict the targets, any float dtype.
        weight_VD: Head weight, with the dtype and device of ``hidden_TD`` (under autocast: any float dtype).
        target_T: int64 token ids; -100 gives 0 and no gradient.
        bias_V: Head bias, if the head has one.
        scale: Factor on the logits (Cohere's ``logit_scale``, the inverse of Granite's ``logits_scaling``).
        softcap: Bound of ``cap * tanh(logit / cap)`` (Gemma 2's ``final_logit_softcapping``).
        backend: ``auto``, or the name of a backend, which must then be able to run. On a GPU, ``auto`` takes ``fused``
            only if ``evidence.py`` lists it as compiling without register spills.

    Returns:
        [T] nats, fp32 (float64 for float64 inputs), always <= 0.

    Raises:
        ValueError: On invalid shapes, dtypes or ids (ids are checked only on a CPU, because elsewhere the check would
            wait for the device), or on a named backend that cannot run here.

    Example:
        >>> hidden_TD, weight_VD = torch.zeros(2, 2), torch.ones(4, 2)  # all 4 tokens are equally likely: -log 4
        >>> token_logp(hidden_TD, weight_VD, torch.tensor([0, 3]))
        tensor([-1.3863, -1.3863])
    """
    return _token_logp(Head(hidden_TD, weight_VD, bias_V, scale, softcap), target_T, backend, None)


def sequence_logp(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    target_T: Tensor,
    *,
    cu_seqlens_N1: Tensor,
    reduction: Literal["sum", "mean"] = "sum",
    bias_V: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """[N] sums (or means over scored tokens) of ``token_logp`` over the sequences bounded by ``cu_seqlens_N1``.

    The sum and the mean of an empty sequence are 0. Other arguments and errors are those of ``token_logp``.

    Example:
        >>> hidden_TD, weight_VD = torch.zeros(3, 2), torch.ones(4, 2)
        >>> sequence_logp(hidden_TD, weight_VD, torch.tensor([0, 3, 1]), cu_seqlens_N1=torch.tensor([0, 2, 3]))
        tensor([-2.7726, -1.3863])
    """
    logp_T = token_logp(hidden_TD, weight_VD, target_T, bias_V=bias_V, scale=scale, softcap=softcap, backend=backend)
    return _reduce(logp_T, target_T, cu_seqlens_N1, reduction)


def both_sequence_logp(
    policy: Head,
    reference: Head,
    target_T: Tensor,
    *,
    cu_seqlens_N1: Tensor,
    reduction: Literal["sum", "mean"] = "sum",
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """[N] log-probs of the policy, and [N] of the reference without gradient, each as from ``sequence_logp``.

    If they share one weight and bias (``is``), both pass through the head in one call, which computes no gradient for
    the reference.

    Raises:
        ValueError: In the cases of ``token_logp``, and if the vocabularies differ.

    Example:
        >>> policy, reference = (Head(torch.zeros(2, 2), torch.ones(4, 2)) for _ in range(2))
        >>> both_sequence_logp(policy, reference, torch.tensor([0, 3]), cu_seqlens_N1=torch.tensor([0, 2]))
        (tensor([-2.7726]), tensor([-2.7726]))
    """
    policy_T, reference_T = _both_token_logp(policy, reference, target_T, backend)
    return (
        _reduce(policy_T, target_T, cu_seqlens_N1, reduction),
        _reduce(reference_T, target_T, cu_seqlens_N1, reduction),
    )


def sequence_logratio(
    policy: Head | Tensor,
    reference: Head | Tensor,
    target_T: Tensor | None = None,
    *,
    cu_seqlens_N1: Tensor | None = None,
    reduction: Literal["sum", "mean"] = "sum",
    backend: str = "auto",
) -> Tensor:
    """[N] log-ratios, policy minus reference, in nats; no gradient flows to the reference.

    Two heads are compared token by token and then summed, which rounds less than the difference of two long sums. If
    they share one weight (an adapter trained under a frozen head), both models pass through it in one call.

    Args:
        policy: Hidden states and head, or [N] precomputed log-probs.
        reference: The same for the reference; [N] log-probs may come from a cache.
        target_T: int64 token ids, -100 for positions that are not scored; required with a ``Head``.
        cu_seqlens_N1: Bounds of the sequences in T; required with a ``Head``.
        reduction: Sum or mean over the scored tokens of a sequence. Cached log-probs must use the same one.
        backend: As for ``token_logp``.

    Raises:
        ValueError: In the cases of ``token_logp``, if vocabularies or shapes differ, and on a ``Head`` without targets
            and bounds.

    Example:
        >>> sequence_logratio(torch.tensor([-2.0, -3.0]), torch.tensor([-2.5, -2.0]))
        tensor([ 0.5000, -1.0000])
        >>> head = Head(torch.zeros(2, 2), torch.ones(4, 2))
        >>> sequence_logratio(head, head, torch.tensor([0, 3]), cu_seqlens_N1=torch.tensor([0, 2]))
        tensor([0.])
    """
    if isinstance(policy, Head) or isinstance(reference, Head):
        if target_T is None or cu_seqlens_N1 is None:
            raise ValueError("a Head needs target_T and cu_seqlens_N1")
        if isinstance(policy, Head) and isinstance(reference, Head):
            policy_T, reference_T = _both_token_logp(policy, reference, target_T, backend)
            return _reduce(policy_T - reference_T, target_T, cu_seqlens_N1, reduction)
        if isinstance(policy, Head):
            policy = _reduce(_token_logp(policy, target_T, backend, None), target_T, cu_seqlens_N1, reduction)
        if isinstance(reference, Head):
            with torch.no_grad():
                reference_T = _token_logp(reference, target_T, backend, None)
            reference = _reduce(reference_T, target_T, cu_seqlens_N1, reduction)
    if policy.shape != reference.shape:
        raise ValueError(f"policy {tuple(policy.shape)} and reference {tuple(reference.shape)} differ")
    return policy - reference.detach()


def _both_token_logp(policy: Head, reference: Head, target_T: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    if len(policy.weight_VD) != len(reference.weight_VD):
        raise ValueError(f"vocabularies differ: {len(policy.weight_VD)} and {len(reference.weight_VD)}")
    shared = policy.weight_VD is reference.weight_VD and policy.bias_V is reference.bias_V
    if shared and policy[3:] == reference[3:] and policy.hidden_TD.dtype == reference.hidden_TD.dtype:
        both = policy._replace(hidden_TD=torch.cat([policy.hidden_TD, reference.hidden_TD.detach()]))
        policy_T, reference_T = _token_logp(both, target_T.repeat(2), backend, len(target_T)).chunk(2)
        return policy_T, reference_T.detach()
    with torch.no_grad():
        reference_T = _token_logp(reference, target_T, backend, None)
    return _token_logp(policy, target_T, backend, None), reference_T


def checked(head: Head, target_T: Tensor) -> Head:
    """The head, with hidden states in the dtype of the products.

    Raises:
        ValueError: On invalid shapes, dtypes or ids.
    """
    hidden_TD, weight_VD = head.hidden_TD, head.weight_VD
    check_head(hidden_TD, weight_VD, head.bias_V)
    check_targets(hidden_TD, target_T)
    check_ids(target_T, len(weight_VD))
    check_dtypes(hidden_TD, weight_VD)
    if hidden_TD.is_cuda and under_autocast(hidden_TD):
        hidden_TD = hidden_TD.to(torch.get_autocast_dtype("cuda"))
    elif hidden_TD.dtype != weight_VD.dtype:
        hidden_TD = hidden_TD.to(torch.promote_types(hidden_TD.dtype, weight_VD.dtype))
    return head._replace(hidden_TD=hidden_TD)


def _token_logp(head: Head, target_T: Tensor, backend: str, grad_rows: int | None) -> Tensor:
    hidden_TD, weight_VD, bias_V, scale, softcap = checked(head, target_T)
    chosen = choose(backend, hidden_TD, weight_VD)
    logp_T: Tensor = chosen.token_logp(hidden_TD, weight_VD, target_T, bias_V, float(scale), softcap, grad_rows)
    return logp_T


def _reduce(value_T: Tensor, target_T: Tensor, cu_seqlens_N1: Tensor, reduction: str) -> Tensor:
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
    if cu_seqlens_N1.device.type == "cpu" and not torch.compiler.is_compiling():
        falls = bool((cu_seqlens_N1.diff() < 0).any())
        if int(cu_seqlens_N1[0]) != 0 or int(cu_seqlens_N1[-1]) != len(value_T) or falls:
            raise ValueError(f"cu_seqlens must rise from 0 to T = {len(value_T)}, got {cu_seqlens_N1.tolist()[:8]} ...")
    offset_N1 = cu_seqlens_N1.to(value_T.device, torch.int64)
    # one writer per sequence: the order of the additions of an index_add depends on the device
    sum_N = torch.segment_reduce(value_T, "sum", offsets=offset_N1, initial=0.0)
    if reduction == "sum":
        return sum_N
    scored_N = torch.segment_reduce((target_T != IGNORE).to(value_T), "sum", offsets=offset_N1, initial=0.0)
    return sum_N / scored_N.clamp(min=1)


def choose(name: str, hidden_TD: Tensor, weight_VD: Tensor) -> ModuleType:
    """The backend of this name, or the one that ``auto`` takes for these inputs.

    Raises:
        ValueError: On an unknown name, or a named backend that cannot run here.
    """
    if name != "auto":
        if name not in BACKENDS:
            raise ValueError(f"backend must be one of {['auto', *BACKENDS]}, got {name!r}")
        if reason := BACKENDS[name].unsupported(hidden_TD, weight_VD):
            raise ValueError(f"backend {name!r} cannot run here: {reason}")
        return BACKENDS[name]
    if hidden_TD.device.type == "cpu" and len(hidden_TD) * len(weight_VD) <= SMALL_LOGITS:
        _say_once("reference", f"[T, V] of at most {SMALL_LOGITS} logits needs no blocks")
        return reference
    passed_over: list[str] = []
    for candidate, module in BACKENDS.items():
        reason = module.unsupported(hidden_TD, weight_VD)
        if reason is None and module is fused:  # it runs, but is slow on this device
            reason = evidence.unproven(hidden_TD)
        if reason is None:
            _say_once(candidate, "; ".join(passed_over))
            return module
        passed_over.append(f"not {candidate}: {reason}")
    raise AssertionError("the reference backend runs anywhere")


def _say_once(name: str, why: str) -> None:
    if not torch.compiler.is_compiling():
        _say(name, why)


@functools.cache
def _say(name: str, why: str) -> None:
    log.info("log-prob backend: %s%s", name, f" ({why})" if why else "")
