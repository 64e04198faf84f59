"""Makes one torch operator from a backend's forward and backward pass: opaque to torch.compile, with autograd.

Letters: T scored positions, G <= T of them with a gradient (the first ones), D hidden width, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ops.sequence_logratio.reference import IGNORE


class Problem(NamedTuple):
    """Inputs of a log-prob computation: ``softmax(softcap(scale * (hidden @ weight.T + bias)))`` at the targets."""

    hidden_TD: Tensor
    weight_VD: Tensor
    target_T: Tensor
    bias_V: Tensor | None
    scale: float
    softcap: float | None

    def rows(self, count: int) -> "Problem":
        """Only the first ``count`` positions."""
        return self._replace(hidden_TD=self.hidden_TD[:count], target_T=self.target_T[:count])


class Normalized(NamedTuple):
    """Normalisation of the logits: p = exp((z - shift) - log_sum), fp32 or wider.

    shift and log_sum are stored separately, because their sum is rounded for large logits, which would give p a
    relative error.
    """

    logp_T: Tensor  # of the target, 0 if ignored
    shift_T: Tensor  # the largest logit without the target
    log_sum_T: Tensor


# (problem, slope_rows) -> normalized, and slope_GD = dlogp/dhidden of the first slope_rows positions, fp32 or wider
Forward = Callable[[Problem, int], tuple[Normalized, Tensor]]

# (problem, grad_T, normalized, (need_hidden, need_weight, need_bias)) -> gradients of hidden (fp32 or wider), weight
# and bias, None for those not needed
Backward = Callable[
    [Problem, Tensor, Normalized, tuple[bool, bool, bool]], tuple[Tensor | None, Tensor | None, Tensor | None]
]


def register(name: str, forward: Forward, backward: Backward) -> Callable[..., Tensor]:
    """Registers the operator and returns the backend's ``token_logp``.

    The operator is a ``custom_op``. A ``triton_op`` does not compile under the interpreter, and with autotuning it used
    the first shape's configuration for all shapes (pytorch #164124). With a frozen head, the forward pass computes
    dlogp/dhidden and the backward pass multiplies it by the incoming gradient. Otherwise the backward pass recomputes
    the logits slab by slab.
    """

    @torch.library.custom_op(f"sequence_logratio::{name}", mutates_args=())
    def logp_op(
        hidden_TD: Tensor,
        weight_VD: Tensor,
        target_T: Tensor,
        bias_V: Tensor | None,
        scale: float,
        softcap: float | None,
        grad_rows: int,
        head_frozen: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        problem = Problem(hidden_TD, weight_VD, target_T, bias_V, scale, softcap)
        # autocast remains on inside custom operators and would round the fp32 products
        with torch.autocast(hidden_TD.device.type, enabled=False):
            normalized, slope_GD = forward(problem, grad_rows if head_frozen else 0)
        return *normalized, slope_GD

    @logp_op.register_fake
    def _(
        hidden_TD: Tensor,
        weight_VD: Tensor,
        target_T: Tensor,
        bias_V: Tensor | None,
        scale: float,
        softcap: float | None,
        grad_rows: int,
        head_frozen: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        precise = torch.promote_types(hidden_TD.dtype, torch.float32)
        tokens, width = hidden_TD.shape
        return (
            hidden_TD.new_empty(tokens, dtype=precise),
            hidden_TD.new_empty(tokens, dtype=precise),
            hidden_TD.new_empty(tokens, dtype=precise),
            hidden_TD.new_empty(grad_rows if head_frozen else 0, width, dtype=precise),
        )

    @torch.library.custom_op(f"sequence_logratio::{name}_backward", mutates_args=())
    def grad_op(
        grad_T: Tensor,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        target_T: Tensor,
        bias_V: Tensor | None,
        scale: float,
        softcap: float | None,
        grad_rows: int,
        logp_T: Tensor,
        shift_T: Tensor,
        log_sum_T: Tensor,
        need_hidden: bool,
        need_weight: bool,
        need_bias: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        problem = Problem(hidden_TD, weight_VD, target_T, bias_V, scale, softcap).rows(grad_rows)
        # an expanded gradient (sum().backward()) is strided; ignored positions get no gradient
        grad_G = grad_T[:grad_rows].where(problem.target_T != IGNORE, 0).contiguous()
        with torch.autocast(hidden_TD.device.type, enabled=False):
            normalized = Normalized(logp_T[:grad_rows], shift_T[:grad_rows], log_sum_T[:grad_rows])
            hidden_GD, weight, bias = backward(problem, grad_G, normalized, (need_hidden, need_weight, need_bias))
        # outputs of an operator must be distinct tensors, even if they are empty
        return (
            hidden_TD.new_empty(0) if hidden_GD is None else _padded(hidden_GD.to(hidden_TD.dtype), len(hidden_TD)),
            hidden_TD.new_empty(0) if weight is None else weight,
            hidden_TD.new_empty(0) if bias is None else bias,
        )

    @grad_op.register_fake
    def _(
        grad_T: Tensor,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        target_T: Tensor,
        bias_V: Tensor | None,
        scale: float,
        softcap: float | None,
        grad_rows: int,
        logp_T: Tensor,
        shift_T: Tensor,
        log_sum_T: Tensor,
        need_hidden: bool,
        need_weight: bool,
        need_bias: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return (
            hidden_TD.new_empty(hidden_TD.shape if need_hidden else 0),
            weight_VD.new_empty(weight_VD.shape) if need_weight else hidden_TD.new_empty(0),
            bias_V.new_empty(bias_V.shape) if need_bias and bias_V is not None else hidden_TD.new_empty(0),
        )

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        hidden_TD, weight_VD, target_T, bias_V, ctx.scale, ctx.softcap, ctx.grad_rows, ctx.head_frozen = inputs
        ctx.save_for_backward(hidden_TD, weight_VD, target_T, bias_V, *output)

    def vjp(ctx: Any, grad_T: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_TD, weight_VD, target_T, bias_V, *normalized, slope_GD = ctx.saved_tensors
        need_hidden, need_weight, _, need_bias = ctx.needs_input_grad[:4]
        not_tensors = (None,) * 4
        if grad_T is None:
            return None, None, None, None, *not_tensors
        if ctx.head_frozen:
            grad_G = grad_T.where(target_T != IGNORE, 0)[: ctx.grad_rows]
            grad_GD = (grad_G[:, None] * slope_GD).to(hidden_TD.dtype)
            return _padded(grad_GD, len(hidden_TD)), None, None, None, *not_tensors
        problem = (hidden_TD, weight_VD, target_T, bias_V, ctx.scale, ctx.softcap, ctx.grad_rows)
        hidden, weight, bias = grad_op(grad_T, *problem, *normalized, need_hidden, need_weight, need_bias)
        grads = (hidden if need_hidden else None, weight if need_weight else None, None, bias if need_bias else None)
        return *grads, *not_tensors

    torch.library.register_autograd(f"sequence_logratio::{name}", vjp, setup_context=setup_context)

    def token_logp(
        hidden_TD: Tensor,
        weight_VD: Tensor,
        target_T: Tensor,
        bias_V: Tensor | None,
        scale: float,
        softcap: float | None,
        grad_rows: int | None = None,
    ) -> Tensor:
        head_learns = weight_VD.requires_grad or (bias_V is not None and bias_V.requires_grad)
        graded = torch.is_grad_enabled() and (hidden_TD.requires_grad or head_learns)
        rows = 0 if not graded else len(hidden_TD) if grad_rows is None else grad_rows
        return logp_op(hidden_TD, weight_VD, target_T, bias_V, scale, softcap, rows, graded and not head_learns)[0]

    return token_logp


def _padded(grad_GD: Tensor, tokens: int) -> Tensor:
    return torch.nn.functional.pad(grad_GD, (0, 0, 0, tokens - len(grad_GD))) if len(grad_GD) < tokens else grad_GD
