"""Reference log-probs scored before training are those that training would have scored."""

from pathlib import Path

import pytest
import torch

from lit_safe.reference_cache import ReferenceCache
from lit_safe.types import PackedSequences
from models.pair import PolicyReference
from models.sources import TinyLlama
from tests.lit_safe.pair_world import Fruit, aligned, pairs, trainer, weights


class Counting(PolicyReference):
    """Knows how many sequences its reference scored."""

    scored = 0

    def reference_logp(self, sequences: PackedSequences) -> torch.Tensor:
        self.scored += len(sequences.cu_seqlens) - 1
        return super().reference_logp(sequences)


class Repeated(Fruit):
    """Every fifth pair's responses stand in the four after it too."""

    def texts(self, i: int) -> tuple[str, str]:
        return super().texts(i - i % 5)

    def prompt(self, i: int):
        return super().prompt(i - i % 5)


def fitted(
    folder: Path, precompute: bool, source: Fruit | None = None, kept: Path | None = None, model_seed: int = 0
) -> tuple[Counting, torch.Tensor]:
    pair = Counting(TinyLlama(seed=model_seed))
    module = aligned(
        pair=pair, precompute_reference=precompute, reference_cache_dir=None if kept is None else str(kept)
    )
    data = pairs(source or Fruit(), pairs_per_step=5, micro_batch_pairs=2, eval_batch_pairs=3, duplicates="keep")
    trainer(folder, max_epochs=3).fit(module, data)
    return pair, weights(module)


def test_training_ends_where_it_would_without_and_scores_each_response_once(tmp_path: Path) -> None:
    (at_steps, plain), (before, cached) = (fitted(tmp_path, precompute) for precompute in (False, True))
    torch.testing.assert_close(cached, plain, rtol=0, atol=2e-5)  # other rows, other padding, other rounding
    assert at_steps.scored == 3 * 2 * 26
    assert before.scored == 2 * 26


def test_a_response_of_several_pairs_is_scored_once(tmp_path: Path) -> None:
    before, _ = fitted(tmp_path, True, Repeated())
    assert before.scored < 26  # of 52 sequences


def test_a_later_run_with_the_same_reference_scores_nothing_and_ends_on_the_same_bits(tmp_path: Path) -> None:
    (first, trained), (again, repeated) = (fitted(tmp_path / run, True, kept=tmp_path / "kept") for run in "ab")
    assert (first.scored, again.scored) == (2 * 26, 0)
    assert torch.equal(repeated, trained)
    other, _ = fitted(tmp_path / "c", True, kept=tmp_path / "kept", model_seed=1)
    assert other.scored == 2 * 26
    assert len(list((tmp_path / "kept").iterdir())) == 2, "a file a reference, and nothing unfinished"


def test_what_a_file_holds_is_joined_not_replaced(tmp_path: Path) -> None:
    module, path = aligned(), tmp_path / "kept.npz"
    module.configure_model()
    first, second = list(set_up(pairs(pairs_per_step=4)).train_dataloader())[:2]
    for (batch,) in (first, second):
        cache = ReferenceCache()
        cache.fill(module, [batch])
        cache.save(path)
    joined = ReferenceCache()
    joined.load(path)
    assert len(joined) == 16
    assert joined.attach(first[0]).reference_logp is not None


def test_a_folder_without_anything_to_keep_is_refused() -> None:
    with pytest.raises(ValueError, match="set that to true"):
        aligned(reference_cache_dir="somewhere")


def test_a_batch_with_an_unknown_response_is_left_to_the_reference() -> None:
    module, data = aligned(), pairs(pairs_per_step=4)
    module.configure_model()
    data.setup()
    first, second = list(data.train_dataloader())[:2]
    cache = ReferenceCache()
    cache.fill(module, first)
    assert len(cache) == 8
    assert cache.attach(second[0]).reference_logp is None
    known = cache.attach(first[0]).reference_logp
    assert known is not None
    expected_N = module.pair.reference_logp(first[0].sequences)
    assert torch.equal(torch.stack(known, dim=1).flatten(), expected_N)


def test_the_same_tokens_scored_from_another_place_are_another_response() -> None:
    module = aligned()
    module.configure_model()
    (batch,) = next(iter(set_up(pairs(pairs_per_step=1)).train_dataloader()))
    cache = ReferenceCache()
    cache.fill(module, [batch])
    sequences = batch.sequences
    later = sequences.target.clone()
    later[(later != -100).nonzero()[0]] = -100  # the first response token belongs to the prompt now
    assert cache.attach(batch._replace(sequences=sequences._replace(target=later))).reference_logp is None


def set_up(data):
    data.setup()
    return data
