import random

import numpy as np
import pytest
import torch

from lit_safe.execution.rng import isolated


def draws() -> tuple[float, float, float]:
    return torch.rand(()).item(), float(np.random.rand()), random.random()


def test_a_block_draws_the_same_whatever_was_drawn_before() -> None:
    with isolated(7):
        first = draws()
    draws()
    with isolated(7):
        assert draws() == first
    with isolated(8):
        assert not set(draws()) & set(first)


def seed_all() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)


def test_what_follows_a_block_draws_as_if_it_had_not_been() -> None:
    seed_all()
    expected = draws()
    seed_all()
    with isolated(2**63 - 1):
        draws()
    assert draws() == expected


def test_an_error_in_a_block_restores_too() -> None:
    seed_all()
    expected = draws()
    seed_all()
    with pytest.raises(KeyError), isolated(0):
        {}[draws()]
    assert draws() == expected


def test_the_generator_of_an_apple_gpu_is_seeded_and_put_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(5)  # in the place of the GPU's own
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", generator.get_state)
    monkeypatch.setattr(torch.mps, "set_rng_state", generator.set_state)
    monkeypatch.setattr(torch.mps, "manual_seed", generator.manual_seed)
    inside = []
    before = generator.get_state()
    for _ in range(2):
        with isolated(7):
            inside.append(torch.rand((), generator=generator).item())
    assert inside[0] == inside[1]
    assert torch.equal(generator.get_state(), before)
