"""Stored states of frozen layers: training ends where it would without them, and no state is computed twice."""

from functools import partial
from pathlib import Path

import pytest
import torch

from lit_safe.sequences import select_sequences
from lit_safe.training.sft import SupervisedFineTuning
from lit_safe.training.trunk_cache import TrunkCache, _pieces
from lit_safe.training.trunk_file import TrunkWriter
from lit_safe.types import PackedSequences, TrunkStorage
from models.adaptation import LastLayers
from models.pair import PolicyReference
from models.sources import TinyLlama
from tests.lit_safe.pair_world import Fruit, adamw, aligned, pairs, talk, trainer, weights
from tests.ranks import run_on_two_ranks


class Counting(PolicyReference):
    """Knows how many tokens its frozen layers computed for storage, and how many training passes ran on stored ones."""

    computed = known = 0

    def trunk_states(self, sequences: PackedSequences) -> torch.Tensor:
        self.computed += len(sequences.input_ids)
        return super().trunk_states(sequences)

    def policy_logp(self, sequences: PackedSequences) -> torch.Tensor:
        self.known += sequences.trunk is not None
        return super().policy_logp(sequences)


def fitted(
    folder: Path, kept: Path | None = None, *, seed: int = 0, epochs: int = 2, **options
) -> tuple[Counting, torch.Tensor]:
    """A run with frozen layers, whose states are stored in ``kept`` if it is given."""
    stored = {} if kept is None else {"cache_trunk": True, "trunk_dir": str(kept), **options}
    pair = Counting(TinyLlama(seed=seed), LastLayers(1, **stored))
    module = aligned(pair=pair, precompute_reference=True)
    data = pairs(Fruit(), pairs_per_step=5, micro_batch_pairs=2, eval_batch_pairs=3)
    trainer(folder, max_epochs=epochs).fit(module, data)
    return pair, weights(module)


def stored(folder: Path) -> list[Path]:
    return sorted(folder.glob("trunk-*/[!.]*"))


def test_training_ends_where_it_would_without_and_a_later_run_computes_no_state(tmp_path: Path) -> None:
    plain, there = fitted(tmp_path / "plain")
    first, ended = fitted(tmp_path / "a", tmp_path / "kept")
    torch.testing.assert_close(ended, there, rtol=0, atol=1e-5)
    assert (plain.known, first.known) == (0, 2 * 16)  # micro-batches of two epochs
    again, repeated = fitted(tmp_path / "b", tmp_path / "kept")
    assert again.computed == 0 < first.computed
    assert torch.equal(repeated, ended)
    assert len(stored(tmp_path / "kept")) == 2


@pytest.mark.parametrize("bound", [{"limit_train_batches": 2}, {"limit_train_batches": 0.4}, {"max_steps": 2}])
def test_a_run_that_ends_early_stores_and_scores_only_the_pairs_of_its_steps(tmp_path: Path, bound: dict) -> None:
    pair = Counting(TinyLlama(), LastLayers(1, cache_trunk=True, trunk_dir=str(tmp_path / "kept")))
    module = aligned(pair=pair, precompute_reference=True)
    trainer(tmp_path, **{"max_epochs": 1, **bound}).fit(module, pairs(pairs_per_step=5, micro_batch_pairs=2))
    assert module.trunk_cache is not None
    assert module.reference_cache is not None
    assert len(module.reference_cache) == 2 * 2 * 5
    assert len(module.trunk_cache) == 2 * 5 * 3, "a prompt and two responses for each pair"
    assert pair.known > 0


def test_other_weights_and_other_depths_find_nothing(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    for number, options in enumerate(({}, {"seed": 1}, {"trunk_dtype": "bfloat16"})):
        assert fitted(tmp_path / str(number), kept, epochs=1, **options)[0].computed > 0
    assert len(list(kept.glob("trunk-*"))) == 3


def test_states_in_bf16_take_half_the_disk_and_end_nearby(tmp_path: Path) -> None:
    sizes, ends = [], []
    for dtype in ("computed", "bfloat16"):
        ends.append(fitted(tmp_path / dtype, tmp_path / f"kept {dtype}", trunk_dtype=dtype)[1])
        sizes.append(sum(path.stat().st_size for path in stored(tmp_path / f"kept {dtype}") if path.suffix == ".bin"))
    assert sizes[0] == 2 * sizes[1]
    assert 0 < (ends[0] - ends[1]).abs().mean() < 1e-4


@pytest.mark.parametrize(
    ("options", "said"),
    [({"trunk_max_gib": 1e-6}, r"MiB in .*trunk_max_gib allows 1e-06 GiB: raise it"), ({}, r"disk has 0.0 MiB left")],
    ids=["bound", "disk"],
)
def test_states_that_need_too_much_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict, said: str
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
    with pytest.raises(ValueError, match=said):
        fitted(tmp_path, tmp_path / "kept", epochs=1, **options)
    assert not (tmp_path / "kept").exists()


def filled(folder: Path, count: int = 8) -> tuple[Counting, TrunkCache, PackedSequences]:
    """A cache of the first training pairs."""
    pair = Counting(TinyLlama(), LastLayers(1))
    module = aligned(pair=pair)
    module.configure_model()
    data = pairs(Fruit(count))
    data.setup("fit")
    batches = list(data.batches_of("train"))
    cache = TrunkCache(TrunkStorage(str(folder), False, 1.0))
    cache.fill(module, lambda: batches)
    return pair, cache, batches[0].sequences


def test_a_prompt_is_stored_once_and_attached_states_are_those_of_its_sequence(tmp_path: Path) -> None:
    pair, cache, sequences = filled(tmp_path)
    known = cache.attach(sequences)
    assert known.trunk is not None
    torch.testing.assert_close(known.trunk, pair.trunk_states(sequences), rtol=1e-5, atol=1e-6)
    of_a_pair = _pieces(select_sequences(sequences, torch.tensor([2, 3])))
    assert [piece.key == of_a_pair[0].key for piece in of_a_pair] == [True, False, True, False]
    (file,) = tmp_path.glob("trunk-*/*.bin")
    prompts = sum(piece.end - piece.start for piece in _pieces(sequences)[::4])
    assert file.stat().st_size == (len(sequences.input_ids) - prompts) * known.trunk.shape[1] * 4


def stored_by_halves(folder: Path, rank: int) -> None:
    """Each rank stores its half of the pairs, and then knows all of them."""
    pair = Counting(TinyLlama(), LastLayers(1))
    module = aligned(pair=pair)
    module.configure_model()
    data = pairs(Fruit(), eval_batch_pairs=4)
    data.setup("fit")
    batches = list(data.batches_of("train"))
    cache = TrunkCache(TrunkStorage(str(folder / "kept"), False, 1.0))
    cache.fill(module, lambda: batches[rank::2])
    assert all(cache.attach(batch.sequences).trunk is not None for batch in batches)
    need = [path.stat().st_size for path in folder.glob("kept/trunk-*/*.bin")]
    small = TrunkCache(TrunkStorage(str(folder / "small"), False, 0.9 * sum(need) / 2**30))  # enough for either half
    assert len(need) == 2
    assert max(need) < 0.9 * sum(need)
    with pytest.raises(ValueError, match="trunk_max_gib allows"):
        small.fill(module, lambda: batches[rank::2])
    assert not (folder / "small").exists()


@pytest.mark.slow
def test_each_of_two_ranks_stores_its_part_and_reads_both(tmp_path: Path) -> None:
    run_on_two_ranks(partial(stored_by_halves, tmp_path), tmp_path)
    assert len(list(tmp_path.glob("kept/trunk-*/*.npz"))) == 2


def test_a_sequence_that_was_not_stored_leaves_the_batch_to_the_whole_model(tmp_path: Path) -> None:
    _, cache, sequences = filled(tmp_path)
    other = sequences._replace(input_ids=sequences.input_ids.flip(0))
    assert cache.attach(other).trunk is None


@pytest.mark.parametrize("name", ["*.bin", "*.npz"])
def test_a_damaged_file_is_an_error_with_its_name(tmp_path: Path, name: str) -> None:
    _, _, sequences = filled(tmp_path)
    (file,) = tmp_path.glob(f"trunk-*/{name}")
    content = bytearray(file.read_bytes())
    for at in range(0, len(content), 64):
        content[at] ^= 16
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file.name}: this file of trunk states is damaged"):
        filled(tmp_path)[1].attach(sequences)


def test_a_killed_run_leaves_no_readable_file_and_the_next_one_computes_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = TrunkWriter.write, []

    def killed(self: TrunkWriter, key: int, state: torch.Tensor) -> None:
        calls.append(len(state))
        if len(calls) > 5:
            raise KeyboardInterrupt
        write(self, key, state)

    monkeypatch.setattr(TrunkWriter, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path)
    assert not stored(tmp_path)
    monkeypatch.setattr(TrunkWriter, "write", lambda self, key, state: calls.append(key) or write(self, key, state))
    calls.clear()
    _, cache, sequences = filled(tmp_path)
    assert len(calls) == len(cache) - 5
    assert cache.attach(sequences).trunk is not None


def test_a_file_with_a_piece_that_was_never_written_is_not_finished(tmp_path: Path) -> None:
    writer = TrunkWriter(tmp_path / "some.npz", {1: 2, 2: 3}, 4, torch.bfloat16)
    writer.write(1, torch.zeros(2, 4))
    assert writer.missing() == {1, 2}, "a new file lacks everything"
    with pytest.raises(RuntimeError, match="1 of 2 pieces"):
        writer.finish()
    assert not stored(tmp_path)
    again = TrunkWriter(tmp_path / "some.npz", {1: 2, 2: 3}, 4, torch.bfloat16)
    assert again.missing() == {2}
    again.close()


def test_a_state_that_is_not_finite_names_its_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counting, "trunk_states", lambda self, s: torch.full((len(s.input_ids), 4), torch.nan))
    with pytest.raises(FloatingPointError, match=r"a response of pair -?\d+ are not finite"):
        filled(tmp_path)


def test_fine_tuning_and_its_validations_run_on_stored_states(tmp_path: Path) -> None:
    ended, losses, computed = [], [], []
    for options in ({}, *({"cache_trunk": True, "trunk_dir": str(tmp_path / "kept")} for _ in range(2))):
        pair = Counting(TinyLlama(), LastLayers(1, **options))
        run = trainer(tmp_path, max_epochs=2, limit_val_batches=1.0)
        run.fit(module := SupervisedFineTuning(pair, adamw(0.01)), talk(rows_per_step=5))
        ended.append(weights(module))
        losses.append(float(run.callback_metrics["eval/loss"]))
        computed.append(pair.computed)
        assert pair.known == (2 * (11 + 1) if options else 0), "26 rows in passes of 4 and 1, and a held-out batch"
    assert computed[0] == computed[2] == 0 < computed[1], "a later run computes no state"
    torch.testing.assert_close(ended[1], ended[0], rtol=0, atol=1e-5)
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert torch.equal(ended[1], ended[2])
