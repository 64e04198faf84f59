"""The public face: checks inputs, chooses a backend, and reduces tokens to sequences.

A backend is a module of this folder with ``unsupported(hidden_TD, weight_VD) -> str | None`` (the reason it cannot run
here) and ``token_logp(hidden_TD, weight_VD, target_T, bias_V, scale, softcap) -> logp_T``; its name is its file name.
"""

import functools
import importlib
import logging
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from ops.sequence_logratio.reference import IGNORE

log = logging.getLogger(__name__)

PREFERENCE = ("reference",)  # best first: the order in which ``auto`` tries the backends


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

    Args:
        hidden_TD: Hidden states at the positions that predict the targets, any float dtype.
        weight_VD: Head weight, of the dtype and device of ``hidden_TD``.
        target_T: int64 token ids; -100 gives 0 and no gradient.
        bias_V: Head bias, if the head has one.
        scale: Factor on the logits (Cohere's ``logit_scale``, the inverse of Granite's ``logits_scaling``).
        softcap: Bound of ``cap * tanh(logit / cap)`` (Gemma 2's ``final_logit_softcapping``).
        backend: ``auto``, or the name of a backend, which then must be able to run.

    Returns:
        [T] nats, fp32 (float64 for float64 inputs), always <= 0 up to rounding.

    Raises:
        ValueError: On shapes, dtypes or ids that do not fit, or a named backend that cannot run here.
    """
    _check(hidden_TD, weight_VD, target_T, bias_V)
    chosen = _backend(backend, hidden_TD, weight_VD)
    return chosen.token_logp(hidden_TD, weight_VD, target_T, bias_V, float(scale), softcap)


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
    """[N] sums (or means over scored tokens) of ``token_logp`` over the sequences ``cu_seqlens_N1`` bounds.

    An empty sequence sums to 0; its mean is 0 too. Other arguments and errors are those of ``token_logp``.
    """
    logp_T = token_logp(hidden_TD, weight_VD, target_T, bias_V=bias_V, scale=scale, softcap=softcap, backend=backend)
    return _reduce(logp_T, target_T, cu_seqlens_N1, reduction)


def sequence_logratio(policy_logp_N: Tensor, reference_logp_N: Tensor) -> Tensor:
    """[N] log-ratios, policy minus reference, in nats; no gradient flows to the reference."""
    if policy_logp_N.shape != reference_logp_N.shape:
        raise ValueError(f"policy {tuple(policy_logp_N.shape)} and reference {tuple(reference_logp_N.shape)} differ")
    return policy_logp_N - reference_logp_N.detach()


def _reduce(logp_T: Tensor, target_T: Tensor, cu_seqlens_N1: Tensor, reduction: str) -> Tensor:
    length_N = cu_seqlens_N1.diff().long()
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
    if int(cu_seqlens_N1[0]) != 0 or int(cu_seqlens_N1[-1]) != len(logp_T) or bool((length_N < 0).any()):
        raise ValueError(f"cu_seqlens must rise from 0 to T = {len(logp_T)}, got {cu_seqlens_N1.tolist()[:8]} ...")
    sequence_T = torch.repeat_interleave(torch.arange(len(length_N), device=logp_T.device), length_N)
    zero_N = logp_T.new_zeros(len(length_N))
    sum_N = zero_N.index_add(0, sequence_T, logp_T)
    if reduction == "sum":
        return sum_N
    scored_N = zero_N.index_add(0, sequence_T, (target_T != IGNORE).to(logp_T))
    return sum_N / scored_N.clamp(min=1)


def _check(hidden_TD: Tensor, weight_VD: Tensor, target_T: Tensor, bias_V: Tensor | None) -> None:
    if hidden_TD.ndim != 2 or weight_VD.ndim != 2 or hidden_TD.shape[1] != weight_VD.shape[1]:
        raise ValueError(
            f"need hidden [T, D] and weight [V, D], got {tuple(hidden_TD.shape)}, {tuple(weight_VD.shape)}"
        )
    if target_T.shape != hidden_TD.shape[:1] or target_T.dtype != torch.int64:
        raise ValueError(f"need int64 targets [{len(hidden_TD)}], got {target_T.dtype} {tuple(target_T.shape)}")
    if bias_V is not None and bias_V.shape != weight_VD.shape[:1]:
        raise ValueError(f"need bias [{len(weight_VD)}], got {tuple(bias_V.shape)}")


def _backend(name: str, hidden_TD: Tensor, weight_VD: Tensor) -> ModuleType:
    if name != "auto":
        module = _load(name)
        if reason := module.unsupported(hidden_TD, weight_VD):
            raise ValueError(f"backend {name!r} cannot run here: {reason}")
        return module
    passed_over = []
    for candidate in PREFERENCE:
        module = _load(candidate)
        reason = module.unsupported(hidden_TD, weight_VD)
        if reason is None:
            _say_once(candidate, "; ".join(passed_over))
            return module
        passed_over.append(f"{candidate}: {reason}")
    raise AssertionError("the reference backend runs anywhere")


def _load(name: str) -> ModuleType:
    if name not in PREFERENCE:
        raise ValueError(f"backend must be 'auto' or one of {PREFERENCE}, got {name!r}")
    return importlib.import_module(f"ops.sequence_logratio.{name}")


@functools.cache
def _say_once(name: str, passed_over: str) -> None:
    log.info("log-prob backend: %s%s", name, f" (not {passed_over})" if passed_over else "")
