"""Reference log-probs scored before training are those that training would have scored."""

from pathlib import Path

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


def fitted(folder: Path, precompute: bool, source: Fruit | None = None) -> tuple[Counting, torch.Tensor]:
    pair = Counting(TinyLlama())
    module = aligned(pair=pair, precompute_reference=precompute)
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
