"""The 7B recipes train: two steps of each, on a tiny Llama with a tokenizer like Llama 2's, on rows of its set."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lit_safe.cli import main

CONFIGS = Path(__file__).parents[1] / "configs"
ROWS = 60


def llama_folder(folder: Path) -> str:
    """A random Llama in bfloat16 with a tokenizer of letters: a space first, a BOS by habit, no chat template."""
    letters = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *map(chr, range(33, 127)), "\u2581"]
    backend = Tokenizer(models.BPE({t: i for i, t in enumerate(letters)}, [], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    assert tokenizer.chat_template is None
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=4096, bos_token_id=1, eos_token_id=2, **sizes
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return str(folder)


def pku_30k(i: int) -> dict[str, Any]:
    return {
        "prompt": f"How is number {i}?",
        "response_0": f"Number {i} is well.",
        "response_1": f"Ask number {i + 1}.",
        "is_response_0_safe": i % 3 > 0,
        "is_response_1_safe": i % 4 > 0,
        "better_response_id": i % 2,
        "safer_response_id": int(i % 3 == 0),
    }


def scored(i: int) -> dict[str, Any]:
    prompt = [{"role": "user", "content": pku_30k(i)["prompt"]}]
    row = {"prompt": prompt, "chosen": f"Number {i} is well.", "rejected": f"Ask number {i + 1}.", "split_group": None}
    return row | {"chosen_reward": i % 5, "rejected_reward": 1.5, "chosen_cost": i % 3 - 1, "rejected_cost": 0.5}


class Length:
    """In place of a scorer of 7 billion weights."""

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> torch.Tensor:
        return torch.tensor([len(text) % 5 - 2.0 for text in responses])


def on_rows(value: Any, folder: Path) -> Any:
    """The recipe on files of ``folder``: each path by its split, and small evaluations with a scorer of no weights."""
    if isinstance(value, list):
        return [on_rows(part, folder) for part in value]
    if not isinstance(value, dict):
        return str(folder / "train.jsonl") if value == "beavertails_15k.jsonl" else value
    if "path" in value and "split" in value:
        name = value["split"].rpartition("_")[2]
        return value | {"path": str(folder / f"{name}.jsonl"), "split": "train"}
    if value.get("class_path", "").endswith("ScoreFolder"):
        return {"class_path": f"{__name__}.Length"}
    small = {"prompts": 3, "max_new_tokens": 3} if "samples_per_prompt" in value else {}
    return {key: on_rows(part, folder) for key, part in (value | small).items()}


RECIPES = {
    "safe_dpo_7b": (pku_30k, "safe_dpo_7b", []),
    "dpo_harmless over it": (pku_30k, "safe_dpo_7b", ["-c", str(CONFIGS / "baseline" / "dpo_harmless.yaml")]),
    "c_dpo_7b": (scored, "c_dpo_7b", []),
    "sft_7b": (pku_30k, "sft_7b", []),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_7b_recipe_trains_two_steps_on_rows_of_its_set_and_reports_on_its_test_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    row, name, more = RECIPES[recipe]
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.chdir(tmp_path)
    for split, numbers in (("train", range(ROWS)), ("test", range(ROWS, ROWS + 10))):
        lines = [json.dumps(row(i)) for i in numbers]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    model = llama_folder(tmp_path / "llama")
    experiment = yaml.safe_load((CONFIGS / "experiment" / f"{name}.yaml").read_text(encoding="utf-8"))
    (tmp_path / "here.yaml").write_text(yaml.safe_dump(on_rows(experiment, tmp_path)), encoding="utf-8")
    size = "rows_per_step" if name == "sft_7b" else "pairs_per_step"
    cli = main(
        [
            *("fit", "-c", str(CONFIGS / "base.yaml"), "-c", str(tmp_path / "here.yaml"), *more),
            *("--model.pair.source.name_or_path", model, f"--data.init_args.{size}", "4"),
            *("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.max_steps", "2"),
            *("--trainer.limit_val_batches", "0"),
        ]
    )
    assert cli.trainer.global_step == 2
    data = cli.datamodule
    prompt = data.tokenizer.decode(data.tokenised.prompt.at(0))
    assert prompt.replace("<s> ", "<s>") == "<s>BEGINNING OF CONVERSATION: USER: How is number 0? ASSISTANT:"
    assert data.stop_ids == {2}
    asked = {int("".join(filter(str.isdigit, one.text))) for one in data.prompts("val")}
    if name == "c_dpo_7b":  # pairs by hash; the prompts of the test split are asked
        assert set(range(ROWS, ROWS + 10)) <= asked
    else:  # the published splits as they are
        assert asked == set(range(ROWS, ROWS + 10))
        assert len(data.prompts("train")) == ROWS
    if name != "sft_7b":
        assert (tmp_path / "runs" / name / "report.json").exists()
