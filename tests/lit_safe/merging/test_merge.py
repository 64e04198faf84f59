"""``merge`` interpolates model folders: exact at the ends, checked tensor by tensor in between."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from lit_safe.commands.merge import merge
from models.sources import TinyLlama

transformers.utils.logging.disable_progress_bar()


def model(seed: int, dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
    return TinyLlama(seed=seed, layers=1).load_model().to(dtype)


def folder(at: Path, lm: transformers.PreTrainedModel, **options: Any) -> str:
    lm.save_pretrained(at, **options)
    TinyLlama().load_tokenizer().save_pretrained(at)
    return str(at)


def weights(at: str | Path) -> dict[str, torch.Tensor]:
    return {name: one for file in Path(at).glob("*.safetensors") for name, one in load_file(file).items()}


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    return folder(tmp_path / "a", model(0)), folder(tmp_path / "b", model(1))


@pytest.mark.parametrize(("weight", "of"), [(0.0, 0), (1.0, 1), ([0.0, 1.0], 1)])
def test_at_the_ends_it_is_one_of_the_models_bit_by_bit(
    weight: float | list[float], of: int, two: tuple[str, str], tmp_path: Path
) -> None:
    a, b = (weights(name) for name in two)
    first = next(iter(a))
    zeroed = model(of)
    dict(zeroed.named_parameters())[first].data.fill_(-0.0)  # 0 * x + -0.0 would be 0.0
    sources = [two[0], two[1]]
    sources[of] = folder(tmp_path / "zeroed", zeroed)
    assert merge(sources, str(tmp_path / "out"), weight) == 0
    found, expected = weights(tmp_path / "out"), weights(sources[of])
    assert found.keys() == a.keys() == b.keys()
    for name, one in expected.items():
        assert torch.equal(found[name].view(torch.int32), one.view(torch.int32))


def test_between_them_every_weight_lies_on_the_line(two: tuple[str, str], tmp_path: Path) -> None:
    assert merge(list(two), str(tmp_path / "out"), 0.25) == 0
    a, b, found = (weights(name) for name in (*two, tmp_path / "out"))
    for name, one in found.items():
        exact = 0.75 * a[name].double() + 0.25 * b[name].double()
        torch.testing.assert_close(one.double(), exact, rtol=2e-7, atol=1e-8)
    assert any(not torch.equal(found[name], a[name]) for name in found)


def test_the_result_is_a_model_that_transformers_reads_with_its_weights_still_tied(
    two: tuple[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    merge(list(two), str(out), 0.5)
    read, told = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert read.get_input_embeddings().weight is read.get_output_embeddings().weight
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == TinyLlama().load_tokenizer().chat_template
    ids = torch.tensor([tokenizer("Ahoy")["input_ids"]])
    with torch.no_grad():
        other = transformers.AutoModelForCausalLM.from_pretrained(two[0])(ids).logits
        assert not torch.allclose(read(ids).logits, other)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"0.5 x {two[1]}" in card


def test_shards_stay_shards_and_a_wider_type_wins(tmp_path: Path) -> None:
    a = folder(tmp_path / "a", model(0, torch.bfloat16), max_shard_size="20KB")
    b = folder(tmp_path / "b", model(1))
    assert len(list(Path(a).glob("*.safetensors"))) > 1
    merge([a, b], str(tmp_path / "out"), 0.0)
    assert sorted(p.name for p in (tmp_path / "out").glob("model*")) == sorted(p.name for p in Path(a).glob("model*"))
    found, expected = weights(tmp_path / "out"), weights(a)
    assert {one.dtype for one in found.values()} == {torch.float32}
    assert all(torch.equal(found[name], one.float()) for name, one in expected.items())
    size = json.loads((tmp_path / "out/model.safetensors.index.json").read_text(encoding="utf-8"))["metadata"]
    assert size["total_size"] == sum(4 * one.numel() for one in found.values())
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert read.dtype == torch.float32


def test_a_file_of_one_shard_is_still_whole_if_the_merge_was_killed_before(
    two: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / ".out.unfinished").mkdir()
    (tmp_path / ".out.unfinished/model.safetensors").write_text("half", encoding="utf-8")
    merge(list(two), str(tmp_path / "out"))
    assert not (tmp_path / ".out.unfinished").exists()
    assert weights(tmp_path / "out")


def test_a_failed_merge_leaves_nothing(two: tuple[str, str], tmp_path: Path) -> None:
    other = folder(tmp_path / "other", TinyLlama(layers=2).load_model())
    with pytest.raises(ValueError, match="num_hidden_layers is 1 and 2"):
        merge([two[0], other], str(tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "other"]


def test_what_cannot_be_merged_is_refused_with_what_to_do(two: tuple[str, str], tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}", encoding="utf-8")
    shutil.copy(Path(two[0]) / "config.json", tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"holds only an adapter.*train\.py export"):
        merge([two[0], str(tmp_path / "adapter")], out)
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"run is a run folder.*train\.py export"):
        merge([two[0], str(tmp_path / "run")], out)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        merge([two[0], str(tmp_path / "nowhere")], out)
    for weight, words in ((1.5, r"\[0, 1\]"), ([0.5, 0.2], "sum to 1"), ([1.0], "each of 2 models")):
        with pytest.raises(ValueError, match=words):
            merge(list(two), out, weight)
    with pytest.raises(ValueError, match="at least two models"):
        merge([two[0]], out)
    with pytest.raises(ValueError, match="give --base"):
        merge(list(two), out, method="ties")
    with pytest.raises(ValueError, match="remove --base"):
        merge(list(two), out, base=two[0])
    with pytest.raises(ValueError, match="method must be one of"):
        merge(list(two), out, method="slerp")
    with pytest.raises(FileExistsError, match="not empty"):
        merge(list(two), two[0])
    assert not Path(out).exists()


def test_another_vocabulary_of_the_same_size_is_refused(two: tuple[str, str], tmp_path: Path) -> None:
    path = Path(two[1]) / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    one, other = list(vocabulary)[:2]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="different vocabularies"):
        merge(list(two), str(tmp_path / "out"))


@pytest.mark.parametrize("method", ["ties", "dare", "dare_ties"])
def test_merging_the_changes_of_one_direction_gives_it_back(method: str, tmp_path: Path) -> None:
    """With everything kept, two models with the same change from the base merge into themselves."""
    base, changed = model(0), model(1)
    names = [folder(tmp_path / name, lm) for name, lm in (("base", base), ("a", changed), ("b", changed))]
    merge(names[1:], str(tmp_path / "out"), method=method, base=names[0], density=1.0)
    found, expected = weights(tmp_path / "out"), weights(names[1])
    for name, one in expected.items():
        torch.testing.assert_close(found[name], one, rtol=1e-6, atol=1e-7)
