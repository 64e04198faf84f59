"""The estimate of a training step's memory."""

import gc
import weakref

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
    head = pair.policy.head.weight_VD
    assert (estimate.logits, estimate.buckets) == (3 * 8 * 97 * 4 + head.requires_grad * head.nbytes, 0)  # untied


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
    assert of(LastLayers(1)) == pytest.approx(whole / 3, rel=0.1)
    assert of(LastLayers(2)) == pytest.approx(2 * whole / 3, rel=0.1)
    assert of(LoRA(r=2)) == pytest.approx(whole, rel=0.3)
    assert of(LastLayers(1, head=True)) == pytest.approx(whole / 3, rel=0.15)  # and the last norm's input
    tied = load(random_source("llama-tied"), LastLayers(1, head=True))  # its head is the input embedding as well
    assert whole / 3 * 1.5 < tied.memory_estimate(16, 8).activations < whole  # its frozen layers pass gradients on


@pytest.mark.parametrize("kind", KINDS)
def test_the_activations_are_what_autograd_keeps_of_a_larger_batch(kind, random_source, pack):
    pair = load(random_source(), *KINDS[kind])
    policy, kept = pair.policy, {}
    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor.detach()  # an output that is given back holds its own graph forever

    sequences = pack(([1, 2, 3] * 7, [4, 5] * 5), ([3] * 21, [6, 7] * 5))  # of one length, so that nothing is padded
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        policy.response_hidden(sequences)
    held = sum(storage.nbytes() for storage in kept.values())
    assert pair.memory_estimate(len(sequences.input_ids), 20).activations == pytest.approx(held, rel=0.05)


def test_holes_are_what_gradients_do_not_fill(kind, random_source):
    estimate = load(random_source(), *kind).memory_estimate(4096, 8)
    share = 1.5 if isinstance(kind[0], LoRA) else 1.0
    head = 97 * 16 * 4 if isinstance(kind[0], Full) else 0
    assert estimate.holes == int(share * estimate.activations) - estimate.gradients - head > 0
    assert load(random_source(), *kind).memory_estimate(8, 8).holes < estimate.holes / 256


def test_an_estimate_leaves_the_modes_of_the_modules_as_they_were(random_source):
    pair = load(random_source())
    before = [module.training for module in pair.modules()]
    pair.memory_estimate(16, 8)
    assert [module.training for module in pair.modules()] == before
    assert any(before)


def test_checkpointing_keeps_the_inputs_of_the_layers_and_one_layer(random_source):
    plain = load(random_source()).memory_estimate(1024, 8).activations
    less = load(random_source(), gradient_checkpointing=True).memory_estimate(1024, 8).activations
    assert less == pytest.approx(plain / 3 + 3 * 1024 * 16 * 4, rel=1e-6)


def test_several_ranks_hold_their_gradients_once_more(monkeypatch):
    pair = load(TinyLlama())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    estimate = pair.memory_estimate(16, 8)
    assert estimate.buckets == estimate.gradients > 0
    assert estimate.total == sum(estimate)


def test_an_estimate_holds_nothing_of_a_model_that_nobody_uses(kind, random_source):
    pair = load(random_source(), *kind)
    pair.memory_estimate(16, 8)
    weights = [weakref.ref(p) for p in pair.parameters()]
    del pair
    gc.collect()
    assert not any(weight() is not None for weight in weights)
