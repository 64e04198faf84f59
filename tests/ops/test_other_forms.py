"""The other forms where inputs are awkward: shapes, strides, extremes, misfits, and memory at a real vocabulary.

Letters: T positions, D hidden width, V vocabulary.
"""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ops.sequence_logratio import logits_token_logp, logits_token_stats, peak_memory, slabs, vocab_parallel_token_logp


@pytest.fixture(autouse=True)
def small_blocks_of_memory_that_starts_as_nan(monkeypatch):
    monkeypatch.setitem(slabs.NARROWEST_SLAB, "cpu", 128)
    monkeypatch.setitem(slabs.BLOCK_BYTES, "cpu", 4 * 128 * 500)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (1, 32003), (63, 700), (257, 333)], ids=str)
def test_logits_of_any_shape_and_stride(shape):
    tokens, vocabulary = shape
    random = torch.Generator().manual_seed(0)
    logit_TV = torch.randn(vocabulary, tokens, generator=random, dtype=torch.float64).T  # columns apart in memory
    target_T = torch.randint(vocabulary, (tokens + 1,), generator=random)[1:]  # starts 8 bytes into its storage
    grad_T = torch.randn(tokens, 2, generator=random, dtype=torch.float64)[:, 0]
    found = []
    for function in (logits_token_logp, lambda z, t: z.log_softmax(-1).gather(1, t[:, None])[:, 0]):
        leaf_TV = logit_TV.clone(memory_format=torch.preserve_format).requires_grad_()
        logp_T = function(leaf_TV, target_T)
        found.append((logp_T.detach(), *torch.autograd.grad(logp_T, leaf_TV, grad_T)))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_a_log_prob_of_logits_is_never_positive_and_keeps_its_digits_near_zero():
    lead_T = torch.tensor([0.0, 1.0, 20.0, 90.0, 1e30])
    logit_TV = torch.zeros(5, 1000).index_fill(1, torch.tensor(7), 1.0) * lead_T[:, None]
    logp_T, entropy_T = logits_token_stats(logit_TV, torch.full((5,), 7))
    assert (logp_T <= 0).all()
    torch.testing.assert_close(logp_T.double(), -torch.log1p(999 * torch.exp(-lead_T.double())), rtol=2e-6, atol=0)
    assert (entropy_T >= 0).all()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch 2.15's own check
def test_the_backward_operator_of_logits_is_one_torch_understands():
    logit_TV, target_T = torch.randn(6, 5), torch.tensor([0, 4, -100, 1, 2, 3])
    normalized = torch.ops.sequence_logratio.logits(logit_TV, target_T)[:3]
    torch.library.opcheck(
        torch.ops.sequence_logratio.logits_backward.default, (torch.randn(6), logit_TV, target_T, *normalized)
    )


def test_heads_and_targets_that_do_not_fit_a_part_of_the_head_are_named():
    hidden_TD, weight_VD = torch.randn(3, 7), torch.randn(5, 7)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        part = partial(vocab_parallel_token_logp, hidden_TD, first_id=10, group=dist.group.WORLD)
        assert part(weight_VD, torch.tensor([10, 14, -100])).isfinite().all()
        with pytest.raises(ValueError, match="target 9 is neither -100 nor an id that a rank holds"):
            part(weight_VD, torch.tensor([10, 9, -100]))
        with pytest.raises(ValueError, match=r"need int64 targets \[3\], got torch.int64 \(2,\)"):
            part(weight_VD, torch.tensor([10, 11]))
        with pytest.raises(ValueError, match=r"hidden is torch.float32 and weight torch.bfloat16; only"):
            part(weight_VD.bfloat16(), torch.tensor([10, 14, -100]))
        with torch.autocast("cpu", torch.bfloat16):
            assert part(weight_VD.bfloat16(), torch.tensor([10, 14, -100])).isfinite().all()
    finally:
        dist.destroy_process_group()


MEASURE = """
import json, torch
from ops.sequence_logratio import Head, both_sequence_logp, token_stats
from ops.sequence_logratio.peak_memory import peak_mib
torch.set_num_threads(1)
T, D, V = 512, 32, 151_936
def stats(tokens, vocabulary):
    heads = (Head(torch.randn(tokens, D), torch.randn(vocabulary, D)) for _ in range(2))
    token_stats(*heads, torch.arange(tokens))
def both(tokens, vocabulary):
    policy = Head(torch.randn(tokens, D, requires_grad=True), torch.randn(vocabulary, D))
    reference = policy._replace(hidden_TD=torch.randn(tokens, D))
    bounds_N1 = torch.tensor([0, tokens])
    both_sequence_logp(policy, reference, torch.arange(tokens), cu_seqlens_N1=bounds_N1)[0].sum().backward()
stats(512, 1024), both(512, 1024)  # libraries load and set their buffers aside
before, peaks = peak_mib(), []
for step in (both, stats):  # a peak only rises
    step(T, V)
    peaks.append(peak_mib() - before)
print(json.dumps(peaks))
"""


@pytest.mark.skipif(peak_memory.missing() is not None, reason=str(peak_memory.missing()))
def test_neither_statistics_nor_two_models_at_once_hold_the_logits():
    command = [sys.executable, "-c", MEASURE]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, cwd=Path(__file__).parents[2])
    head_mib, logits_mib = 151_936 * 32 * 4 / 2**20, 512 * 151_936 * 4 / 2**20
    both, stats = json.loads(done.stdout)
    assert both - head_mib < logits_mib / 6
    assert stats - 2 * head_mib < logits_mib / 6
