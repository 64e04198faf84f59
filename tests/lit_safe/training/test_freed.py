"""A fit that is over holds nothing: a sweep in one process needs the memory of one run."""

import gc
import weakref
from pathlib import Path

import pytest
import torch

from lit_safe.anchors import Anchor
from lit_safe.anchors.reference_support import ReferenceSupport
from models.adaptation import Full, LoRA
from models.pair import PolicyReference
from models.sources import TinyLlama
from tests.lit_safe.pair_world import aligned, pairs, trainer


@pytest.mark.parametrize("case", ["scored ahead", "in every step", "with an anchor", "lora"])
def test_no_weight_outlives_its_fit(case: str, tmp_path: Path) -> None:
    def weights() -> list[weakref.ref[torch.Tensor]]:
        pair = PolicyReference(TinyLlama(), LoRA(r=2) if case == "lora" else Full())
        anchor = ReferenceSupport() if case == "with an anchor" else Anchor()
        module = aligned(pair=pair, anchor=anchor, precompute_reference=case == "scored ahead")
        trainer(tmp_path, max_steps=2, limit_val_batches=1.0).fit(module, pairs(micro_batch_pairs=None))
        return [weakref.ref(p) for p in module.parameters()]

    held = weights()
    gc.collect()
    assert not any(weight() is not None for weight in held)
