"""A reference that is given back takes no memory, and is the same when something asks for it again."""

import gc
from typing import Any

import pytest
import torch

from models.adaptation import Full, LastLayers, LoRA
from models.pair import PolicyReference
from models.reference import AdapterOff, Checkpoint, FrozenCopy
from models.sources import TinyLlama

KINDS = {
    "full": (Full(), FrozenCopy()),
    "last layers": (LastLayers(1), FrozenCopy()),
    "lora, frozen copy": (LoRA(r=2), FrozenCopy()),
    "lora, adapter off": (LoRA(r=2), AdapterOff()),
    "another checkpoint": (Full(), Checkpoint(TinyLlama(seed=3))),
}


def loaded(kind: str) -> PolicyReference:
    pair = PolicyReference(TinyLlama(), *KINDS[kind])
    pair.load()
    return pair


def held() -> int:
    """Bytes of all parameters in this process."""
    gc.collect()
    return sum(o.numel() * o.element_size() for o in gc.get_objects() if type(o) is torch.nn.Parameter)


def train(pair: PolicyReference) -> None:
    with torch.no_grad():
        for parameter in pair.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.sin(torch.arange(parameter.numel()) + 1.0).view_as(parameter))


@pytest.mark.parametrize("kind", KINDS)
def test_after_training_the_log_probs_are_bitwise_those_of_before(kind: str, pack: Any) -> None:
    pair, batch = loaded(kind), pack(([1, 2, 3], [4, 5]), ([6], [7, 8, 9]))
    before, digest = pair.reference_logp(batch), pair.reference_digest()
    train(pair)
    moved = pair.policy_logp(batch)
    pair.free_reference()
    assert torch.equal(pair.policy_logp(batch), moved), "nothing but the reference leaves"
    assert torch.equal(pair.reference_logp(batch), before)
    assert not torch.equal(moved, before)
    assert pair.reference_digest() == digest


@pytest.mark.parametrize("kind", ["full", "last layers", "another checkpoint"])
def test_a_reference_that_was_given_back_holds_no_parameter(kind: str) -> None:
    pair = loaded(kind)
    own, both = pair.memory_estimate(8, 4).reference, held()
    assert own > 0
    pair.free_reference()
    assert both - held() == own
    assert pair.memory_estimate(8, 4).reference == 0
    pair.reference_digest()
    assert held() == both, "it is whole again, and shares what it shared"
    assert pair.memory_estimate(8, 4).reference == own


def test_a_source_that_has_changed_is_refused(pack: Any) -> None:
    class Drifting(TinyLlama):
        def load_model(self) -> Any:
            model = super().load_model()
            with torch.no_grad():
                model.lm_head.weight.add_(self.__dict__.setdefault("read", 0.0))
            self.__dict__["read"] += 1.0
            return model

    pair = PolicyReference(Drifting())
    pair.load()
    pair.free_reference()
    with pytest.raises(ValueError, match="holds other weights than when the run began"):
        pair.reference_logp(pack(([1, 2], [3])))


def test_reading_it_again_draws_no_random_number(pack: Any) -> None:
    pair = loaded("lora, frozen copy")
    pair.free_reference()
    torch.manual_seed(5)
    pair.reference_logp(pack(([1, 2], [3])))
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
