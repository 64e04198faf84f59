"""Numbers of single tokens: they sum to those of sequences, for each kind of policy, and have their gradients."""

import pytest
import torch

from models.adaptation import Full, LastLayers, LoRA
from models.pair import PolicyReference
from models.reference import AdapterOff, FrozenCopy
from models.sources import TinyLlama
from tests.lit_safe.token_world import fruit_batch

KINDS = {
    "full": (Full(), FrozenCopy()),
    "last layer": (LastLayers(1), FrozenCopy()),
    "adapter": (LoRA(r=2), AdapterOff()),
}


def moved(kind: str, layout: str = "padded") -> PolicyReference:
    pair = PolicyReference(TinyLlama(), *KINDS[kind], layout=layout)
    pair.load()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in pair.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=random)
    return pair


@pytest.mark.parametrize("layout", ["padded", "packed", "shared"])
@pytest.mark.parametrize("kind", KINDS)
def test_their_sums_are_the_numbers_of_the_sequences(kind, layout):
    sequences, pair = fruit_batch().sequences, moved(kind, layout)
    scored = sequences.target >= 0
    found = pair.token_scores(sequences, torch.arange(int(scored.sum())))
    bounds = torch.nn.functional.pad(scored.cumsum(0), (1, 0))[sequences.cu_seqlens.long()]
    logp_N, kl_N = (torch.segment_reduce(part, "sum", offsets=bounds) for part in found)
    assert torch.equal(logp_N, pair.policy_logp(sequences))
    stats = pair.sequence_stats(sequences)
    torch.testing.assert_close(kl_N.detach(), stats.kl, rtol=1e-4, atol=1e-5)
    assert (kl_N > 1e-4).all()
    trained = [parameter for parameter in pair.parameters() if parameter.requires_grad]
    assert any(
        slope is not None and slope.any() for slope in torch.autograd.grad(kl_N.sum(), trained, allow_unused=True)
    )


def test_the_kl_is_computed_where_it_is_asked_for():
    sequences, pair = fruit_batch().sequences, moved("full")
    whole = pair.token_scores(sequences, torch.arange(int((sequences.target >= 0).sum())))
    some_R = torch.arange(len(whole.kl)) % 3 == 0
    part = pair.token_scores(sequences, some_R.nonzero()[:, 0])
    torch.testing.assert_close(part.kl[some_R], whole.kl[some_R])
    assert not part.kl[~some_R].any()
    pair._open_reference = lambda: pytest.fail("the reference ran")
    for nowhere in (None, torch.zeros(0, dtype=torch.int64)):
        assert not pair.token_scores(sequences, nowhere).kl.any()
