"""A training step reads no value back from its device, but for the gradient norm and the log."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_safe.anchors import Anchor
from lit_safe.anchors.preferred_nll import PreferredNLL
from lit_safe.anchors.reference_support import ReferenceSupport
from lit_safe.objectives import ConstrainedDPO
from lit_safe.token_objectives.clipped_ascent import ClippedAscent
from lit_safe.token_objectives.star_dss import StarDss
from lit_safe.training.chunk_scores import ChunkScores
from lit_safe.training.finite import FiniteNorms
from lit_safe.training.label_draws import LabelDraws
from lit_safe.training.sft import SupervisedFineTuning
from lit_safe.types import TokenObjective
from models.adaptation import Adaptation, Full, LastLayers, LoRA
from models.pair import PolicyReference
from models.sources import TinyLlama
from tests.lit_safe.meta_device import on_meta
from tests.lit_safe.pair_world import adamw, aligned, pairs, talk
from tests.lit_safe.token_world import LongIsUnsafe

LAYOUTS = ("padded", "packed", "shared")
A_RUN = ["norm", "norm", "log"] * 2  # of four steps, with a log every two


class Fit:
    """Fits of four steps on the meta device. ``read`` lists what was read at the two places that may read."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch, self.read = folder, patch, list[str]()
        # weights that policy and reference share are still one tensor then
        patch.setattr(torch.__future__, "get_swap_module_params_on_conversion", lambda: True)
        patch.setattr(LabelDraws, "see", lambda self, multiplier: setattr(self, "number", 1))  # once an epoch
        patch.setattr(FiniteNorms, "take", lambda *_: self.read.append("norm"))
        patch.setattr("lit_safe.training.stepping.together", self._log)

    def __call__(self, module: Any, data: Any) -> None:
        module.pair.load()
        with module.pair._open_reference() as reference:  # the reference of an adapter is the policy
            module.pair.to("meta")
            reference.to("meta")
        on_meta(self.folder, self.patch, max_steps=4, log_every_n_steps=2).fit(module, data)
        assert {p.device.type for p in module.parameters()} == {"meta"}

    def _log(self, *parts: Any) -> list[dict[str, float]]:
        self.read.append("log")
        return [part.named([0.0] * len(part.numbers())) for part in parts]


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    return Fit(tmp_path, monkeypatch)


@pytest.mark.parametrize("adaptation", [Full(), LastLayers(1), LoRA(r=2)], ids=["full", "last layers", "lora"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_of_pairs_reads_a_norm_and_a_window_its_log(fit: Fit, layout: Any, adaptation: Adaptation) -> None:
    pair = PolicyReference(TinyLlama(), adaptation, layout=layout)
    module = aligned(ConstrainedDPO(labels="sampled"), pair=pair, precompute_reference=False)
    fit(module, pairs(micro_batch_pairs=3))
    assert fit.read == A_RUN


@pytest.mark.parametrize(
    "anchor", [PreferredNLL(0.5), ReferenceSupport(), ReferenceSupport(share=0.5)], ids=["nll", "support", "a share"]
)
def test_so_does_a_step_with_an_anchor_on_its_pairs(fit: Fit, anchor: Anchor) -> None:
    fit(aligned(anchor=anchor, precompute_reference=False), pairs(micro_batch_pairs=3))
    assert fit.read == A_RUN


@pytest.mark.parametrize("layout", LAYOUTS)
def test_so_does_a_step_of_fine_tuning(fit: Fit, layout: Any) -> None:
    fit(SupervisedFineTuning(PolicyReference(TinyLlama(), layout=layout), adamw(0.01)), talk(micro_batch_rows=3))
    assert fit.read == A_RUN


@pytest.mark.parametrize("objective", [StarDss(), ClippedAscent(4.0)], ids=["with KL", "without"])
def test_so_does_a_step_of_a_token_objective(fit: Fit, objective: TokenObjective) -> None:
    weights = ChunkScores(LongIsUnsafe()) if isinstance(objective, StarDss) else None
    module = SupervisedFineTuning(
        PolicyReference(TinyLlama()), adamw(0.01), token_objective=objective, token_weights=weights
    )
    fit(module, talk(micro_batch_rows=3))
    assert fit.read == A_RUN


@pytest.mark.parametrize("place", ["a loss", "a library"])
def test_a_value_that_is_read_in_a_step_is_found(fit: Fit, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = aligned(precompute_reference=False)
    if place == "a loss":
        share = module.loss_share
        monkeypatch.setattr(module, "loss_share", lambda batch: share(batch) * float(batch.present.sum() > 0))
    else:  # transformers reads positions to see whether rows are packed, unless it is told
        monkeypatch.setattr("models.library_masks.READER", "no such function")
    with pytest.raises((RuntimeError, NotImplementedError), match=r"meta|no data"):
        fit(module, pairs())
