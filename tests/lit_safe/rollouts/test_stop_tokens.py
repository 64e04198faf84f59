"""A policy stops where training says that a response ends, in every command and in its export."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from lightning import Callback

from data.schema import SftRow
from lit_safe.anchors.reference_mass import ReferenceMass
from lit_safe.commands.export import export
from lit_safe.commands.refusals import refusals
from lit_safe.commands.sample import sample
from lit_safe.constraint.costs.rollout import RolloutCost
from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.evaluation.evaluate import evaluate
from lit_safe.hashing import uniforms
from lit_safe.runs.run_checkpoint import RunCheckpoint
from lit_safe.training.sft import SupervisedFineTuning
from models.adaptation import LoRA
from models.export import eos_ids
from models.pair import PolicyReference
from models.reference import AdapterOff
from models.sources import TinyLlama
from tests.lit_safe.pair_world import FruitTalk, adamw, aligned, pairs, talk, trainer

END_OF_TEXT, END_OF_TURN = 256, 258


@dataclass(frozen=True)
class BaseModel(TinyLlama):
    """A base model: its end of sequence is <|endoftext|>, and the chat template ends turns with <|im_end|>."""

    def load_tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        tokenizer = super().load_tokenizer()
        tokenizer.eos_token = tokenizer.pad_token = "<|endoftext|>"
        return tokenizer


class Yes(FruitTalk):
    """One short answer to everything."""

    def __iter__(self) -> Iterator[SftRow]:
        for i in range(self.count):
            yield SftRow(f"yes:{i}", self.prompt(i), "yes")


def fine_tuned() -> SupervisedFineTuning:
    return SupervisedFineTuning(PolicyReference(BaseModel()), adamw(1e-2))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a base model that was fine-tuned on the template."""
    folder = tmp_path_factory.mktemp("run")
    options = {"max_epochs": 6, "callbacks": [RunCheckpoint()], "enable_checkpointing": True}
    trainer(folder, **options).fit(fine_tuned(), talk(Yes()))
    return folder / "checkpoints" / "last.ckpt"


def test_the_tokens_of_base_model_and_template_are_what_these_tests_take_them_for() -> None:
    tokenizer = BaseModel().load_tokenizer()
    assert tokenizer.eos_token_id == END_OF_TEXT
    assert talk(Yes()).stop_ids == {END_OF_TURN}
    assert tokenizer.decode([END_OF_TURN]) == "<|im_end|>"


def test_a_base_model_fine_tuned_on_a_template_stops_where_its_training_did(run: Path, tmp_path: Path) -> None:
    module, data = fine_tuned(), talk(Yes())
    data.connect(module)
    options = {"ckpt_path": str(run), "split": "val", "samples_per_prompt": 2, "temperature": 0.1, "max_new_tokens": 20}
    sample(module, data, out=str(tmp_path / "out.jsonl"), **options)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {(line["response"], line["complete"]) for line in lines} == {("yes", True)}


def test_its_export_stops_in_transformers_own_generate(run: Path, tmp_path: Path) -> None:
    data = talk(Yes())
    assert export(fine_tuned(), data, ckpt_path=str(run), out=str(tmp_path / "out"), check_pairs=0) == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert eos_ids(model.generation_config) == {END_OF_TEXT, END_OF_TURN}
    prompt = torch.tensor([data.prompts("val")[0].ids])
    answer = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False)
    assert data.decode(answer[0, prompt.shape[1] :].tolist()) == "yes"
    assert int(answer[0, -1]) == END_OF_TURN


def test_the_checkpoints_policy_knows_its_stop_tokens_without_the_data(run: Path, tmp_path: Path) -> None:
    module = fine_tuned()
    module.configure_model()
    module.load_state_dict(torch.load(run, weights_only=True)["state_dict"])
    assert module.pair.stop_tokens() == {END_OF_TEXT, END_OF_TURN}
    module.pair.save_pretrained(str(tmp_path / "out"))
    written = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert eos_ids(written) == {END_OF_TEXT, END_OF_TURN}


def test_a_checkpoint_of_an_earlier_version_names_no_stop_tokens_and_loads() -> None:
    pair = PolicyReference(BaseModel())
    pair.load()
    pair.set_extra_state({"base_fingerprint": pair.base_fingerprint()})
    assert pair.stop_tokens() == {END_OF_TEXT}


def test_stop_tokens_that_a_model_came_with_are_kept(tmp_path: Path) -> None:
    pair = PolicyReference(BaseModel(), LoRA(r=2), AdapterOff())
    pair.load()
    pair.policy.causal_lm.generation_config.eos_token_id = [7, END_OF_TEXT]
    pair.stop_at([END_OF_TURN])
    for adapter_only in (False, True):
        pair.save_pretrained(str(tmp_path / str(adapter_only)), adapter_only=adapter_only)
        written = transformers.GenerationConfig.from_pretrained(tmp_path / str(adapter_only))
        assert written.eos_token_id == [7, END_OF_TEXT, END_OF_TURN]
    assert pair.policy.causal_lm.generation_config.eos_token_id == [7, END_OF_TEXT], "the model itself is left alone"


class Lively(PolicyReference):
    """Notes the tokens at which a response could end whenever it answers."""

    def load(self) -> None:
        super().load()
        self.stopped_at: list[frozenset[int]] = []

    def generate(self, prompts: Any, *given: Any, **named: Any) -> list[list[int]]:
        self.stopped_at.append(self.stop_tokens())
        return super().generate(prompts, *given, **named)


def length(prompts: Any, responses: Any) -> torch.Tensor:
    return torch.tensor([float(len(text)) for text in responses])


class Evaluates(Callback):
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        evaluate(pl_module, trainer.datamodule, cost=length, prompts=2, max_new_tokens=2)


def test_rollouts_evaluation_anchor_and_refusals_stop_at_the_templates_token(tmp_path: Path) -> None:
    small = {"prompts": 2, "max_new_tokens": 2}
    anchor = ReferenceMass(samples_per_prompt=2, samples_per_step=2, max_prompts=2, max_new_tokens=2)
    module = aligned(pair=Lively(BaseModel()), anchor=anchor)
    callbacks = [DualAscent(estimator=RolloutCost(length, **small)), Evaluates()]
    trainer(tmp_path, max_epochs=1, callbacks=[*callbacks, RunCheckpoint()], enable_checkpointing=True).fit(
        module, pairs()
    )
    assert len(module.pair.stopped_at) >= 4  # the anchor's, the estimator's, the evaluation's of both models
    assert set(module.pair.stopped_at) == {frozenset({END_OF_TEXT, END_OF_TURN})}

    (tmp_path / "asked.csv").write_text("prompt,label\nMay I?,safe\n", encoding="utf-8")
    asking = aligned(pair=Lively(BaseModel()))
    checkpoint, out = str(tmp_path / "checkpoints" / "last.ckpt"), str(tmp_path / "out.json")
    files = {"prompts": str(tmp_path / "asked.csv"), "ckpt_path": checkpoint, "out": out}
    refusals(asking, pairs(), judge=length, max_new_tokens=2, **files)
    assert set(asking.pair.stopped_at) == {frozenset({END_OF_TEXT, END_OF_TURN})}


def test_a_response_stops_at_any_of_several_tokens_and_at_the_first_of_them() -> None:
    pair = PolicyReference(BaseModel(spread=0.5))
    pair.load()
    pair.stop_at([END_OF_TURN, 5])
    numbers = torch.stack([uniforms(60, "several", i) for i in range(40)])
    responses = pair.generate([[1, 2, 3]] * 40, numbers, temperature=9.0)
    ends = {r[-1] for r in responses if len(r) < 60}
    assert ends <= {END_OF_TEXT, END_OF_TURN, 5}
    assert len(ends) > 1
    assert not any(token in {END_OF_TEXT, END_OF_TURN, 5} for r in responses for token in r[:-1])
