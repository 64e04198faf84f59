"""Token weights from a guardrail: which texts it reads, once each, and which tokens get which score."""

import itertools
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning import Trainer

from lit_safe.token_objectives.star_dss import StarDss
from lit_safe.training.chunk_scores import ChunkScores
from lit_safe.training.sft import SupervisedFineTuning
from lit_safe.types import IGNORE, ResponseIds
from models.pair import PolicyReference
from models.sources import TinyLlama
from tests.lit_safe.pair_world import FruitTalk, talk, trainer
from tests.lit_safe.token_world import LongIsUnsafe, fruit_batch
from tests.ranks import run_on_two_ranks

EURO = "ab€d€".encode()  # 3 bytes each: tokens of a byte tokenizer


def decode(ids) -> str:
    return bytes(ids).decode(errors="replace")


def rows(*texts: bytes) -> list[ResponseIds]:
    return [ResponseIds(n, f"row {n}", "p", tuple(text)) for n, text in enumerate(texts, 1)]


def v(score: float) -> float:
    return torch.sigmoid(torch.tensor(-score, dtype=torch.float64)).item()


def test_prefixes_end_with_each_chunk_and_within_no_character():
    found = ChunkScores(LongIsUnsafe(), chunk=3).prefixes(rows(EURO)[0], decode)
    assert found.texts == ("ab", "ab€d", "ab€d€")  # 3, 6 and all 9 bytes; the third is the first byte of the sign
    whole = ChunkScores(LongIsUnsafe(), chunk=None).prefixes(rows(EURO)[0], decode)
    assert whole.texts == ("ab€d€",)


@pytest.mark.parametrize("size", [1, 2, 64])
def test_scores_do_not_depend_on_how_texts_are_batched(size):
    scores = ChunkScores(LongIsUnsafe(), chunk=4, batch_texts=size)
    scores.fill(rows(b"abcdefghi", b"xy", b"abcdefghijkl"), decode, None)
    assert scores._known[1].tolist() == pytest.approx([v(-2), v(2), v(3)], rel=1e-6)
    assert scores._known[2].tolist() == pytest.approx([v(-4)], rel=1e-6)
    assert scores._known[3].tolist() == pytest.approx([v(-2), v(2), v(6)], rel=1e-6)


def test_each_response_token_gets_the_score_of_its_chunk_and_nothing_else_does():
    batch = fruit_batch()
    data = talk(rows_per_step=4, micro_batch_rows=4)
    data.setup()
    scores = ChunkScores(LongIsUnsafe(), chunk=5)
    scores.fill(list(data.responses("train")), data.decode, None)
    attached = scores.attach(batch)
    target, bounds = batch.sequences.target, batch.sequences.cu_seqlens.tolist()
    assert (attached.token_weight[target == IGNORE] == 1).all()
    for row_id, (start, end) in zip(batch.row_id.tolist(), itertools.pairwise(bounds), strict=True):
        scored = target[start:end] != IGNORE
        text = data.decode(target[start:end][scored].tolist())
        found = attached.token_weight[start:end][scored].tolist()
        ends = [
            min(len(text), 5 * (t // 5 + 1)) for t in range(len(found))
        ]  # a byte is a token; the stop token is none
        assert found == pytest.approx([v(end - 6.0) for end in ends], rel=1e-6), row_id


def test_static_shaping_gives_a_whole_response_one_weight():
    batch = fruit_batch()
    data = talk(rows_per_step=4, micro_batch_rows=4)
    data.setup()
    guardrail = LongIsUnsafe()
    scores = ChunkScores(guardrail, chunk=None)
    scores.fill(list(data.responses("train")), data.decode, None)
    weight_T = scores.attach(batch).token_weight
    for start, end in itertools.pairwise(batch.sequences.cu_seqlens.tolist()):
        scored = batch.sequences.target[start:end] != IGNORE
        text = data.decode(batch.sequences.target[start:end][scored].tolist())
        assert weight_T[start:end][scored].tolist() == pytest.approx([v(len(text) - 6.0)] * int(scored.sum()), rel=1e-6)
    assert len(guardrail.read) == 26  # one text a response


def test_a_filler_row_needs_no_score_and_an_unknown_row_is_named():
    batch, scores = fruit_batch(), ChunkScores(LongIsUnsafe())
    absent = batch._replace(present=torch.zeros(4, dtype=torch.bool))
    assert (scores.attach(absent).token_weight == 1).all()
    with pytest.raises(ValueError, match=f"not row {int(batch.row_id[0])}"):
        scores.attach(batch)


def test_a_second_run_reads_the_scores_of_the_first(tmp_path):
    first, second = LongIsUnsafe(), LongIsUnsafe()
    for guardrail in (first, second):
        scores = ChunkScores(guardrail, chunk=2)
        scores.fill(rows(b"abcdef", b"abc", b"xyz"), decode, tmp_path)
        assert scores._known[1].tolist() == pytest.approx([v(-4), v(-2), v(0)], rel=1e-6)
        assert scores._known[3].tolist() == pytest.approx([v(-4), v(-3)], rel=1e-6)
    assert len(first.read) == 7
    assert second.read == []
    third = LongIsUnsafe()
    ChunkScores(third, chunk=3).fill(rows(b"abcdef"), decode, tmp_path)
    assert len(third.read) == 2  # other chunks are other texts


def test_a_run_that_is_killed_keeps_the_pieces_that_it_wrote(tmp_path, monkeypatch):
    monkeypatch.setattr("lit_safe.training.chunk_scores.FLUSH", 1)
    guardrail = LongIsUnsafe()
    some = rows(*(bytes([65 + n]) * 4 for n in range(6)))

    def dying(prompts, responses, honest=LongIsUnsafe.__call__):
        if len(guardrail.read) >= 6:
            raise KeyboardInterrupt
        return honest(guardrail, prompts, responses)

    monkeypatch.setattr(LongIsUnsafe, "__call__", lambda self, prompts, responses: dying(prompts, responses))
    with pytest.raises(KeyboardInterrupt):
        ChunkScores(guardrail, chunk=2, batch_texts=2).fill(some, decode, tmp_path)
    monkeypatch.undo()
    again = LongIsUnsafe()
    ChunkScores(again, chunk=2, batch_texts=2).fill(some, decode, tmp_path)
    assert len(again.read) == 12 - 6


@pytest.mark.parametrize(
    ("probability", "score", "weight"), [("flag", 0.0, 1.0), ("flag", 0.1, 0.0), ("unsafe_probability", 0.25, 0.75)]
)
def test_probabilities_of_being_safe(probability, score, weight):
    def guardrail(prompts, responses):
        return torch.tensor([[score, score - 1]] * len(responses))  # of two costs the largest counts

    scores = ChunkScores(guardrail, probability=probability)
    if probability == "unsafe_probability":
        scores.guardrail = lambda prompts, responses: torch.tensor([score] * len(responses))
    scores.fill(rows(b"abc"), decode, None)
    assert scores._known[1].tolist() == [weight]


def test_what_is_no_score_names_its_row():
    def broken(prompts, responses):
        return torch.tensor([float("nan") if text == "xyz" else 0.0 for text in responses])

    with pytest.raises(ValueError, match="nan for row row 2, beginning of 3 characters"):
        ChunkScores(broken).fill(rows(b"abc", b"xyz"), decode, None)
    with pytest.raises(ValueError, match="row row 1, which is no probability: set probability to sigmoid or flag"):
        ChunkScores(LongIsUnsafe(), probability="unsafe_probability").fill(rows(b"abc"), decode, None)


@pytest.mark.parametrize("wrong", [{"chunk": 0}, {"batch_texts": 0}, {"probability": "logit"}])
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ChunkScores(LongIsUnsafe(), **wrong)


class Bad(LongIsUnsafe):
    def check_usable(self, *, reads=None):
        raise ValueError("no AUC on its card")


def fit(folder, guardrail, **options) -> Trainer:
    module = SupervisedFineTuning(
        PolicyReference(TinyLlama()), token_objective=StarDss(), token_weights=ChunkScores(guardrail)
    )
    run = trainer(folder, **options)
    run.fit(module, talk(rows_per_step=4, micro_batch_rows=4))
    return run


def test_a_run_scores_the_rows_that_it_uses_and_a_longer_one_the_others(tmp_path):
    whole = {FruitTalk().texts(i)[0] for i in range(32)}
    guardrail = LongIsUnsafe()
    run = fit(tmp_path, guardrail, max_steps=2, max_epochs=-1, limit_val_batches=1.0, val_check_interval=2)
    assert len(whole & set(guardrail.read)) == 2 * 4 + 4  # two steps, and the held-out rows
    assert 0 < run.callback_metrics["eval/weights/token"] < 1
    assert list((tmp_path / "chunk_scores").glob("chunks-*/rows-*.npz"))
    longer = LongIsUnsafe()
    fit(tmp_path, longer, max_epochs=1)
    assert len(whole & set(longer.read)) == 26 - 2 * 4


def test_a_guardrail_without_a_measured_quality_stops_the_run_before_its_first_step(tmp_path):
    with pytest.raises(ValueError, match="no AUC on its card"):
        fit(tmp_path, Bad(), max_epochs=1)


def scored_on_a_rank(folder: Path, rank: int) -> None:
    guardrail = LongIsUnsafe()
    scores = ChunkScores(guardrail, chunk=2)
    scores.fill(rows(*(bytes([65 + n]) * (n + 1) for n in range(5))), decode, folder / "kept")
    assert {n: len(v_K) for n, v_K in scores._known.items()} == {1: 1, 2: 1, 3: 2, 4: 2, 5: 3}
    assert scores._known[5].tolist() == pytest.approx([v(-4), v(-2), v(-1)], rel=1e-6)
    (folder / f"{rank}").write_text(" ".join(guardrail.read), encoding="utf-8")


@pytest.mark.slow
def test_two_ranks_share_the_responses_and_both_know_all_scores(tmp_path):
    run_on_two_ranks(partial(scored_on_a_rank, tmp_path), tmp_path)
    read = [(tmp_path / name).read_text(encoding="utf-8").split() for name in ("0", "1")]
    assert all(read)
    assert len(read[0]) + len(read[1]) == 9  # each text once
    assert not {*read[0]} & {*read[1]}
