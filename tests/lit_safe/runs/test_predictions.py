"""``predict`` writes one row for each held-out pair: what the policy and its reference think of both responses."""

import logging
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

from data.annotators.scores import Score, Scores
from lit_safe.objectives import SafeDPO
from lit_safe.runs.prediction_file import FILE, PredictionFile
from lit_safe.training.sft import SupervisedFineTuning
from models.pair import PolicyReference
from models.sources import TinyLlama
from tests.lit_safe.pair_world import Fruit, adamw, aligned, pairs, plain_logp, talk, trainer
from tests.lit_safe.typed_world import Run, typed

__all__ = ["typed"]  # a fixture

HERE = Path(__file__).parent
LABELS = ("reward_chosen", "reward_rejected", "cost_chosen", "cost_rejected", "length_chosen", "length_rejected")


def predicted(module: Any, data: Any, folder: Path) -> dict[str, list[Any]]:
    trainer(folder, callbacks=[PredictionFile()]).predict(module, data)
    return pyarrow.parquet.read_table(folder / "predict" / FILE).to_pydict()


def moved(module: Any) -> Any:
    """The module with a policy that differs from its reference."""
    module.configure_model()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.pair.policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return module


def test_a_row_holds_what_policy_and_reference_give_both_responses_of_its_pair(tmp_path: Path) -> None:
    module, data = moved(aligned(SafeDPO())), pairs(Fruit(60), eval_batch_pairs=3)
    table = predicted(module, data, tmp_path)
    val = data.rows_of("val")
    assert table["pair_id"] == sorted(data.tokenised.pair_id[val].tolist())
    batches = list(data.val_dataloader())
    own = TinyLlama().load_model()
    expected = {}
    for name, model in (("logp", module.pair.policy.causal_lm), ("reference_logp", own)):
        logp = torch.cat([plain_logp(model, batch.sequences)[: 2 * len(batch.pair_id)] for batch in batches])
        expected |= {f"{name}_chosen": logp[0::2], f"{name}_rejected": logp[1::2]}
    at = {int(i): k for k, i in enumerate(torch.cat([batch.pair_id for batch in batches]))}
    order = [at[i] for i in table["pair_id"]]
    for name, values in expected.items():
        torch.testing.assert_close(torch.tensor(table[name]).double(), values[order], rtol=1e-4, atol=1e-4)
    found = {name: torch.tensor(values) for name, values in table.items()}
    for side in ("chosen", "rejected"):
        torch.testing.assert_close(
            found[f"logratio_{side}"], found[f"logp_{side}"] - found[f"reference_logp_{side}"], rtol=0, atol=1e-5
        )
        torch.testing.assert_close(found[f"implicit_reward_{side}"], 0.1 * found[f"logratio_{side}"])
    torch.testing.assert_close(
        found["margin"], found["logratio_chosen"] - found["logratio_rejected"], rtol=0, atol=1e-5
    )
    assert float(found["margin"].abs().min()) > 0


def test_a_row_holds_the_labels_of_its_pair_and_the_objectives_loss(tmp_path: Path) -> None:
    data = pairs(Fruit(60), eval_batch_pairs=3)
    table = predicted(aligned(), data, tmp_path)
    tokenised = data.tokenised
    for k, pair in enumerate(table["pair_id"]):
        (row,) = (tokenised.pair_id == pair).nonzero()[0]
        sides = [*tokenised.reward[row], *tokenised.cost[row, :, 0]]
        sides += [tokenised.chosen.sizes[row], tokenised.rejected.sizes[row]]
        assert [table[name][k] for name in LABELS] == pytest.approx(sides)
        assert table["prompt_id"][k] == tokenised.prompt_id[row]
    assert table["loss"] == pytest.approx([0.693147] * len(table["loss"]), abs=1e-5)  # no margin yet: log 2
    assert isinstance(table["length_chosen"][0], int)


def test_each_of_several_constraints_has_its_own_columns(tmp_path: Path) -> None:
    two = Scores((Score("cost"), Score("reward", threshold=0.5)), Score("reward"))
    table = predicted(aligned(), pairs(annotator=two), tmp_path)
    named = [name for name in table if name.startswith("cost")]
    assert named == ["cost_cost_chosen", "cost_cost_rejected", "cost_reward_chosen", "cost_reward_rejected"]


def test_fine_tuning_predicts_a_row_for_each_response(tmp_path: Path) -> None:
    module, data = SupervisedFineTuning(PolicyReference(TinyLlama()), adamw(1e-3)), talk(eval_batch_rows=3)
    table = predicted(module, data, tmp_path)
    assert table["row_id"] == sorted(data.tokenised.row_id[data.rows_of("val")].tolist())
    assert all(logp < -length for logp, length in zip(table["logp"], table["length"], strict=True))  # far from 1/e


def test_a_module_that_predicts_no_columns_is_named(tmp_path: Path) -> None:
    module = aligned()
    module.predict_step = lambda batch, batch_idx: torch.zeros(1)
    with pytest.raises(TypeError, match=r"PreferenceAlignment.predict_step must give a dictionary of columns"):
        predicted(module, pairs(), tmp_path)


def test_the_command_says_where_the_file_is(typed: Run, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lit_safe.runs.prediction_file"):
        typed("predict")
    said = [message for message in caplog.messages if message.startswith("predictions: ")]
    rows = pyarrow.parquet.read_table(Path("runs/x/predict") / FILE).num_rows
    assert said == [f"predictions: {rows} rows of 19 columns in runs/x/predict/{FILE}"]
    assert not list(Path("runs/x/predict").glob("*.tmp"))


def test_a_disk_that_is_full_is_named_with_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(table: object, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pyarrow.parquet, "write_table", full)
    with pytest.raises(OSError, match=FILE):
        predicted(aligned(), pairs(), tmp_path)
    assert not (tmp_path / "predict" / FILE).exists()


@pytest.mark.slow  # two processes import Lightning and transformers
def test_two_ranks_share_the_pairs_and_their_file_is_that_of_one(tmp_path: Path) -> None:
    script = [sys.executable, str(HERE / "predictions_two_ranks.py")]
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[2]), "OMP_NUM_THREADS": "1"}
    run = partial(subprocess.run, env=env, capture_output=True, encoding="utf-8", timeout=240, check=False)
    done = run([*script, str(tmp_path / "two")])
    assert done.returncode == 0, done.stderr
    alone = predicted(moved(aligned()), pairs(Fruit(60), eval_batch_pairs=3), tmp_path / "one")
    together = pyarrow.parquet.read_table(tmp_path / "two" / "predict" / FILE).to_pydict()
    assert len(alone["pair_id"]) % 2 == 1, "one rank has a filler"
    assert list(together) == list(alone)
    for name, values in alone.items():
        assert together[name] == pytest.approx(values, rel=1e-5, abs=1e-5), name
