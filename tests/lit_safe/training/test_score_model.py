"""Training a score model on a real (tiny) language model: losses, steps, cached hidden states, and what it writes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_safe.commands.export import export
from lit_safe.report.score_report import FOLDER, ScoreReport
from lit_safe.scorer_card import ScorerCard
from lit_safe.screen.closing import closing
from lit_safe.screen.opening import objective_in_words
from lit_safe.training.score_losses import CostLoss, RewardLoss
from lit_safe.training.score_model import ScoreModel
from models.adaptation import Full, LoRA
from models.score_network import ScoreNetwork
from models.scorers.score_folder import ScoreFolder
from models.sources import TinyLlama
from tests.lit_safe.pair_world import Fruit, adamw, pairs, trainer, weights


def scoring(
    lr: float = 1e-2, reward: bool = True, cost: bool = True, network: Any = None, **options: Any
) -> ScoreModel:
    losses = {"reward": RewardLoss() if reward else None, "cost": CostLoss() if cost else None}
    return ScoreModel(network or ScoreNetwork(TinyLlama()), **losses, optimizer=adamw(lr), **options)


def loaded(data: Any, module: ScoreModel) -> ScoreModel:
    data.setup()
    module.take_stop_tokens(data)
    module.configure_model()
    return module


def test_a_step_is_the_same_however_it_is_cut_and_with_or_without_the_cache(tmp_path: Path) -> None:
    ends = []
    for size in (1, 3, 8):
        module = scoring()
        trainer(tmp_path, max_epochs=1).fit(module, pairs(pairs_per_step=10, micro_batch_pairs=size))
        ends.append(weights(module))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=0, atol=1e-6)
    assert ends[0].abs().max() > 1e-3


def test_heads_on_a_frozen_trunk_train_alone_and_read_each_text_once(tmp_path: Path) -> None:
    module, data = scoring(), pairs()
    seen: list[int] = []
    read = module.pair.features
    module.pair.features = lambda sequences: (seen.append(len(sequences.cu_seqlens) - 1), read(sequences))[1]
    trainer(tmp_path, max_epochs=4).fit(module, data)
    assert {name for name, p in module.named_parameters() if p.requires_grad} == {"pair.head.weight"}
    texts = {(p.prompt_id, text) for p in data.pairs("train") for text in (p.row.chosen, p.row.rejected)}
    assert sum(seen) == len(texts)


@pytest.mark.parametrize("adaptation", [Full(), LoRA(r=2)], ids=["full", "lora"])
def test_a_trunk_that_trains_moves_with_its_heads(tmp_path: Path, adaptation: Any) -> None:
    module = scoring(network=ScoreNetwork(TinyLlama(), adaptation))
    before = {n: p.detach().clone() for n, p in loaded(pairs(), module).named_parameters() if p.requires_grad}
    run = trainer(tmp_path, max_epochs=2)
    run.fit(module, pairs())
    assert module.cache is None
    moved = [n for n, p in module.named_parameters() if p.requires_grad and not torch.equal(p.detach(), before[n])]
    assert "pair.head.weight" in moved
    assert len(moved) > 2


def test_the_losses_of_a_batch_are_those_of_its_responses_alone() -> None:
    data = pairs()
    module = loaded(data, scoring())
    torch.nn.init.normal_(module.pair.head.weight, generator=torch.Generator().manual_seed(0))
    batch = next(iter(data.train_dataloader()))[0]
    _, score_NK = module.scores(batch)
    lm = module.pair.trunk.causal_lm
    for n, ids in enumerate(batch.sequences.input_ids.split(batch.sequences.cu_seqlens.diff().tolist())):
        with torch.no_grad():
            hidden = lm.base_model(input_ids=ids[None]).last_hidden_state[0, -1]
        torch.testing.assert_close(score_NK[n], module.pair.head.weight @ hidden, rtol=1e-4, atol=1e-5)
    losses = module.losses(batch, score_NK)
    assert list(losses) == ["reward", "cost"]
    cost_N = score_NK[:, 1].double()
    label = batch.label.cost
    expected = CostLoss()(
        type(label)(cost_N[0::2], cost_N[1::2]), type(label)(label.chosen.double(), label.rejected.double())
    )
    torch.testing.assert_close(losses["cost"].loss.double(), expected.loss, rtol=1e-5, atol=1e-6)


def test_it_learns_which_fruit_is_unsafe_and_writes_a_model_that_stock_transformers_reads(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    module, data = scoring(lr=3e-2), pairs(Fruit(128))
    run = trainer(tmp_path, max_epochs=30, callbacks=[ScoreReport()])
    run.fit(module, data)
    curves = {name: value.item() for name, value in run.callback_metrics.items()}
    assert curves["train/rewards/accuracies"] > 0.9
    folder = tmp_path / FOLDER
    card = ScorerCard.load(folder)
    assert card.trained_on == ("train",)
    assert card.units == {"reward": "nats", "cost": "log_odds"}
    assert card.quality["reward"].auc > 0.6
    assert card.quality["reward"].hits is None
    assert card.quality["cost"].hits > card.quality["cost"].false_alarms, "the zero is where calibration puts it"
    assert card.calibration["cost"].keys() >= {"slope", "intercept"}
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"] == {"0": "reward", "1": "cost"}
    scorer = ScoreFolder(str(folder), outputs=["reward", "cost"])
    held_out = data.pairs("val")
    prompts, responses = [p.text for p in held_out], [p.row.chosen for p in held_out]
    ours = scorer(prompts, responses)
    stock = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [scorer._loaded()[1].ids(*pair) for pair in zip(prompts, responses, strict=True)]
    for side in ("left", "right"):
        tokenizer.padding_side = side
        padded = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        with torch.no_grad():
            theirs = stock(**padded).logits
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)


def test_a_run_says_which_losses_train_and_where_the_scorer_will_be(tmp_path: Path) -> None:
    module = scoring()
    assert objective_in_words(module).startswith("RewardLoss: magnitude 0.001; CostLoss: ranking 1")
    run = trainer(tmp_path)
    lines = " ".join(closing(run, module, None, 1.0, []))
    assert "imitation" not in lines
    assert "score_model" in lines


def test_export_refuses_a_score_model_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a score model is written by fit"):
        export(scoring(), pairs(), ckpt_path="last.ckpt", out=str(tmp_path / "out"))
