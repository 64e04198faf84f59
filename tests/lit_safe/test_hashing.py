"""Draws are functions of names."""

import torch

from lit_safe.hashing import hash64, uniform, uniforms


def test_a_hash_is_stable_over_releases() -> None:
    assert hash64("draw", 0, 17) == 2235816269732900712


def test_parts_do_not_run_into_each_other() -> None:
    assert hash64("ab", "c") != hash64("a", "bc")


def test_hashes_are_uniform() -> None:
    draws = torch.tensor([uniform("draw", 0, i) for i in range(20_000)], dtype=torch.float64)
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = torch.histc(draws, bins=20, min=0, max=1)
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # chi-square, 19 degrees, p = .001


def test_a_longer_call_begins_with_the_shorter_one() -> None:
    assert torch.equal(uniforms(64, "rollout", 3)[:16], uniforms(16, "rollout", 3))


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    uniforms(8, "x")
    assert torch.equal(before, torch.get_rng_state())
