"""A checkpoint becomes a Hugging Face folder that scores as the checkpoint does."""

import os
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from lit_safe.commands.export import export
from lit_safe.objectives import SafeDPO
from lit_safe.runs.run_checkpoint import RunCheckpoint
from lit_safe.training.sft import SupervisedFineTuning
from models.adaptation import LastLayers, LoRA
from models.pair import PolicyReference
from models.reference import AdapterOff
from models.sources import TinyLlama
from tests.lit_safe.pair_world import Fruit, adamw, aligned, pairs, plain_logp, talk, trainer


class InBf16(TinyLlama):
    """As a checkpoint that was published in bf16: weights alone, as transformers reads it."""

    def load_model(self) -> transformers.PreTrainedModel:
        model = super().load_model()
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
        return model


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
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["run", "taken"]


class Moved(PolicyReference):
    """Writes other weights than it holds: its first ones are off by ``by``."""

    by = 0.0
    fault: BaseException | None = None

    def save_pretrained(self, folder: str, *, adapter_only: bool = False) -> None:
        first = next(p for name, p in self.named_parameters() if p.requires_grad and "lora_A" not in name)
        with torch.no_grad():
            first[:90] += self.by
        super().save_pretrained(folder, adapter_only=adapter_only)
        with torch.no_grad():
            first[:90] -= self.by
        if self.fault is not None:
            raise self.fault


@pytest.mark.parametrize("adapter_only", [False, True], ids=["whole", "adapter"])
def test_a_folder_that_scores_otherwise_is_not_there_and_a_good_one_takes_its_place(
    adapter_only: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kind = "adapter" if adapter_only else "full"
    path = checkpoint_of(built(kind), pairs(), tmp_path / "run")
    inner = PAIRS[kind]()
    module = aligned(SafeDPO(), pair=Moved(inner.source, inner.adaptation, inner.reference))
    module.pair.by = 1e-3  # a few thousandths of a nat a response
    out = tmp_path / "out"
    assert export(module, pairs(), ckpt_path=path, out=str(out), adapter_only=adapter_only) == 1
    assert "is not written: log-probs differ" in caplog.text
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]
    module.pair.by = 0.0
    assert export(module, pairs(), ckpt_path=path, out=str(out), adapter_only=adapter_only) == 0
    assert (out / "README.md").exists()


def test_a_failure_while_writing_leaves_nothing_that_a_retry_refuses(tmp_path: Path) -> None:
    path, out = checkpoint_of(built("full"), pairs(), tmp_path / "run"), tmp_path / "out"
    module = aligned(SafeDPO(), pair=Moved(TinyLlama()))
    module.pair.fault = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space left"):
        export(module, pairs(), ckpt_path=path, out=str(out))
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]
    module.pair.fault = None
    (tmp_path / ".out.unfinished").mkdir()  # of an export that was killed
    out.mkdir()
    assert export(module, pairs(), ckpt_path=path, out=str(out)) == 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "run"]


class Unheld(Fruit):
    """Two rows, whose prompts the split puts into training."""

    def prompt(self, i: int) -> Any:
        return super().prompt(i + 2)


def test_without_held_out_rows_fixed_texts_are_compared(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = checkpoint_of(built("full"), pairs(), tmp_path / "run")
    with caplog.at_level("INFO"):
        assert export(built("full"), pairs(Unheld(2)), ckpt_path=path, out=str(tmp_path / "out")) == 0
    assert "compared only on fixed texts: the val split has no rows" in caplog.text


@pytest.mark.skipif(os.name != "posix", reason="modes are those of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o027], ids=["022", "027"])
def test_files_have_the_modes_of_the_umask(umask: int, tmp_path: Path) -> None:
    path, out = checkpoint_of(built("full"), pairs(), tmp_path / "run"), tmp_path / "out"
    before = os.umask(umask)
    try:
        export(built("full"), pairs(), ckpt_path=path, out=str(out))
    finally:
        os.umask(before)
    assert {file.name: file.stat().st_mode & 0o777 for file in out.iterdir()} == {
        file.name: 0o666 & ~umask for file in out.iterdir()
    }
    assert out.stat().st_mode & 0o777 == 0o777 & ~umask


BF16 = {
    "full": lambda: PolicyReference(InBf16()),
    "held in bf16": lambda: PolicyReference(InBf16(), trainable_dtype="bfloat16"),
    "adapter": lambda: PolicyReference(InBf16(), LoRA(r=2), AdapterOff()),
    "last layer over a bf16 trunk": lambda: PolicyReference(InBf16(), LastLayers(1)),
}


@pytest.mark.parametrize("kind", BF16)
def test_a_bf16_policy_is_compared_to_the_rounding_of_fp32(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = aligned(SafeDPO(), lr=1e-4, pair=BF16[kind]())
    trainer(tmp_path / "run", max_steps=3, precision="bf16-mixed", callbacks=[RunCheckpoint()],
            enable_checkpointing=True).fit(made, pairs())  # fmt: skip
    path, again = str(tmp_path / "run" / "checkpoints" / "last.ckpt"), aligned(SafeDPO(), pair=BF16[kind]())
    with caplog.at_level("INFO"):
        assert export(again, pairs(), ckpt_path=path, out=str(tmp_path / "out")) == 0
    gap, bound = (float(x) for x in re.findall(r"up to (\S+) nats per token \(bound (\S+)\)", caplog.text)[0])
    assert gap <= bound < 2e-5
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert read.dtype == (torch.bfloat16 if kind == "held in bf16" else torch.float32)


def test_large_models_are_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = checkpoint_of(built("full"), pairs(), tmp_path / "run"), tmp_path / "out"
    monkeypatch.setattr("models.export.SHARD", "50KB")
    assert export(built("full"), pairs(), ckpt_path=path, out=str(out)) == 0
    assert len(list(out.glob("model-*.safetensors"))) > 1
    assert (out / "model.safetensors.index.json").exists()


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ("dual: {limit: -0.5, lr: 0.1}", "cost limit: -0.5 (in units of the cost)"),
        (
            "dual: {limit: 0.5, lr: 0.0, margin: auto, controller: {class_path: a.b.PIDLagrangian}}",
            "cost limit: 0.5 (in units of the cost), by PIDLagrangian; the multiplier steered below it (margin auto)",
        ),
        (
            "dual: {limit: 0.5, lr: 0.0, controller: {class_path: a.b.Fixed}}",
            "cost limit: none: the multiplier did not move (controller Fixed)",
        ),
        ("dual: {limit: 0.0, lr: 0.0}", "cost limit: none: the multiplier did not move"),
        ("dual: {limit: null, lr: 0.1}", "cost limit: none: `dual.limit` is null"),
        (None, "cost limit: not known"),
    ],
    ids=["limit", "controller", "fixed multiplier", "no dual step", "no limit", "no configuration"],
)
def test_the_card_names_the_limit_and_the_data(config: str | None, line: str, tmp_path: Path) -> None:
    path = checkpoint_of(built("full"), pairs(), tmp_path / "run")
    if config is not None:
        (tmp_path / "run" / "config.yaml").write_text(config, encoding="utf-8")
    export(built("full"), pairs(), ckpt_path=path, out=str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert line in card
    assert "optimizer steps: 3, on 26 rows; 4 are held out" in card
