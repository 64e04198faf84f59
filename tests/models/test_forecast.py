"""The forecast for sizes that were not tried: the parts that have a closed form equal it."""

from pathlib import Path

import pytest
import torch

from models.adaptation import Full, LoRA
from models.sharding.forecast import GIB, NF4, RANKS, SIZES, Size, lines, on_paper, row

SMALL = Size("small", 2, 64, 128, 4, 2, 1000)


def test_what_is_held_is_the_arithmetic_of_16_bytes_for_each_weight_that_trains() -> None:
    policy = on_paper(SMALL, Full())
    assert all(p.is_meta and p.dtype == torch.float32 for p in policy.parameters())
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64
    count = 2 * layer + 2 * 1000 * 64 + 64
    assert count == sum(p.numel() for p in policy.parameters())
    for ranks in RANKS:
        found = row(SMALL, "full", policy, ranks)
        assert found.held * GIB == pytest.approx(16 * count / ranks, abs=4)
        assert found.outside * GIB == pytest.approx(16 * count / ranks + (4 * count if ranks > 1 else 0), abs=4)
        assert found.exchange == pytest.approx((ranks - 1) / ranks * 12 * count / (450e9 if ranks < 64 else 50e9))


def test_a_base_in_4_bits_holds_its_embeddings_and_head_in_bf16() -> None:
    policy = on_paper(SMALL, LoRA(r=16))
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in policy.parameters() if not p.requires_grad)
    outer = 2 * 1000 * 64
    found = row(SMALL, "QLoRA", policy, 8)
    assert found.held * GIB == pytest.approx(2 * outer + NF4 * (frozen - outer) + 16 * trained, abs=4)
    assert found.outside == found.held, "nothing is sharded"


def test_the_page_has_the_commands_numbers() -> None:
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
    assert next(lines()) in page
    policy = on_paper(SIZES[0], Full())
    for ranks in RANKS:
        assert f"| {' | '.join(row(SIZES[0], 'full', policy, ranks).cells())} |" in page
