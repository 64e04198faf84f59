"""The comparison of an exported folder, over models and adapters that round differently."""

from pathlib import Path

import pytest
import torch
import transformers

from lit_safe.export.folder_check import compare_folder
from models.adaptation import Adaptation, Full, LoRA
from models.pair import PolicyReference
from models.reference import AdapterOff, FrozenCopy
from models.sources import HuggingFace, TinyLlama

SHIFT = 0.05  # of the trained weights


def trained(folder: Path, adaptation: Adaptation, dtype: str, *, tied: bool) -> PolicyReference:
    """A model from a folder, with trained weights that are shifted at random."""
    tokenizer = TinyLlama().load_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=len(tokenizer) + 37,  # a padded vocabulary
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=tied,
        )
        transformers.LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        reference = FrozenCopy() if isinstance(adaptation, Full) else AdapterOff()
        pair = PolicyReference(HuggingFace(str(folder)), adaptation, reference)
        pair.load()
        with torch.no_grad():
            for parameter in pair.parameters():
                if parameter.requires_grad:
                    parameter.add_(SHIFT * torch.randn_like(parameter))
    return pair.eval()


@pytest.mark.parametrize("name", ["norm", "embed_tokens"])
def test_full_copies_beside_an_adapter_on_a_bf16_base_are_read_as_they_were_written(name: str, tmp_path: Path) -> None:
    pair = trained(tmp_path / "base", LoRA(r=2, modules_to_save=[name]), "bfloat16", tied=False)
    pair.save_pretrained(str(tmp_path / "out"), adapter_only=True)
    assert compare_folder(pair, tmp_path / "out", None).same


@pytest.mark.parametrize("adaptation", [Full(), LoRA(r=2)], ids=["full", "lora"])
def test_a_model_with_small_logits_is_compared_at_the_size_of_its_log_probs(
    adaptation: Adaptation, tmp_path: Path
) -> None:
    pair = trained(tmp_path / "base", adaptation, "float32", tied=True)
    pair.save_pretrained(str(tmp_path / "out"))
    found = compare_folder(pair, tmp_path / "out", None)
    assert found.same
    assert found.bound < 1e-5


def test_a_changed_weight_is_still_seen(tmp_path: Path) -> None:
    pair = trained(tmp_path / "base", Full(), "float32", tied=True)
    pair.save_pretrained(str(tmp_path / "out"))
    with torch.no_grad():
        next(pair.parameters()).mul_(1.001)
    assert not compare_folder(pair, tmp_path / "out", None).same
