"""DeRTa's rows: which tokens they read, which they predict, and what decides the random part."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from lightning.pytorch.trainer.states import TrainerFn

from data.derta import DertaData
from data.schema import HarmfulRow, Message, SftRow
from data.tokens import PLAIN, PREFIX, TRANSITION
from lit_safe.training.sft import SupervisedFineTuning
from lit_safe.types import IGNORE
from models.pair import PolicyReference
from models.sources import TinyLlama
from tests.lit_safe.pair_world import FruitTalk, trainer, weights

SAFE, HARMFUL = "Sorry, no.", "Take {} picks and a wrench."


class Locks:
    """Questions with a refusal and a harmful answer."""

    licence = "CC0-1.0"

    def __init__(self, count=6):
        self.count = count

    def describe(self):
        return {"name": "locks", "count": str(self.count)}

    def __iter__(self):
        for i in range(self.count):
            yield HarmfulRow(f"lock:{i}", (Message("user", f"Lock {i}?"),), SAFE, harmful=HARMFUL.format(i))


def derta(*sources, **options) -> DertaData:
    merged = {"rows_per_step": 4, "micro_batch_rows": 4, "max_length": 128, "held_out": False, **options}
    data = DertaData([*sources] or [Locks()], **merged)
    data.connect(TinyLlama())
    data.setup()
    return data


def rows_of(data, epoch=0):
    """(row id, ids, [(what was read, target)] of scored positions) of each row of an epoch."""
    loader = data.train_dataloader()
    loader.start = lambda steps: (epoch, 0)
    found = []
    for step in loader:
        for batch in step:
            bounds = batch.sequences.cu_seqlens.tolist()
            for row_id, (a, b) in zip(batch.row_id.tolist(), itertools.pairwise(bounds), strict=True):
                ids, target = batch.sequences.input_ids[a:b].tolist(), batch.sequences.target[a:b].tolist()
                found.append((row_id, ids, [(ids[: t + 1], y) for t, y in enumerate(target) if y != IGNORE]))
    return sorted(found)


def part_of(data):
    return dict(zip(data.tokenised.row_id.tolist(), data.tokenised.part.tolist(), strict=True))


def test_a_pair_becomes_one_row_of_each_kind_and_other_rows_stay():
    data = derta(Locks(6), FruitTalk(8))
    assert sorted(data.tokenised.part.tolist()) == [PLAIN] * 8 + [PREFIX] * 6 + [TRANSITION] * 6
    assert len(set(data.tokenised.row_id.tolist())) == 20
    assert any("6 prefix, 6 transition; refusal token 'S'" in line for line in data.report_lines)
    assert set(derta(parts=["prefix"]).tokenised.part.tolist()) == {PREFIX}
    assert set(derta(parts=["transition"]).tokenised.part.tolist()) == {TRANSITION}


def test_a_prefix_row_reads_the_beginning_of_the_harmful_answer_and_predicts_the_safe_one():
    data = derta(parts=["prefix"])
    opened = len(data.tokenised.prompt.at(0))  # of every question: they differ in one digit
    seen = set()
    for epoch in range(20):
        for _, ids, scored in rows_of(data, epoch):
            first, targets = scored[0][0], [y for _, y in scored]
            number = data.decode(first).partition("?")[0][-1]
            assert HARMFUL.format(number).startswith(data.decode(first[opened:]))
            assert not set(first[opened:]) & data.stop_ids
            assert data.decode(targets) == SAFE
            assert targets[-1] in data.stop_ids
            seen.add(len(ids))
    assert len(seen) > 10  # prefixes of many lengths


def test_a_transition_row_reads_the_harmful_answer_and_predicts_the_refusal_token_everywhere():
    data = derta(parts=["transition"], keep=1.0)
    for _, ids, scored in rows_of(data):
        assert {y for _, y in scored} == {data.refusal_id}
        assert data.decode([data.refusal_id]) == "S"  # a byte tokenizer: a refusal begins with this token
        harmful = data.decode(ids).partition("?")[2]
        assert len(scored) == len(harmful[harmful.index("Take") :]) + 1  # before each token, and before the stop token
        assert len(scored[-1][0]) == len(ids) - 1


def test_the_share_of_scored_positions_is_keep_and_no_row_loses_all():
    data = derta(Locks(8), parts=["transition"], keep=0.3)
    length = len(HARMFUL.format(0)) + 1
    counts = np.array([len(scored) for epoch in range(60) for _, _, scored in rows_of(data, epoch)])
    assert abs(counts.mean() / length - 0.3) < 4 * (0.3 * 0.7 / counts.size / length) ** 0.5
    few = derta(Locks(8), parts=["transition"], keep=1e-9)
    assert {len(scored) for _, _, scored in rows_of(few)} == {1}


def test_draws_are_functions_of_seed_epoch_and_row():
    one, cut = derta(rows_per_step=4), derta(rows_per_step=5, micro_batch_rows=1)
    assert rows_of(one, 3) == rows_of(cut, 3) == rows_of(derta(Locks(6)), 3)
    assert rows_of(one, 3) != rows_of(one, 4)
    assert rows_of(one, 3) != rows_of(derta(seed=1), 3)
    more = {row[0]: row for row in rows_of(derta(Locks(9)), 3)}
    assert all(more[row[0]] == row for row in rows_of(one, 3))  # other rows have no influence


def test_prefix_lengths_are_uniform():
    data = derta(Locks(1), parts=["prefix"])
    most = len(HARMFUL.format(0))
    index = np.array([0])
    drawn = np.array([data.draws(index, epoch).prefix_R[0] for epoch in range(4000)])
    counts = np.bincount(drawn, minlength=most + 1)
    assert len(counts) == most + 1
    expected = 4000 / (most + 1)
    assert ((counts - expected) ** 2 / expected).sum() < most + 5 * (2 * most) ** 0.5  # chi-square
    half = derta(Locks(1), parts=["prefix"], prefixed=0.5)
    without = np.mean([half.draws(index, epoch).prefix_R[0] == 0 for epoch in range(4000)])
    assert abs(without - (0.5 + 0.5 / (most + 1))) < 0.04


@pytest.mark.parametrize("max_length", [40, 50, 64])
def test_no_row_is_longer_than_it_may_be(max_length):
    data = derta(max_length=max_length)
    for epoch in range(10):
        for row_id, ids, scored in rows_of(data, epoch):
            assert len(ids) <= max_length
            if part_of(data)[row_id] == PREFIX:
                assert data.decode([y for _, y in scored]) == SAFE  # a prefix never costs tokens of the response


def test_a_step_counts_the_positions_that_it_scores_on_all_ranks():
    for world in (1, 2):
        loaders = []
        for rank in range(world):
            data = derta(Locks(5), keep=0.2, rows_per_step=3, micro_batch_rows=2)
            data.trainer = SimpleNamespace(
                global_rank=rank, world_size=world, global_step=0, limit_train_batches=1.0, state=None
            )
            loaders.append(iter(data.train_dataloader()))
        steps = 0
        for parts in zip(*loaders, strict=True):
            batches = [batch for part in parts for batch in part]
            scored = sum(
                int((b.sequences.target[: b.sequences.cu_seqlens[b.present.sum()]] != IGNORE).sum()) for b in batches
            )
            assert {int(batch.tokens_in_step) for batch in batches} == {scored}
            assert sum(int(batch.present.sum()) for batch in batches) in (3, 1)
            steps += 1
        assert steps == 4


class Words:
    """A tokenizer of whole words, as if it were a model's."""

    def load_tokenizer(self):
        words = {word: n for n, word in enumerate(["[UNK]", "</s>", "Hello", "Sorry", "I", ",", "no", "."])}
        model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
        model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        return transformers.PreTrainedTokenizerFast(tokenizer_object=model, eos_token="</s>", unk_token="[UNK]")


@pytest.mark.parametrize(("refusal", "token"), [("Sorry, no.", 3), ("I", 4)])
def test_the_refusal_token_is_the_tokenizers_own(refusal, token):
    data = DertaData([Locks()], refusal=refusal)
    data.connect(Words())
    assert data.refusal_id == token


def test_a_template_makes_no_duplicates_of_prompts_with_several_harmful_answers():
    class Twice(Locks):
        def __iter__(self):
            row = next(super().__iter__())
            yield from (row, HarmfulRow(row.id, row.prompt, row.response, harmful="Another way."), row)

    assert len(derta(Twice()).tokenised.name) == 4


def test_a_resumed_run_draws_as_the_first_did():
    data, other = derta(), derta(keep=0.5)
    fitting = SimpleNamespace(
        state=SimpleNamespace(fn=TrainerFn.FITTING), global_rank=0, world_size=1, global_step=0, limit_train_batches=1.0
    )
    data.trainer = other.trainer = fitting
    data.load_state_dict(data.state_dict())
    with pytest.raises(ValueError, match=r"another data\.refusal, keep or prefixed"):
        data.load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    "wrong", [{"keep": 0.0}, {"keep": 1.1}, {"prefixed": -0.1}, {"refusal": " "}, {"parts": []}, {"parts": ["all"]}]
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DertaData([Locks()], **wrong)


def test_rows_of_a_source_without_harmful_answers_are_plain_rows():
    data = derta(FruitTalk(4))
    assert set(data.tokenised.part.tolist()) == {PLAIN}
    assert all(isinstance(row, SftRow) for row in FruitTalk(4))


def test_training_teaches_to_refuse_after_a_harmful_beginning(tmp_path):
    module = SupervisedFineTuning(PolicyReference(TinyLlama()), lambda p: torch.optim.AdamW(p, lr=1e-2))
    data = derta(Locks(8), keep=0.5, rows_per_step=16, micro_batch_rows=16)
    trainer(tmp_path, max_epochs=12, limit_val_batches=1.0).fit(module, data)
    prompt, harmful = data.tokenised.prompt.at(0), data.tokenised.response.at(1)[:9]
    ids = torch.tensor([*prompt.tolist(), *harmful.tolist()])
    with torch.no_grad():
        logp = module.pair.policy.causal_lm(input_ids=ids[None]).logits[0, -1].log_softmax(-1)
    assert logp[data.refusal_id].exp() > 0.3  # 1/259 at first


def test_a_run_that_is_resumed_within_an_epoch_ends_as_if_it_had_not_stopped(tmp_path):
    def run(steps, resume=None):
        module = SupervisedFineTuning(PolicyReference(TinyLlama()), lambda p: torch.optim.SGD(p, lr=0.1))
        fit = trainer(tmp_path, max_steps=steps, max_epochs=-1)
        data = derta(keep=0.3)  # 12 rows: three steps an epoch
        fit.fit(module, data, ckpt_path=resume)
        fit.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return weights(module)

    straight = run(6)
    run(4)
    assert torch.equal(run(6, str(tmp_path / "4.ckpt")), straight)
