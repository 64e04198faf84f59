"""Reference log-probs scored before training are those that training would have scored."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_safe.training.reference_cache import ReferenceCache
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
    assert len(list((tmp_path / "kept").glob("*.npz"))) == 2, "a file a reference, and nothing unfinished"


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


def test_of_two_runs_that_scored_at_once_both_go_on_with_what_the_first_stored(tmp_path: Path) -> None:
    (batch,) = next(iter(set_up(pairs(pairs_per_step=4)).train_dataloader()))
    found = []
    for seed in (0, 1):  # far more apart than two roundings; neither has seen the other's file
        module, cache = aligned(pair=PolicyReference(TinyLlama(seed=seed))), ReferenceCache()
        module.configure_model()
        cache.fill(module, [batch])
        before = cache.attach(batch).reference_logp
        cache.save(tmp_path / "kept.npz")
        found.append((before, cache.attach(batch).reference_logp))
    assert not torch.equal(found[1][0].chosen, found[0][0].chosen)
    later = ReferenceCache()
    later.load(tmp_path / "kept.npz")
    for known in (found[0][1], found[1][1], later.attach(batch).reference_logp):
        assert torch.equal(torch.stack(known), torch.stack(found[0][0]))


def test_runs_that_store_at_the_same_moment_lose_nothing(tmp_path: Path) -> None:
    caches, path = [ReferenceCache() for _ in range(8)], tmp_path / "new" / "kept.npz"
    for number, cache in enumerate(caches):
        cache._known = {key: float(number) for key in (-1, *range(1000 * number, 1000 * (number + 1)))}
    with ThreadPoolExecutor(len(caches)) as threads:
        list(threads.map(lambda cache: cache.save(path), caches))
    everything = ReferenceCache()
    everything.load(path)
    assert len(everything) == 8001
    assert {cache._known[-1] for cache in caches} == {everything._known[-1]}
    assert all(cache._known[1000 * n] == n for n, cache in enumerate(caches))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def change_a_number(path: Path) -> None:
    """As a program would: the archive's own checksums are right."""
    with np.load(path) as stored:
        arrays = {name: stored[name].copy() for name in stored.files}
    arrays["logp"][3] += 1
    np.savez(path, **arrays)


def forget_the_checksum(path: Path) -> None:
    with np.load(path) as stored:
        np.savez(path, key=stored["key"], logp=stored["logp"])


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        change_a_number,
        forget_the_checksum,
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"words"),
    ],
    ids=["byte", "number", "no checksum", "short", "empty", "foreign"],
)
def test_a_damaged_file_is_one_line_with_its_name(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    cache, path = ReferenceCache(), tmp_path / "kept.npz"
    cache._known = {key: float(key) for key in range(50)}
    cache.save(path)
    ReferenceCache().load(path)
    damage(path)
    with pytest.raises(
        ValueError, match=r"kept\.npz: this file of reference log-probs is damaged.*Delete it"
    ) as caught:
        ReferenceCache().load(path)
    assert "\n" not in str(caught.value)


def test_a_log_prob_that_is_not_finite_is_never_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    module = aligned()
    module.configure_model()
    (batch,) = next(iter(set_up(pairs(pairs_per_step=1)).train_dataloader()))
    monkeypatch.setattr(module.pair, "reference_logp", lambda s: torch.full((len(s.cu_seqlens) - 1,), torch.nan))
    with pytest.raises(FloatingPointError, match=f"of a response of pair {int(batch.pair_id[0])} is not finite"):
        ReferenceCache().fill(module, [batch])


def test_a_training_pair_that_was_not_scored_before_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pairs(Fruit(), pairs_per_step=5, micro_batch_pairs=2, eval_batch_pairs=3, duplicates="keep")
    plain = data.batches_of
    monkeypatch.setattr(data, "batches_of_steps", lambda steps, each: (list(plain("train"))[:-1], 1))
    with pytest.raises(ValueError, match=r"not all of the micro-batch with pair .*batches_of\('train'\) .* must yield"):
        trainer(tmp_path, max_epochs=1).fit(aligned(precompute_reference=True), data)


def test_a_folder_without_anything_to_keep_is_refused() -> None:
    with pytest.raises(ValueError, match="set precompute_reference to true"):
        aligned(reference_cache_dir="somewhere", precompute_reference=False)


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


def test_a_filler_pair_needs_no_score() -> None:
    """On two ranks the last step may leave one of them with a pair of weight 0 alone."""
    batch, *_ = next(iter(set_up(pairs(pairs_per_step=4)).train_dataloader()))
    assert ReferenceCache().attach(batch).reference_logp is None
    filler = ReferenceCache().attach(batch._replace(present=torch.zeros_like(batch.present)))
    assert filler.reference_logp is not None
    assert all(bool((side == 0).all()) for side in filler.reference_logp)


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
