"""A base in 4 bits with an adapter: trains, has its reference, and is exported as what it computes with."""

from pathlib import Path

import pytest
import torch

from lit_safe.export.folder_check import compare_folder
from models.adaptation import Full, LastLayers, LoRA
from models.pair import PolicyReference
from models.reference import AdapterOff
from models.sources import HuggingFace, TinyLlama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'lit-safe[qlora]'")
    place = tmp_path_factory.mktemp("tiny")
    tiny = TinyLlama(layers=1, width=64)
    tiny.load_model().save_pretrained(place)
    tiny.load_tokenizer().save_pretrained(place)
    return str(place)


@pytest.mark.parametrize("options", [{}, {"dora": True}, {"rslora": True}], ids=["lora", "dora", "rslora"])
def test_a_4_bit_policy_trains_and_is_exported_as_what_it_computes_with(folder, pack, sequences, options, tmp_path):
    pair = PolicyReference(HuggingFace(folder, quantization="nf4", dtype="float32"), LoRA(r=4, **options), AdapterOff())
    pair.load()
    batch = pack(*sequences)
    trained = [p for p in pair.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    held = [p for p in pair.parameters() if p.dtype == torch.uint8]
    assert len(held) == 7, "every linear layer but the head is in 4 bits"
    assert pair.facts().parameters == pair.facts().trainable + sum(
        p.numel() for p in TinyLlama(layers=1, width=64).load_model().parameters()
    )
    start_N = pair.reference_logp(batch)
    assert torch.equal(pair.policy_logp(batch).detach(), start_N)
    optimizer = torch.optim.SGD(trained, lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        (-pair.policy_logp(batch).sum() / 10).backward()
        optimizer.step()
    assert (pair.policy_logp(batch) > start_N).all()
    assert torch.equal(pair.reference_logp(batch), start_N), "the reference has no adapter"
    pair.eval()
    pair.save_pretrained(str(tmp_path))
    found = compare_folder(pair, tmp_path, batch)
    assert found.same, found


def test_what_would_train_4_bit_weights_is_refused(folder):
    for adaptation in (Full(), LastLayers(1)):
        pair = PolicyReference(HuggingFace(folder, quantization="nf4"), adaptation)
        with pytest.raises(ValueError, match="trains weights that quantization: nf4 holds in 4 bits: set adaptation"):
            pair.load()


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"quantization: nf4 needs bitsandbytes: pip install 'lit-safe\[qlora"
    ):
        HuggingFace(str(tmp_path), quantization="nf4").load_model()


def test_a_gguf_file_is_not_quantised_again() -> None:
    with pytest.raises(ValueError, match="quantization nf4: not of a GGUF file"):
        HuggingFace("a", gguf_file="b.gguf", quantization="nf4")
