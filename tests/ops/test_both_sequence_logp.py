"""Policy and reference through one head in one call: what two calls give, at the cost of the policy's gradient alone.

Letters: T positions, N sequences, D hidden width, V vocabulary.
"""

import pytest
import torch

from ops.sequence_logratio import Head, both_sequence_logp, sequence_logp
from tests.ops.cpu_backends import CPU_BACKENDS


@pytest.mark.parametrize("backend", ["auto", *CPU_BACKENDS])
@pytest.mark.parametrize("shared", [True, False], ids=["one head", "two heads"])
@pytest.mark.parametrize("head_learns", [True, False])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_both_are_what_each_is_alone(backend, shared, head_learns, reduction):
    random = torch.Generator().manual_seed(0)
    hidden_TD, beside_TD, weight_VD = (torch.randn(rows, 8, generator=random) for rows in (12, 12, 600))
    target_T = torch.randint(600, (12,), generator=random).index_fill(0, torch.tensor(10), -100)
    leaves = [hidden_TD.requires_grad_(), weight_VD.requires_grad_(head_learns)][: 1 + head_learns]
    policy = Head(hidden_TD, weight_VD, scale=0.7, softcap=5.0)
    reference = policy._replace(
        hidden_TD=beside_TD.requires_grad_(), weight_VD=weight_VD if shared else weight_VD + 0.1
    )
    how = {"cu_seqlens_N1": torch.tensor([0, 1, 7, 7, 12]), "reduction": reduction, "backend": backend}
    form = {"scale": 0.7, "softcap": 5.0, **how}
    policy_N, reference_N = both_sequence_logp(policy, reference, target_T, **how)
    alone_N = sequence_logp(hidden_TD, weight_VD, target_T, **form)
    torch.testing.assert_close(policy_N, alone_N)
    torch.testing.assert_close(reference_N, sequence_logp(beside_TD, reference.weight_VD, target_T, **form).detach())
    assert not reference_N.requires_grad
    grads = [torch.autograd.grad(logp_N.square().sum(), leaves) for logp_N in (policy_N, alone_N)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)
