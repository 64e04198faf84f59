"""What users of the face see: sums over sequences, log-ratios, errors, and the choice of a backend.

Letters: T positions, N sequences, D hidden width, V vocabulary.
"""

import logging
import math

import pytest
import torch
from torch.distributed.tensor import DeviceMesh, distribute_tensor

from ops.sequence_logratio import Head, api, sequence_logp, sequence_logratio, token_logp
from tests.ops.cpu_backends import CPU_BACKENDS

BACKENDS = ["auto", *CPU_BACKENDS]


@pytest.fixture
def batch():
    """Four sequences, the third empty, the fourth with an ignored token."""
    random = torch.Generator().manual_seed(0)
    hidden_TD = torch.randn(12, 8, generator=random)
    weight_VD = torch.randn(600, 8, generator=random)
    target_T = torch.randint(600, (12,), generator=random)
    target_T[10] = -100
    return hidden_TD, weight_VD, target_T, torch.tensor([0, 1, 7, 7, 12], dtype=torch.int32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hand_worked_sequence(backend):
    hidden_TD = torch.tensor([[0.0], [1.0]])
    weight_VD = torch.tensor([[0.0], [math.log(3)]])  # position 0: 1/2, 1/2; position 1: 1/4, 3/4
    got = sequence_logp(hidden_TD, weight_VD, torch.tensor([0, 1]), cu_seqlens_N1=torch.tensor([0, 2]), backend=backend)
    torch.testing.assert_close(got, torch.tensor([math.log(3 / 8)]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sequence_is_the_sum_or_mean_of_its_scored_tokens(backend, batch):
    hidden_TD, weight_VD, target_T, bounds_N1 = batch
    logp_T = token_logp(hidden_TD, weight_VD, target_T, backend=backend)
    summed, mean = (
        sequence_logp(*batch[:3], cu_seqlens_N1=bounds_N1, reduction=how, backend=backend) for how in ("sum", "mean")
    )
    assert logp_T[10] == 0
    torch.testing.assert_close(
        summed, torch.stack([logp_T[0], logp_T[1:7].sum(), logp_T.new_tensor(0), logp_T[7:].sum()])
    )
    torch.testing.assert_close(mean, summed / torch.tensor([1, 6, 1, 4]))


def test_permuting_sequences_permutes_their_log_probs(batch):
    hidden_TD, weight_VD, target_T, _ = batch
    first = sequence_logp(hidden_TD, weight_VD, target_T, cu_seqlens_N1=torch.tensor([0, 5, 12]))
    order_T = torch.cat([torch.arange(5, 12), torch.arange(5)])
    swapped = sequence_logp(hidden_TD[order_T], weight_VD, target_T[order_T], cu_seqlens_N1=torch.tensor([0, 7, 12]))
    torch.testing.assert_close(swapped, first.flip(0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("shared_head", [True, False])
@pytest.mark.parametrize("head_learns", [True, False])
def test_a_logratio_is_the_difference_of_two_log_probs(backend, reduction, shared_head, head_learns, batch):
    hidden_TD, weight_VD, target_T, bounds_N1 = batch
    how = {"cu_seqlens_N1": bounds_N1, "reduction": reduction, "backend": backend}
    weight_VD.requires_grad_(head_learns)
    policy = Head(hidden_TD.clone().requires_grad_(), weight_VD)
    other_VD = weight_VD if shared_head else weight_VD.detach() + 0.1
    reference = Head((hidden_TD + 0.1).requires_grad_(), other_VD)
    leaves = [policy.hidden_TD, weight_VD][: 1 + head_learns]

    def both(logratio_N):
        return logratio_N.detach(), *torch.autograd.grad(logratio_N.square().sum(), leaves)

    policy_N, reference_N = (
        sequence_logp(head.hidden_TD, head.weight_VD, target_T, **how) for head in (policy, reference)
    )
    expected = both(policy_N - reference_N.detach())
    for ours, theirs in ((policy, reference), (policy, reference_N.detach())):
        for got, want in zip(both(sequence_logratio(ours, theirs, target_T, **how)), expected, strict=True):
            # gradient of a square: the rounding of two long sums counts in it
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert sequence_logratio(policy, reference, target_T, **how)[2] == 0
    torch.autograd.backward(sequence_logratio(policy, reference, target_T, **how).sum())
    assert reference.hidden_TD.grad is None


def test_a_row_that_predicts_two_tokens_gets_both_gradients(batch):
    hidden_TD, weight_VD, target_T, _ = batch
    rows_T, targets_T = torch.tensor([0, 1, 0, 2]), target_T[:4]
    grads = []
    for index in (rows_T, None):
        leaf_TD = (hidden_TD if index is not None else hidden_TD[rows_T]).clone().requires_grad_()
        gathered_TD = leaf_TD if index is None else leaf_TD[index]
        token_logp(gathered_TD, weight_VD, targets_T, backend="chunked").sum().backward()
        grads.append(leaf_TD.grad)
    torch.testing.assert_close(grads[0][:3], torch.stack([grads[1][0] + grads[1][2], grads[1][1], grads[1][3]]))


BAD = {
    "hidden \\[T, D\\]": {"hidden_TD": torch.zeros(2, 3)},
    "int64 targets \\[2\\]": {"target_T": torch.zeros(3, dtype=torch.int64)},
    "torch.int32": {"target_T": torch.zeros(2, dtype=torch.int32)},
    "bias \\[5\\]": {"bias_V": torch.zeros(4)},
    "target 5 is neither": {"target_T": torch.tensor([0, 5])},
    "target -1 is neither": {"target_T": torch.tensor([0, -1])},
    "only autocast mixes": {"hidden_TD": torch.zeros(2, 4, dtype=torch.bfloat16)},
    "backend must be one of": {"backend": "quick"},
    "rise from 0 to T = 2": {"cu_seqlens_N1": torch.tensor([0, 3])},
    "reduction must be": {"reduction": "max"},
}


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_named(message):
    good = {
        "hidden_TD": torch.zeros(2, 4),
        "weight_VD": torch.zeros(5, 4),
        "target_T": torch.zeros(2, dtype=torch.int64),
        "cu_seqlens_N1": torch.tensor([0, 2]),
    }
    with pytest.raises(ValueError, match=message):
        sequence_logp(**(good | BAD[message]))


def test_logratios_of_what_does_not_fit_are_refused(batch):
    hidden_TD, weight_VD, target_T, bounds_N1 = batch
    with pytest.raises(ValueError, match="vocabularies differ: 600 and 599"):
        sequence_logratio(Head(hidden_TD, weight_VD), Head(hidden_TD, weight_VD[1:]), target_T, cu_seqlens_N1=bounds_N1)
    with pytest.raises(ValueError, match="needs target_T"):
        sequence_logratio(Head(hidden_TD, weight_VD), torch.zeros(4))
    with pytest.raises(ValueError, match="differ"):
        sequence_logratio(torch.zeros(4), torch.zeros(3))


def test_a_named_backend_that_cannot_run_says_why(batch):
    with pytest.raises(ValueError, match=r"'chunked' cannot run here: .* not meta"):
        token_logp(*(tensor.to("meta") for tensor in batch[:3]), backend="chunked")


def test_a_sharded_weight_is_refused(batch):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        sharded_VD = distribute_tensor(batch[1], DeviceMesh("cpu", [0]))
        with pytest.raises(ValueError, match="weight is a sharded DTensor"):
            token_logp(batch[0], sharded_VD, batch[2])
    finally:
        torch.distributed.destroy_process_group()


def test_auto_says_once_what_it_took_and_why(batch, caplog, monkeypatch):
    api._say.cache_clear()
    monkeypatch.setattr(api, "SMALL_LOGITS", 12 * 600)
    with caplog.at_level(logging.INFO, logger=api.__name__):
        for _ in range(2):
            token_logp(*batch[:3])
            token_logp(batch[0], batch[1].repeat(2, 1), batch[2])
    assert [record.message.split(" (")[0] for record in caplog.records] == [
        "log-prob backend: reference",
        "log-prob backend: chunked",
    ]
