"""Compares every log-prob backend with float64, at shapes drawn anew for each run, with poisoned output memory.

Letters: T positions, N sequences, D hidden width, V vocabulary.
"""

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ops.sequence_logratio import Head, api, both_sequence_logp, token_logp, token_stats

Row = dict[str, object]


class Problem(NamedTuple):
    """Inputs of a head. ``target_T`` has ignored entries."""

    hidden_TD: Tensor
    weight_VD: Tensor
    target_T: Tensor
    bias_V: Tensor | None
    scale: float
    softcap: float | None

    @property
    def shape(self) -> str:
        """The shape as text."""
        form = ["bias"] * (self.bias_V is not None) + ["scale"] * (self.scale != 1) + ["softcap"] * bool(self.softcap)
        return " ".join([f"T{len(self.target_T)} D{self.hidden_TD.shape[1]} V{len(self.weight_VD)}", *form])


def check(device: str, small: bool, seed: int, problems: int) -> Iterator[Row]:
    """One row for each backend, dtype and quantity: its error, the error that is allowed, and whether it is ``ok``.

    A result may differ from float64 by twice plain torch's difference and four units in the last place. Gradients are
    compared as well.
    """
    draw = random.Random(seed)
    dtypes = [torch.bfloat16, torch.float16] if device == "cuda" else [torch.float32]
    for number in range(problems):
        for dtype in dtypes:
            problem = _problem(draw, device, dtype, small, form=number % 3)
            for head_learns in (True, False):
                yield from _compared(problem, device, head_learns)
            yield _shared_head(problem)
            yield from _statistics(problem)
    if not small:
        yield _far_offsets(device)


@contextmanager
def poisoned() -> Iterator[None]:
    """A block in which new memory holds NaN, so that an output that a kernel does not write shows.

    PyTorch's deterministic mode fills what ``torch.empty`` returns.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():  # of operations that have no deterministic form
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _problem(draw: random.Random, device: str, dtype: torch.dtype, small: bool, form: int) -> Problem:
    tokens = draw.randint(1, 40) if small else draw.choice([draw.randint(1, 300), draw.randint(2000, 6000)])
    width = 8 * draw.randint(2, 6) if small else 8 * draw.randint(32, 320)
    vocabulary = draw.randint(50, 700) if small else draw.randint(20000, 130000)
    generator = torch.Generator(device).manual_seed(draw.getrandbits(32))
    weight_VD = torch.randn(vocabulary, width, device=device, generator=generator)
    target_T = torch.randint(vocabulary, (tokens,), device=device, generator=generator)
    toward_TD = 24 * torch.rand(tokens, 1, device=device, generator=generator) * weight_VD[target_T] / width**0.5
    hidden_TD = (toward_TD + torch.randn(tokens, width, device=device, generator=generator)) / 4
    bias_V = torch.randn(vocabulary, device=device, generator=generator).to(dtype) if form else None
    target_T[draw.randrange(7) :: 7] = -100
    scale, softcap = (0.7, 20.0) if form == 2 else (1.0, None)
    return Problem(hidden_TD.to(dtype), weight_VD.to(dtype), target_T, bias_V, scale, softcap)


def _results(backend: str, problem: Problem, head_learns: bool) -> list[Tensor]:
    """Log-probs, and the gradients of the hidden states and, if it learns, of the weight."""
    hidden_TD = problem.hidden_TD.detach().requires_grad_()
    weight_VD = problem.weight_VD.detach().requires_grad_(head_learns)
    if backend == "plain":
        logit_TV = torch.nn.functional.linear(hidden_TD, weight_VD, problem.bias_V) * problem.scale
        if problem.softcap is not None:
            logit_TV = problem.softcap * torch.tanh(logit_TV / problem.softcap)
        logp_T = -torch.nn.functional.cross_entropy(logit_TV.float(), problem.target_T, reduction="none")
    else:
        form = {"bias_V": problem.bias_V, "scale": problem.scale, "softcap": problem.softcap}
        logp_T = token_logp(hidden_TD, weight_VD, problem.target_T, backend=backend, **form)  # type: ignore[arg-type]
    grad_T = torch.linspace(-1, 1, len(logp_T), device=logp_T.device, dtype=logp_T.dtype)
    wanted = [hidden_TD, weight_VD] if head_learns else [hidden_TD]
    return [logp_T.detach(), *torch.autograd.grad(logp_T, wanted, grad_T)]


def _compared(problem: Problem, device: str, head_learns: bool) -> Iterator[Row]:
    wide = problem._replace(
        hidden_TD=problem.hidden_TD.double(),
        weight_VD=problem.weight_VD.double(),
        bias_V=None if problem.bias_V is None else problem.bias_V.double(),
    )
    truth = _results("reference", wide, head_learns)
    plain = _results("plain", problem, head_learns)
    dtype = problem.hidden_TD.dtype
    for backend, module in api.BACKENDS.items():
        if backend == "reference":
            continue
        if why := module.unsupported(problem.hidden_TD, problem.weight_VD):
            yield {"backend": backend, "what": "left out", "shape": problem.shape, "why": why, "ok": None}
            continue
        with poisoned():
            ours = _results(backend, problem, head_learns)
        for name, exact, theirs, mine in zip(("logp", "grad hidden", "grad head"), truth, plain, ours, strict=False):
            ulp = exact.abs().max() * torch.finfo(torch.float32 if name == "logp" else dtype).eps
            allowed = float(2 * (theirs.double() - exact).abs().max() + 4 * ulp)
            yield _row(backend, f"{name}, {dtype}".replace("torch.", ""), problem, mine.double() - exact, allowed)


def _row(backend: str, what: str, problem: Problem, apart: Tensor, allowed: float) -> Row:
    error = float(apart.abs().max())
    return {
        "backend": backend,
        "what": what,
        "shape": problem.shape,
        "error": error,
        "allowed": allowed,
        "ok": error <= allowed,  # False for NaN
    }


def _shared_head(problem: Problem) -> Row:
    """The call that training makes: policy and reference through one head."""
    bounds_N1 = torch.tensor([0, len(problem.target_T)], dtype=torch.int32, device=problem.hidden_TD.device)
    heads = _head(problem, problem.hidden_TD), _head(problem, problem.hidden_TD.flip(0))
    with poisoned():
        both_2 = torch.cat(both_sequence_logp(heads[0], heads[1], problem.target_T, cu_seqlens_N1=bounds_N1))
    exact_2 = torch.stack([_exact(head, problem.target_T).sum() for head in heads])
    return _row("auto", "both_sequence_logp", problem, both_2.double() - exact_2, _allowed(exact_2.abs().sum()))


def _statistics(problem: Problem) -> Iterator[Row]:
    """Log-probs, KL and entropy of two models, and the KL of a model to itself, which is 0."""
    rows = slice(0, 64)  # float64 holds all logits of these
    heads = _head(problem, problem.hidden_TD[rows]), _head(problem, problem.hidden_TD.flip(0)[rows])
    target_T = problem.target_T[rows]
    exact = torch.stack(_exact_statistics(heads, target_T))
    for backend in ("chunked", "fused"):
        if api.BACKENDS[backend].unsupported(problem.hidden_TD, problem.weight_VD):
            continue
        with poisoned():
            found = torch.stack(token_stats(*heads, target_T, backend=backend)).double()
            own_T = token_stats(heads[0], heads[0], target_T, backend=backend).kl_T.double()
        yield _row(backend, "token_stats", problem, found - exact, _allowed(exact.abs().max()))
        yield _row(backend, "KL to itself", problem, own_T, 1e-6)


def _exact_statistics(heads: tuple[Head, Head], target_T: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four numbers of ``token_stats`` in float64, from whole distributions."""
    logps = []
    for hidden_TD, weight_VD, bias_V, scale, softcap in heads:
        bias_V = None if bias_V is None else bias_V.double()
        logit_TV = torch.nn.functional.linear(hidden_TD.double(), weight_VD.double(), bias_V) * scale
        logit_TV = logit_TV if softcap is None else softcap * torch.tanh(logit_TV / softcap)
        logps.append(logit_TV.log_softmax(-1))
    mine_TV, theirs_TV = logps
    p_TV, at_T1 = mine_TV.exp(), target_T.clamp(min=0)[:, None]
    both = (logp_TV.gather(1, at_T1)[:, 0].where(target_T >= 0, 0) for logp_TV in logps)
    return *both, (p_TV * (mine_TV - theirs_TV)).sum(-1), -(p_TV * mine_TV).sum(-1)  # type: ignore[return-value]  # four tensors


def _far_offsets(device: str) -> Row:
    """T * V beyond 2**31: rows past the bound get what they get alone."""
    tokens, width, vocabulary = 20480, 64, 131072
    generator = torch.Generator(device).manual_seed(0)
    hidden_TD, weight_VD = (
        torch.randn(rows, width, device=device, generator=generator).to(torch.bfloat16) for rows in (tokens, vocabulary)
    )
    target_T = torch.randint(vocabulary, (tokens,), device=device, generator=generator)
    with poisoned():
        all_T = token_logp(hidden_TD, weight_VD, target_T)
    last = slice(tokens - 64, tokens)
    alone_T = _exact(Head(hidden_TD[last], weight_VD), target_T[last])
    problem = Problem(hidden_TD, weight_VD, target_T, None, 1.0, None)
    return _row("auto", "offsets over 2**31", problem, all_T[last].double() - alone_T, _allowed(alone_T.abs().max()))


def _head(problem: Problem, hidden_TD: Tensor) -> Head:
    return Head(hidden_TD, problem.weight_VD, problem.bias_V, problem.scale, problem.softcap)


def _exact(head: Head, target_T: Tensor) -> Tensor:
    """[T] log-probs in float64."""
    hidden_TD, weight_VD, bias_V, scale, softcap = head
    bias_V = None if bias_V is None else bias_V.double()
    form = {"bias_V": bias_V, "scale": scale, "softcap": softcap}
    return token_logp(hidden_TD.double(), weight_VD.double(), target_T, backend="reference", **form)  # type: ignore[arg-type]


def _allowed(size: Tensor) -> float:
    """Products of bf16 are exact in fp32, and their sums round in fp32."""
    return 1e-4 * (1 + float(size))
