"""Contents of the benchmark: shapes, inputs, providers of the loss, and one timed step.

Letters: T scored positions, N sequences (the first half chosen, the second rejected), D hidden width, V vocabulary.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module, util
from typing import NamedTuple

import torch
from torch import Tensor

from ops.sequence_logratio import Head, api, both_sequence_logp, token_logp

F = torch.nn.functional
SHAPES = {  # T, D, V, tokens of a sequence, dtype
    "A": (16384, 4096, 128256, 512, torch.bfloat16),
    "B": (8192, 2048, 151936, 512, torch.bfloat16),
    "C": (8192, 2304, 256000, 512, torch.bfloat16),
    "cpu": (2048, 576, 49152, 256, torch.float32),
    "tiny": (64, 32, 4096, 16, torch.float32),
}
# operations / TDV of a method that stores no logits: 2 for each forward pass, 6 for the backward pass with
# recomputation, 2 for the slopes of a frozen head
FLOOR = {"full": 10, "cached": 8, "frozen": 6, "frozen cached": 4, "forward": 2, "backward": 6, "nograd": 2}
PROMPT_PER_RESPONSE = 0.42  # UltraFeedback's median, the lowest of the common preference datasets
PLAIN, PROMPTED = "plain torch", "plain torch, prompt too"
Logp = Callable[[Tensor, Tensor, Tensor], Tensor]


class Case(NamedTuple):
    """Inputs of one shape. The ``prompted`` ones also contain prompt positions, which are not scored."""

    hidden_TD: Tensor
    weight_VD: Tensor
    target_T: Tensor
    reference_TD: Tensor
    prompted_hidden: Tensor
    prompted_target: Tensor
    prompted_reference: Tensor
    sequences: int


class Provider(NamedTuple):
    """One implementation of the loss."""

    logp: Logp | None = None
    prompted: bool = False
    loss: Callable[[Case, Tensor, bool], Tensor] | None = None  # of a whole step, for providers that also fuse the loss
    missing: str | None = None
    backend: str | None = None  # of ours, which take policy and reference in one call where both are computed


def make_case(name: str, device: str, seed: int = 0) -> Case:
    """Random states with confident and unconfident targets; a flat softmax would favour gradient filters."""
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
    """The usual code: all logits, in fp32 for the softmax."""
    return -F.cross_entropy(F.linear(hidden_TD, weight_VD).float(), target_T, reduction="none")


def providers(names: list[str] | None) -> dict[str, Provider]:
    """All providers. One that is not installed holds a message instead."""
    known = {name: Provider(partial(token_logp, backend=name), backend=name) for name in api.BACKENDS}
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
    return _pair_loss((logp_T - reference_T)[: len(logp_T)].view(sequences, -1).sum(1))


def _pair_loss(logratio_N: Tensor) -> Tensor:
    chosen, rejected = logratio_N.chunk(2)
    return -F.logsigmoid(0.1 * (chosen - rejected)).mean()


def step(case: Case, provider: Provider, mode: str) -> Callable[[], dict[str, float]]:
    """A step to time. It returns seconds by part."""
    tokens = len(case.target_T)
    hidden, target, reference = case.hidden_TD, case.target_T, case.reference_TD
    if provider.prompted:
        hidden, target, reference = case.prompted_hidden, case.prompted_target, case.prompted_reference
    weight = case.weight_VD.detach().requires_grad_("frozen" not in mode and mode != "nograd")
    hidden = hidden.detach().requires_grad_(mode != "nograd")
    case = case._replace(weight_VD=weight)
    cached_T = torch.zeros(tokens, device=hidden.device)
    bounds_N1 = torch.arange(0, tokens + 1, tokens // case.sequences, device=hidden.device, dtype=torch.int32)
    heads = Head(hidden, weight), Head(reference, weight if "frozen" in mode else weight.detach())

    def run() -> dict[str, float]:
        hidden.grad = weight.grad = None
        start, cpu = now(hidden), time.process_time()
        if provider.loss is not None:
            loss = provider.loss(case, hidden, "cached" not in mode)
        elif provider.backend is not None and mode in ("full", "frozen"):  # the call that training makes
            both = both_sequence_logp(*heads, target, cu_seqlens_N1=bounds_N1, backend=provider.backend)
            loss = _pair_loss(both[0] - both[1])
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
    """Seconds, after the device has finished all its work."""
    if tensor.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()
