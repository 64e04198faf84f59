import dataclasses
import logging
import math
from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from data.annotators.flags import Flags
from data.module import PreferenceData
from data.schema import BadRow, Message, Response, Row, SftRow
from data.sft import SftData
from data.split import prompt_id, split_of
from data.templates import TEMPLATES
from lit_safe.types import IGNORE, ModelLimits

NAN = math.nan


@dataclasses.dataclass
class Toy:
    """``count`` rows; the second response is the better and every third pair has an unsafe first response."""

    count: int = 120
    bad: tuple[int, ...] = ()
    unlabelled: tuple[int, ...] = ()
    evaluation_only: bool = False
    licence: str = "CC0"
    reads: int = dataclasses.field(default=0, repr=False)

    def describe(self):
        return {"name": "toy", "count": str(self.count), "bad": str(self.bad), "unlabelled": str(self.unlabelled)}

    def __iter__(self):
        self.reads += 1
        for i in range(self.count):
            if i in self.bad:
                yield BadRow(f"toy:{i}", "response_0", "is empty")
                continue
            safe = None if i in self.unlabelled else True
            first = Response(f"no {i}", safe if safe is None else i % 3 > 0)
            second = Response(f"yes {i} " + "and so on " * (i % 4), safe)
            yield Row(f"toy:{i}", (Message("user", f"Question {i}?"),), (first, second), better=1)


class ToySft(Toy):
    def __iter__(self):
        for i in range(self.count):
            yield SftRow(f"toy:{i}", (Message("user", f"question {i}"),), f"an answer {i}")


class Model:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def load_tokenizer(self):
        return self.tokenizer


@pytest.fixture
def preference(make_tokenizer):
    def build(source=None, annotator=None, cls=PreferenceData, template="chatml", **options):
        labels = {"annotator": annotator or Flags()} if cls is PreferenceData else {}
        data = cls(sources=[source or Toy()], **labels, **{"max_length": 128, **options})
        data.connect(Model(make_tokenizer(template)))
        return data

    return build


def ready(data):
    data.setup("fit")
    return data


def pair_ids(batches):
    return [i for batch in batches for i, present in zip(batch.pair_id.tolist(), batch.present, strict=True) if present]


def test_an_epoch_trains_on_every_train_pair_once_and_on_no_other(preference):
    data = ready(preference(pairs_per_step=8, micro_batch_pairs=3))
    loader = data.train_dataloader()
    steps = list(loader)
    assert len(steps) == len(loader)
    count = data.report["splits"]["train"]
    assert [int(batch.pairs_in_step) for step in steps for batch in step[:1]] == [8] * (count // 8) + [count % 8] * (
        count % 8 > 0
    )
    seen = [batch for step in steps for batch in step]
    ids = pair_ids(seen)
    assert len(ids) == len(set(ids)) == count
    expected = {
        prompt_id((Message("user", f"Question {i}?"),)) for i in range(120) if split_of(f"question {i}") == "train"
    }
    assert {i for batch in seen for i in batch.prompt_id.tolist()} == expected


def test_a_batch_is_what_plain_tokenisation_of_its_rows_gives(preference, make_tokenizer):
    data, tokenizer = ready(preference()), make_tokenizer()
    for batch in data.val_dataloader():
        bounds = batch.sequences.cu_seqlens.tolist()
        for number in range(len(batch.pair_id)):
            for side in (0, 1):
                start, end = bounds[2 * number + side : 2 * number + side + 2]
                text = tokenizer.decode(batch.sequences.input_ids[start:end])
                assert batch.sequences.input_ids[start:end].tolist() == tokenizer(text).input_ids
                target = batch.sequences.target[start:end]
                answer = tokenizer.decode(target[target != IGNORE])
                assert text == text[: text.index("assistant\n")] + "assistant\n" + answer
                assert answer.startswith(("yes ", "no ")[side])
                assert answer.endswith("<|im_end|>")
                assert int((target != IGNORE).sum()) == batch.response_length[side][number]


def test_chosen_is_the_better_response_with_its_own_labels(preference):
    data = ready(preference())
    for batch in data.val_dataloader():
        assert (batch.label.cost.chosen < 0).all()
        assert set(batch.label.cost.rejected.tolist()) <= {-1.0, 1.0}
        assert (batch.label.reward.margin > 0).all()


def test_splits_share_no_prompt_and_dual_pairs_and_prompts_come_from_theirs(preference):
    data = ready(preference(Toy(600)))
    prompts = {split: {p.prompt_id for p in data.prompts(split)} for split in ("train", "val", "dual", "certify")}
    assert sum(map(len, prompts.values())) == len(set.union(*prompts.values())) == 600
    dual = list(data.dual_pairs())
    assert {i for batch in dual for i in batch.prompt_id.tolist()} == prompts["dual"]
    assert {i for batch in data.test_dataloader() for i in batch.prompt_id.tolist()} == prompts["val"]


def test_a_prompt_reads_as_people_wrote_it_and_runs_as_the_template_renders_it(preference, make_tokenizer):
    data = ready(preference())
    prompt = data.prompts("val")[0]
    assert prompt.text.startswith("Question ")
    assert make_tokenizer().decode(prompt.ids) == f"<|im_start|>user\n{prompt.text}<|im_end|>\n<|im_start|>assistant\n"
    assert data.decode(prompt.ids) == f"user\n{prompt.text}\nassistant\n"
    assert data.prompts("val") == ready(preference()).prompts("val")


def test_fewer_evaluation_pairs_are_the_same_ones_every_time(preference):
    whole, some = (ready(preference(Toy(300), max_eval_pairs=n)) for n in (None, 5))
    ids = pair_ids(some.val_dataloader())
    assert len(ids) == 5
    assert set(ids) < set(pair_ids(whole.val_dataloader()))
    assert ids == pair_ids(ready(preference(Toy(300), max_eval_pairs=5, seed=9)).val_dataloader())


def test_a_label_that_an_objective_needs_is_missed_with_row_and_column_named(preference):
    data = ready(preference(Toy(unlabelled=(7, 9))))
    data.require(("reward",))
    with pytest.raises(ValueError, match=r"row toy:7, column chosen cost 'harm': not known.* 2 of 120 pairs"):
        data.require(("reward", "flags"))
    data = ready(preference(annotator=Flags(preference_strength=None)))
    data.require(("cost", "flags"))
    with pytest.raises(ValueError, match=r"row toy:0, column chosen reward: not known"):
        data.require(("reward",))


def test_a_bad_row_stops_or_is_counted_by_its_reason(preference):
    source = Toy(bad=(3, 5))
    with pytest.raises(BadRow, match="row toy:3, column 'response_0': is empty"):
        ready(preference(source))
    data = ready(preference(source, on_bad_row="skip"))
    assert data.report["preparation"]["dropped"]["column 'response_0' is empty"]["count"] == 2
    assert sum(data.report["splits"].values()) == data.report["tokenisation"]["kept"] == 118


def test_sources_without_a_usable_row_are_refused_with_the_reason(preference):
    reason = (
        r"the train split has no rows: 0 of 120 rows kept.*dropped 120: column 'response_0' is empty \(e\.g\. toy:0"
    )
    data = ready(preference(Toy(bad=tuple(range(120))), on_bad_row="skip"))
    with pytest.raises(ValueError, match=reason):
        assert data.largest_micro_batch


@pytest.mark.parametrize("cached", [False, True])
def test_rows_kept_and_dropped_are_told_once(preference, caplog, cached, tmp_path):
    data = preference(cache_dir=str(tmp_path) if cached else None)
    with caplog.at_level(logging.INFO):
        data.prepare_data()
        data.setup("fit")
        told = [record.message for record in caplog.records if record.message.startswith("data: ")]
        data.setup("validate")
    assert [record.message for record in caplog.records if record.message.startswith("data: ")] == told
    assert any("120 of 120 rows kept" in line for line in told)
    assert "by split: train" in told[-1]


def test_a_split_without_rows_is_an_error_where_it_is_asked_for(preference):
    data = ready(preference(Toy(1)))
    empty = "val" if data.report["splits"]["val"] == 0 else "dual"
    with pytest.raises(ValueError, match=f"the {empty} split has no rows: 1 of 1 rows kept"):
        data.prompts(empty)
    with pytest.raises(ValueError, match=r"the dual split has no rows.*held_out: false.*trainer.limit_val_batches: 0"):
        data.dual_pairs()


def test_rows_for_evaluation_alone_are_validated_on_and_never_trained_on(preference):
    data = ready(preference(Toy(evaluation_only=True)))
    assert data.report["splits"] == {"train": 0, "val": 120, "dual": 0, "certify": 0}
    with pytest.raises(ValueError, match="the train split has no rows"):
        data.train_dataloader()


def test_two_ranks_together_run_one_ranks_steps_and_fillers_count_for_nothing(preference):
    options = {"pairs_per_step": 5, "micro_batch_pairs": 2}
    alone = ready(preference(**options)).train_dataloader()

    def on_rank(rank):
        data = ready(preference(**options))
        data.trainer = type("TwoRanks", (), {"global_rank": rank, "world_size": 2, "global_step": 0,
                                             "limit_train_batches": 1.0})()  # fmt: skip
        return data.train_dataloader()

    def share(batch):  # a loss as the module sums it, with the label standing for the loss
        return float((batch.label.reward.margin * batch.present).sum() / batch.pairs_in_step)

    for whole, *halves in zip(alone, on_rank(0), on_rank(1), strict=True):
        assert len(halves[0]) == len(halves[1])
        assert sorted(pair_ids(halves[0] + halves[1])) == sorted(pair_ids(whole))
        assert sum(map(share, halves[0] + halves[1])) == pytest.approx(sum(map(share, whole)))
        assert {int(batch.pairs_in_step) for half in halves for batch in half} == {int(whole[0].pairs_in_step)}


def test_the_authors_and_constraints_are_named(preference):
    data = ready(preference())
    assert data.responses_from == {"unknown"}
    assert data.constraints == ("harm",)


def test_nothing_is_read_before_setup_and_nothing_is_there(preference):
    source = Toy()
    data = preference(source)
    assert source.reads == 0
    with pytest.raises(RuntimeError, match="before setup"):
        data.train_dataloader()


def test_without_a_model_or_a_name_there_is_no_tokenizer():
    with pytest.raises(ValueError, match="no tokenizer"):
        PreferenceData([Toy()], Flags()).setup()
    with pytest.raises(ValueError, match="at least one"):
        PreferenceData([], Flags())


def test_a_named_tokenizer_goes_before_the_models(preference, make_tokenizer, tmp_path):
    make_tokenizer("two_ends").save_pretrained(tmp_path)
    data = preference(tokenizer=str(tmp_path))
    assert data.tokenizer.chat_template == make_tokenizer("two_ends").chat_template


class Toucher(LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.pairs = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, micro_batches, batch_idx):
        self.pairs += pair_ids(micro_batches)
        self.manual_backward(self.weight * 1)
        self.optimizers().step()

    def validation_step(self, batch, batch_idx):
        self.pairs += pair_ids([batch])
        return torch.tensor(0.0)

    test_step = predict_step = validation_step


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_every_verb_of_the_trainer_runs_the_val_split_once(preference, verb, tmp_path):
    data, module = preference(eval_batch_pairs=4), Toucher()
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path,
                      enable_checkpointing=False)  # fmt: skip
    getattr(trainer, verb)(module, datamodule=data)
    assert sorted(module.pairs) == sorted(pair_ids(data.val_dataloader()))


def test_fit_takes_one_step_an_item_and_other_data_cannot_resume_it(preference, tmp_path):
    def trainer(epochs):
        return Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                       max_epochs=epochs, limit_val_batches=0, default_root_dir=tmp_path,
                       enable_checkpointing=False)  # fmt: skip

    data, module, first = preference(pairs_per_step=10), Toucher(), trainer(2)
    first.fit(module, datamodule=data)
    assert first.global_step == 2 * len(data.train_dataloader())
    count = data.report["splits"]["train"]
    assert set(module.pairs[:count]) == set(module.pairs[count:])
    assert module.pairs[:count] != module.pairs[count:]
    first.save_checkpoint(tmp_path / "end.ckpt")
    with pytest.raises(ValueError, match="rows_per_step changed"):
        trainer(3).fit(Toucher(), datamodule=preference(pairs_per_step=9), ckpt_path=tmp_path / "end.ckpt",
                       weights_only=True)  # fmt: skip


def test_fine_tuning_rows_share_splits_and_steps_count_their_scored_tokens(preference):
    pairs, rows = ready(preference()), ready(preference(ToySft(), cls=SftData, rows_per_step=7, micro_batch_rows=2))
    for split in ("train", "val", "dual", "certify"):
        assert pairs.report["splits"][split] == rows.report["splits"][split]
    for step in rows.train_dataloader():
        assert sum(int((batch.sequences.target != IGNORE).sum()) for batch in step) == int(step[0].tokens_in_step)
    seen = [i for step in rows.train_dataloader() for batch in step for i in batch.row_id.tolist()]
    assert len(seen) == len(set(seen)) == rows.report["splits"]["train"]
    assert sum(len(batch.row_id) for batch in rows.val_dataloader()) == rows.report["splits"]["val"]


def test_the_same_answer_twice_is_imitated_once(preference):
    data = SftData([ToySft(), ToySft(count=3)], max_length=128)
    data.connect(preference()._model)
    assert ready(data).report["preparation"]["dropped"] == {"the same prompt and response again": 3}


def test_repeated_answers_are_kept_on_request_and_told_apart(preference):
    options = {"cls": SftData, "duplicates": "keep", "rows_per_step": 7}
    once, thrice = (ready(preference(source, **options)) for source in (ToySft(), Thrice()))
    assert thrice.report["preparation"] == {"kept": 360, "dropped": {}, "licences": ["CC0"]}
    assert len(set(thrice.tokenised.row_id.tolist())) == 360
    assert set(once.tokenised.row_id.tolist()) < set(thrice.tokenised.row_id.tolist())
    assert thrice.report["splits"]["train"] == 3 * once.report["splits"]["train"]


class Thrice(ToySft):
    def __iter__(self):
        for _ in range(3):
            yield from super().__iter__()


class OneQuestion(Toy):
    """The same two answers again and again, in both orders."""

    def __iter__(self):
        for i in range(self.count):
            responses = Response("no", safe=True), Response("yes", safe=True)
            yield Row(f"one:{i}", (Message("user", "Well?"),), responses, better=i % 2)


def test_repeated_pairs_have_coins_and_places_of_their_own(preference):
    data = ready(preference(OneQuestion(400), duplicates="keep", held_out=False, pairs_per_step=50))
    pairs = [batch for step in data.train_dataloader() for batch in step]
    assert len(set(pair_ids(pairs))) == 400
    coins = torch.cat([batch.label.draw for batch in pairs])
    assert len(set(coins.tolist())) == 400
    assert float(coins.mean()) == pytest.approx(0.5, abs=4 / math.sqrt(12 * 400))
    assert data.report["preparation"]["contradictory_rows"] == 400
    assert ready(preference(OneQuestion(400))).report["preparation"]["kept"] == 1


@pytest.mark.parametrize("cached", [False, True])
def test_with_nothing_held_out_every_split_is_everything_and_the_report_says_so(preference, cached, tmp_path):
    options = {"cache_dir": str(tmp_path)} if cached else {}
    split, whole = ready(preference(**options)), ready(preference(held_out=False, **options))
    assert whole.report["splits"] == whole.report["prompts"] == dict.fromkeys(("train", "val", "dual", "certify"), 120)
    everything = sorted(pair_ids(batch for step in whole.train_dataloader() for batch in step))
    for batches in (whole.val_dataloader(), whole.dual_pairs()):
        assert sorted(pair_ids(batches)) == everything
    assert len({prompt.prompt_id for prompt in whole.prompts("certify")}) == 120
    assert whole.prompts("dual") == whole.prompts("train")
    assert [pair.row for pair in whole.pairs("val")] == [pair.row for pair in whole.pairs("train")]
    assert sum(len(split.pairs(name)) for name in ("train", "val", "dual", "certify")) == len(whole.pairs("val")) == 120
    assert [any("nothing here is held out" in line for line in data.report_lines) for data in (split, whole)] == [0, 1]


def test_rows_for_evaluation_alone_are_held_out_or_refused(preference):
    with pytest.raises(ValueError, match="held_out: false would train on a source that is for evaluation only"):
        preference(Toy(evaluation_only=True), held_out=False)


class Alike(Toy):
    """Two prompts that normalise alike, each with one and the same pair of responses."""

    def __iter__(self):
        for name in ("C", "C++"):
            prompt = (Message("user", f"What is {name}?"),)
            yield Row(f"alike:{name}", prompt, (Response("no", True), Response("yes", name == "C")), better=1)


def test_prompts_that_normalise_alike_are_both_rolled_out_and_contradict_nothing(preference):
    data = ready(preference(Alike(), contradictions="drop", held_out=False))
    assert {prompt.text for prompt in data.prompts("train")} == {"What is C?", "What is C++?"}
    assert data.report["preparation"]["contradictory_responses"] == 0
    assert len(data.rows_of("train")) == 2


def test_runs_that_order_pairs_in_two_ways_train_and_are_evaluated_on_the_same_pairs(preference):
    options = {"max_eval_pairs": 4, "pairs_per_step": 8, "micro_batch_pairs": 3}
    one, other = ready(preference(**options)), ready(preference(Turned(), **options))
    assert pair_ids(one.val_dataloader()) == pair_ids(other.val_dataloader())
    steps = [[pair_ids(step) for step in data.train_dataloader()] for data in (one, other)]
    assert steps[0] == steps[1]
    ours, theirs = next(iter(one.val_dataloader())), next(iter(other.val_dataloader()))
    assert ours.response_length.chosen.tolist() == theirs.response_length.rejected.tolist()


class Turned(Toy):
    """The rows of ``Toy`` with the other response preferred."""

    def __iter__(self):
        return (dataclasses.replace(row, better=0) for row in super().__iter__())


class Barred(Toy):
    """A prompt of ``Toy``'s train split for evaluation alone, spelt and framed in another way."""

    def __iter__(self):
        prompt = (Message("system", "Be kind"), Message("user", "  question 3"))
        yield Row("barred:0", prompt, (Response("x", True), Response("y", True)), better=1)


def test_a_prompt_for_evaluation_alone_is_never_trained_on_however_another_source_spells_it(preference, make_tokenizer):
    assert split_of("Question 3?") == "train"
    data = PreferenceData([Toy(), Barred(evaluation_only=True)], Flags(), max_length=128)
    data.connect(Model(make_tokenizer()))
    data.setup("fit")
    val = {data.tokenised.name[i] for i in data.rows_of("val")}
    assert {"toy:3", "barred:0"} <= val


DATED = "{{ '<s>' + strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"


def test_a_run_is_not_resumed_on_other_tokens_of_the_same_rows(preference):
    def state(**options):
        data = preference(template=DATED, **options)
        data.trainer = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.FITTING), global_rank=0, world_size=1)
        return ready(data)

    begun = state().state_dict()
    state().load_state_dict(begun)
    for change in ({"template_date": "2024-07-26"}, {"max_length": 40}):
        with pytest.raises(ValueError, match="the same rows in other tokens: tokenizer, chat template"):
            state(**change).load_state_dict(begun)
    with pytest.raises(ValueError, match="template_date must be a day such as 2025-01-01, got 'today'"):
        preference(template_date="today")


class Rendered(Toy):
    """Every fourth prompt of ``Toy`` as a chat template renders it."""

    def __iter__(self):
        for i, row in enumerate(super().__iter__()):
            text = f"<|im_start|>user\nQuestion {i}?<|im_end|>\n<|im_start|>assistant\n"
            yield dataclasses.replace(row, prompt=text) if i % 4 == 2 else row


def test_rows_that_a_template_made_already_are_counted_and_the_first_is_named(preference, tmp_path):
    for _ in range(2):  # tokenised, and from the cache
        with pytest.warns(
            UserWarning, match=r"30 rows \(the first is toy:2\) have a prompt with '<\|im_start\|>' in it"
        ):
            data = ready(preference(Rendered(), cache_dir=str(tmp_path)))
        assert sum(data.report["tokenisation"]["noted"].values()) == 30


def test_a_named_template_takes_the_place_of_a_missing_one_and_stays_with_the_tokenizer(preference, make_tokenizer):
    tokenizer = make_tokenizer(None)
    data = PreferenceData([Toy()], Flags(), max_length=128, template="safe_rlhf")
    data.connect(Model(tokenizer))
    data.setup("fit")
    assert data.decode(data.tokenised.prompt.at(0)) == "BEGINNING OF CONVERSATION: USER: Question 0? ASSISTANT:"
    assert tokenizer.chat_template == TEMPLATES["safe_rlhf"], "an export of the model writes it"
    assert data.stop_ids == {tokenizer.eos_token_id}


class Limited(Model):
    """A model that reads ``limits`` once it is loaded."""

    def __init__(self, tokenizer, limits):
        super().__init__(tokenizer)
        self.known, self.loaded = limits, False

    def limits(self):
        return self.known if self.loaded else None


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (ModelLimits(258, None), r"row toy:0 has token 258, and the model's embedding has 258 rows for a token"),
        (ModelLimits(260, 30), r"row toy:103 has 71 tokens, and the model has 30 positions: set data.init_args.max"),
        (ModelLimits(260, 128), None),
    ],
)
@pytest.mark.parametrize("cls", [PreferenceData, SftData])
def test_rows_that_the_model_cannot_read_are_refused_before_it_reads_one(make_tokenizer, cls, limits, message):
    source = {PreferenceData: Toy, SftData: ToySft}[cls]()
    labels = [Flags()] if cls is PreferenceData else []
    data, model = cls([source], *labels, max_length=128), Limited(make_tokenizer(), limits)
    data.connect(model)
    data.setup("fit")
    data.train_dataloader()  # nothing is known of a model that is not loaded
    model.loaded = True
    if message is None:
        data.train_dataloader()
        return
    with pytest.raises(ValueError, match=message if cls is PreferenceData else message[:3]):
        data.train_dataloader()
