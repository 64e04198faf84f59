"""A checkpoint becomes a Hugging Face folder that scores as the checkpoint does."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from lit_safe.callbacks.run_checkpoint import RunCheckpoint
from lit_safe.commands.export import export
from lit_safe.objectives import SafeDPO
from lit_safe.sft import SupervisedFineTuning
from models.adaptation import LastLayers, LoRA
from models.pair import PolicyReference
from models.reference import AdapterOff
from models.sources import TinyLlama
from tests.lit_safe.pair_world import adamw, aligned, pairs, plain_logp, talk, trainer

PAIRS = {
    "full": lambda: PolicyReference(TinyLlama()),
    "last layer": lambda: PolicyReference(TinyLlama(), LastLayers(1)),
    "adapter": lambda: PolicyReference(TinyLlama(), LoRA(r=2, alpha=8, dropout=0.5), AdapterOff()),
}


def checkpoint_of(module: Any, data: Any, folder: Path) -> str:
    """A short fit's last checkpoint."""
    trainer(folder, max_steps=3, callbacks=[RunCheckpoint()], enable_checkpointing=True).fit(module, data)
    module.eval()
    return str(folder / "checkpoints" / "last.ckpt")


def built(kind: str) -> Any:
    return aligned(SafeDPO(), lr=1e-2, pair=PAIRS[kind](), multiplier=0.5)


def some_sequences() -> Any:
    data = pairs()
    data.setup()
    return next(iter(data.val_dataloader())).sequences


def logp_of(folder: Path) -> torch.Tensor:
    return plain_logp(transformers.AutoModelForCausalLM.from_pretrained(folder).eval(), some_sequences()).float()


@pytest.mark.parametrize("kind", PAIRS)
def test_the_folder_scores_as_the_trained_policy(kind: str, tmp_path: Path) -> None:
    trained, out = built(kind), tmp_path / "out"
    path = checkpoint_of(trained, pairs(), tmp_path / "run")
    assert export(built(kind), pairs(), ckpt_path=path, out=str(out)) == 0
    with torch.no_grad():
        expected = trained.pair.policy_logp(some_sequences())
        untrained = trained.pair.reference_logp(some_sequences())
    assert (expected - untrained).abs().max() > 0.1
    torch.testing.assert_close(logp_of(out), expected, rtol=0, atol=1e-4)
    assert list(out.glob("*.safetensors"))
    assert not list(out.glob("*.bin"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == TinyLlama().load_tokenizer().chat_template

    card = (out / "README.md").read_text(encoding="utf-8")
    for fact in (
        "fruit: CC0-1.0",
        "SafeDPO(beta=0.1, offset=10.0, labels='ordered')",
        "multiplier 0.5",
        "optimizer steps: 3",
    ):
        assert fact in card
    assert "tiny random Llama (2 x 32, seed 0) (none needed)" in card


def test_the_adapter_alone_on_its_base_scores_as_the_trained_policy(tmp_path: Path) -> None:
    trained, out = built("adapter"), tmp_path / "out"
    path = checkpoint_of(trained, pairs(), tmp_path / "run")
    assert export(built("adapter"), pairs(), ckpt_path=path, out=str(out), adapter_only=True) == 0
    assert [file.name for file in out.glob("*.safetensors")] == ["adapter_model.safetensors"]
    model = peft.PeftModel.from_pretrained(TinyLlama().load_model(), out).eval()
    with torch.no_grad():
        expected = trained.pair.policy_logp(some_sequences())
    torch.testing.assert_close(plain_logp(model, some_sequences()).float(), expected, rtol=0, atol=1e-4)


def test_a_fine_tuned_model_is_exported_too(tmp_path: Path) -> None:
    trained, out = SupervisedFineTuning(PAIRS["full"](), adamw(1e-2)), tmp_path / "out"
    path = checkpoint_of(trained, talk(), tmp_path / "run")
    assert export(SupervisedFineTuning(PAIRS["full"]()), talk(), ckpt_path=path, out=str(out)) == 0
    with torch.no_grad():
        expected = trained.pair.policy_logp(some_sequences())
    torch.testing.assert_close(logp_of(out), expected, rtol=0, atol=1e-4)
    assert "supervised fine-tuning" in (out / "README.md").read_text(encoding="utf-8")


def test_what_would_be_written_wrongly_is_refused(tmp_path: Path) -> None:
    path = checkpoint_of(built("full"), pairs(), tmp_path / "run")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "model.safetensors").write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match="not empty"):
        export(built("full"), pairs(), ckpt_path=path, out=str(tmp_path / "taken"))
    assert (tmp_path / "taken" / "model.safetensors").read_text(encoding="utf-8") == "mine"

    other = aligned(pair=PolicyReference(TinyLlama(seed=1)))
    with pytest.raises(ValueError, match="trained from other weights than tiny random Llama"):
        export(other, pairs(), ckpt_path=path, out=str(tmp_path / "other"))
    with pytest.raises(ValueError, match="adapter_only needs an adapter"):
        export(built("full"), pairs(), ckpt_path=path, out=str(tmp_path / "none"), adapter_only=True)
    assert not (tmp_path / "other").exists()
    assert not (tmp_path / "none").exists()


def test_an_export_that_scores_otherwise_fails(tmp_path: Path) -> None:
    class Forgetful(PolicyReference):
        def save_pretrained(self, folder: str, *, adapter_only: bool = False) -> None:
            with torch.no_grad():
                next(self.parameters())[40:90] += 0.2
            super().save_pretrained(folder)
            with torch.no_grad():
                next(self.parameters())[40:90] -= 0.2

    path = checkpoint_of(built("full"), pairs(), tmp_path / "run")
    module = aligned(SafeDPO(), pair=Forgetful(TinyLlama()))
    assert export(module, pairs(), ckpt_path=path, out=str(tmp_path / "out")) == 1
