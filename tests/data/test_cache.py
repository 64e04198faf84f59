import dataclasses
import json
import os
import shutil
import stat

import numpy as np
import pytest

from data import cache as cache_module
from data.annotators.flags import Flags
from data.cache import Cache, named_inputs, tokenizer_digest
from data.module import PreferenceData
from data.schema import Message, Response, Row


@dataclasses.dataclass
class Toy:
    content: str = "a"
    licence: str = "CC0"
    reads: int = 0

    def describe(self):
        return {"content": self.content}

    def __iter__(self):
        self.reads += 1
        for i in range(30):
            answers = (Response(f"{self.content} {i}", True), Response("b", False))
            yield Row(f"toy:{i}", (Message("user", f"é {i}"),), answers, better=0)


class Model:
    def __init__(self, tokenizer):
        self.load_tokenizer = lambda: tokenizer


@pytest.fixture
def run(make_tokenizer, tmp_path):
    """Sets data up on one cache folder, and says whether it had to read its source."""

    def build(source=None, annotator=None, tokenizer=None, **options):
        source = source or Toy()
        data = PreferenceData(
            [source], annotator or Flags(), **{"max_length": 100, "cache_dir": str(tmp_path), **options}
        )
        data.connect(Model(tokenizer or make_tokenizer()))
        data.prepare_data()
        data.setup("fit")
        return data, source.reads > 0

    return build


def batches(data):
    return [
        [t.tolist() for t in (*b.sequences[:4], *b.label.cost, *b.label.reward, b.label.draw, b.pair_id, b.prompt_id)]
        for step in data.train_dataloader()
        for b in step
    ]


def test_a_hit_gives_the_same_batches_prompts_and_report_without_reading_the_source(run):
    (first, read), (second, read_again) = run(), run()
    assert (read, read_again) == (True, False)
    assert batches(first) == batches(second)
    assert first.prompts("train") == second.prompts("train")
    assert (first.report, first.report_lines) == (second.report, second.report_lines)


@pytest.mark.parametrize(
    "change",
    [{"pairs_per_step": 3}, {"micro_batch_pairs": 1}, {"seed": 5}, {"eval_batch_pairs": 2}, {"max_eval_pairs": 1}],
    ids=str,
)
def test_what_only_orders_and_groups_rows_does_not_invalidate(run, change):
    run()
    assert run(**change)[1] is False


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 99},
        {"order": "safer"},
        {"max_pairs_per_prompt": 1},
        {"on_bad_row": "skip"},
        {"contradictions": "drop"},
        {"annotator": Flags(scale=2.0)},
        {"source": Toy("other")},
    ],
    ids=str,
)
def test_whatever_changes_rows_or_ids_does(run, change):
    run()
    assert run(**change)[1] is True


def test_the_template_and_the_tokenizers_own_content_do(run, make_tokenizer):
    run()
    assert run(tokenizer=make_tokenizer("system"))[1] is True
    assert run(tokenizer=make_tokenizer(space_first=True))[1] is True
    assert run(tokenizer=make_tokenizer())[1] is False


def test_a_change_of_the_code_that_makes_rows_does(run, monkeypatch):
    run()
    monkeypatch.setattr(cache_module, "_code_digest", lambda: "another")
    assert run()[1] is True


def test_padding_that_an_earlier_caller_set_does_not(make_tokenizer):
    used = make_tokenizer()
    used(["a", "abc"], padding=True, truncation=True, max_length=2)
    assert tokenizer_digest(used) == tokenizer_digest(make_tokenizer())


def test_inputs_lie_beside_the_arrays_and_name_everything(run, tmp_path):
    run()
    (entry,) = tmp_path.iterdir()
    inputs = json.loads((entry / "inputs.json").read_text(encoding="utf-8"))
    assert set(inputs) == {
        "sources", "tokenizer", "template", "code", "rows", "annotator", "order", "contradictions",
        "duplicates", "max_pairs_per_prompt", "max_length", "on_bad_row", "template_date", "rendered",
    }  # fmt: skip
    assert inputs["sources"] == [{"class": "Toy", "content": "a"}]
    assert inputs["annotator"] == repr(Flags())


def test_an_annotator_that_does_not_say_its_options_is_refused(make_tokenizer):
    class Silent:
        pass

    with pytest.raises(ValueError, match="annotator: Silent has no repr"):
        named_inputs([Toy()], make_tokenizer(), annotator=Silent())


def test_a_writer_that_fails_leaves_nothing_and_the_second_of_two_changes_nothing(tmp_path, monkeypatch):
    cache, arrays = Cache(tmp_path), {"a": np.arange(3)}
    with pytest.raises(TypeError):
        cache.write({"x": 1}, arrays, {"facts": object()})
    assert os.listdir(tmp_path) == []
    assert cache.read({"x": 1}) is None
    cache.write({"x": 1}, arrays, {"who": "first"})
    cache.write({"x": 1}, arrays, {"who": "second"})
    stored, facts = cache.read({"x": 1})
    assert facts == {"who": "first"}
    assert stored["a"].tolist() == [0, 1, 2]
    assert len(os.listdir(tmp_path)) == 1


def test_without_a_folder_nothing_is_kept(run, tmp_path):
    assert run(cache_dir=None)[1] is True
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["arrays.npz", "facts.json", "sha256.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_entry_is_refused_by_its_name_and_made_again_once_deleted(run, tmp_path, name, damage):
    run()
    (entry,) = tmp_path.iterdir()
    path = entry / name
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "gone":
        path.unlink()
    else:
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"flip": flipped, "cut": content[:middle], "empty": b""}[damage])
    with pytest.raises(
        ValueError, match=rf"{entry.name}/.*: this file of the data cache is damaged; delete the folder"
    ):
        run()
    shutil.rmtree(entry)
    assert run()[1] is True


def test_others_may_read_an_entry_as_far_as_the_umask_allows(tmp_path):
    cache, inputs = Cache(tmp_path / "cache"), {"rows": "one"}
    old = os.umask(0o022)
    try:
        cache.write(inputs, {"ids": np.arange(3)}, {})
    finally:
        os.umask(old)
    entry = cache.entry(inputs)
    assert stat.S_IMODE(entry.stat().st_mode) == 0o755
    assert {stat.S_IMODE(path.stat().st_mode) for path in entry.iterdir()} == {0o644}
