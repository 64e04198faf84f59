"""The estimate of a training step's memory."""

import pytest
import torch

from models.adaptation import Full, LastLayers, LoRA
from models.memory import memory_estimate
from models.pair import PolicyReference
from models.reference import AdapterOff, FrozenCopy
from models.sources import TinyLlama

KINDS = {
    "full": (Full(), FrozenCopy()),
    "last": (LastLayers(1), FrozenCopy()),
    "lora-copy": (LoRA(r=2), FrozenCopy()),
    "lora-off": (LoRA(r=2), AdapterOff()),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def load(source, *kind, **options):
    pair = PolicyReference(source, *kind, **options)
    pair.load()
    return pair


def test_the_memory_estimate_is_exact_where_it_can_be(kind, random_source, pack, sequences):
    pair = load(random_source(), *kind)
    estimate = pair.memory_estimate(tokens=16, scored=8)
    optimizer = torch.optim.AdamW([p for p in pair.parameters() if p.requires_grad])
    pair.policy_logp(pack(*sequences)).sum().backward()
    optimizer.step()
    moments = [t for state in optimizer.state.values() for key, t in state.items() if key != "step"]
    assert estimate.weights == sum(p.nbytes for p in pair.parameters())
    assert estimate.gradients == sum(p.grad.nbytes for p in pair.parameters() if p.grad is not None)
    assert estimate.optimizer == sum(t.nbytes for t in moments)
    assert (estimate.logits, estimate.buckets) == (3 * 8 * 97 * 4, 0)


def test_blocks_of_logits_are_charged_where_blocks_are_what_is_held(random_source):
    sizes = {}
    for backend in ("auto", "chunked", "reference"):
        policy = load(random_source(), backend=backend).policy
        policy.head.weight_VD.data = torch.empty(152_000, 16)  # never touched
        sizes[backend] = memory_estimate(policy, [], tokens=8192, scored=8192, checkpointed=False).logits / 2**30
    assert sizes["reference"] == pytest.approx(13.9, abs=0.1)
    assert max(sizes["auto"], sizes["chunked"]) < 0.1


def test_a_frozen_trunk_keeps_no_activations(random_source):
    def of(*kind):
        return load(random_source(), *kind).memory_estimate(16, 8).activations

    whole = of(Full())
    assert of(LastLayers(1)) == whole / 3
    assert of(LastLayers(2)) == 2 * whole / 3
    assert of(LoRA(r=2)) == whole
    assert of(LastLayers(1, head=True)) == whole / 3
    tied = load(random_source("llama-tied"), LastLayers(1, head=True))  # its head is the input embedding as well
    assert tied.memory_estimate(16, 8).activations == whole


def test_several_ranks_hold_their_gradients_once_more(monkeypatch):
    pair = load(TinyLlama())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    estimate = pair.memory_estimate(16, 8)
    assert estimate.buckets == estimate.gradients > 0
    assert estimate.total == sum(estimate)
