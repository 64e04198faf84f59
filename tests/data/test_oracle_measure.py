"""A run is measured beside its optimum, and measuring leaves it as it was."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint

from data.annotators.scores import Score, Scores
from data.module import PreferenceData
from data.oracle.truth.enumeration import enumerate_policy, world_ids
from data.oracle.truth.exact_cost import ExactCost
from data.oracle.truth.measure import OracleMeasure
from data.oracle.truth.optimum import measure, solve_multiplier, tilt
from data.oracle.world import language, oracle_world
from data.oracle.world.sources import OraclePairs
from lit_safe.constraint.dual_ascent import DualAscent
from lit_safe.objectives import DPO, ConstrainedDPO
from lit_safe.runs.run_checkpoint import RunCheckpoint
from lit_safe.training.module import PreferenceAlignment
from models.pair import PolicyReference
from models.sources import TinyLlama

PROMPTS = 4  # of the world: all in the train split
SOFT = ConstrainedDPO(beta=1.0)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("vocabulary")
    language.save(folder)
    return str(folder)


def theatre_data(costs: str = "worst", flip: float = 0.0) -> PreferenceData:
    columns = ("cost",) if costs == "worst" else oracle_world(PROMPTS, "each").constraints
    return PreferenceData(
        sources=[OraclePairs(pairs=32, prompts=PROMPTS, costs=costs, flip=flip)],
        annotator=Scores(tuple(map(Score, columns)), Score("reward")),
        pairs_per_step=8, micro_batch_pairs=8,
    )  # fmt: skip


def theatre(
    folder: Path,
    vocabulary: str,
    *callbacks: Callback,
    costs: str = "worst",
    epochs: int = 2,
    ckpt: str | None = None,
    objective: Any = SOFT,
    flip: float = 0.0,
) -> tuple[Trainer, PreferenceAlignment]:
    """A short C-DPO run in the oracle world."""
    pair = PolicyReference(TinyLlama(1, 16, tokenizer=vocabulary, positions=64))
    multiplier = 0.3 if costs == "worst" else [0.3] * 3
    module = PreferenceAlignment(pair, objective, lambda p: torch.optim.Adam(p, 3e-3), None, multiplier)
    data = theatre_data(costs, flip)
    data.connect(pair)
    trainer = Trainer(
        max_epochs=epochs, default_root_dir=folder, callbacks=[*callbacks], logger=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, use_distributed_sampler=False,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=ckpt)
    return trainer, module


def test_a_run_is_measured_beside_its_optimum(tmp_path: Path, vocabulary: str) -> None:
    oracle = OracleMeasure(beta=1.0, limit=-0.2, optimum="tilt_at_limit", prompts=PROMPTS)
    trainer, _ = theatre(tmp_path, vocabulary, oracle)
    result = json.loads((tmp_path / "oracle.json").read_text(encoding="utf-8"))
    world = oracle_world(PROMPTS)
    tables = np.load(tmp_path / "oracle.npz")
    given = (tables["reference_PK"], world.reward_PK, world.cost_PKC)

    assert [(point["epoch"], point["step"]) for point in result["curve"]] == [(0, 0), (1, 4), (2, 8)]
    start, end = result["curve"][0]["values"], result["final"]
    assert start == result["reference"]  # the policy before training is the reference
    assert start["regret_share"] == pytest.approx(1)
    assert start["kl"] == pytest.approx(0, abs=1e-9)
    assert end == result["curve"][-1]["values"]
    assert end != start
    assert end["reward"] == pytest.approx(measure(tables["policy_PK"], *given).reward)
    assert trainer.callback_metrics["oracle/reward"].item() == pytest.approx(end["reward"])
    assert result["multiplier_at_optimum"] == pytest.approx(solve_multiplier(*given, limit=-0.2, beta=1.0).tolist())
    assert result["at_optimum"]["cost"] == pytest.approx(-0.2, abs=1e-5)
    assert result["at_optimum"]["regret_share"] == pytest.approx(0, abs=1e-9)
    assert result["multiplier"] == pytest.approx([0.3])
    costs = np.array(result["frontier"]["cost"])[:, 0]
    assert (np.diff(costs) <= 1e-12).all()
    assert costs[0] == pytest.approx(measure(tilt(*given, 0.0, 1.0), *given).cost[0])


def test_a_run_at_a_fixed_multiplier_is_measured_beside_the_tilt_at_it(tmp_path: Path, vocabulary: str) -> None:
    oracle = OracleMeasure(beta=1.0, optimum="tilt_at_multiplier", prompts=PROMPTS)
    theatre(tmp_path, vocabulary, oracle, epochs=1, objective=ConstrainedDPO(beta=1.0, labels="sampled"))
    result = json.loads((tmp_path / "oracle.json").read_text(encoding="utf-8"))
    tables = np.load(tmp_path / "oracle.npz")
    given = [tables[name] for name in ("reference_PK", "reward_PK", "cost_PKC")]
    best = measure(tilt(*given, 0.3, 1.0), *given)
    assert result["multiplier_at_optimum"] == pytest.approx([0.3])
    assert result["at_optimum"]["reward"] == pytest.approx(best.reward)
    assert result["at_optimum"]["cost"] == pytest.approx(best.cost[0])


def population(folder: Path, vocabulary: str, objective: Any, flip: float = 0.0) -> tuple[dict[str, Any], Any]:
    """What a run is compared with in a world of one prompt, and that world's tables."""
    oracle = OracleMeasure(beta=1.0, optimum="population", prompts=1, flip=flip)
    theatre(folder, vocabulary, oracle, epochs=1, objective=objective, flip=flip)
    tables = np.load(folder / "oracle.npz")
    return json.loads((folder / "oracle.json").read_text(encoding="utf-8")), [
        tables[name] for name in ("reference_PK", "reward_PK", "cost_PKC")
    ]


def test_the_population_optimum_of_soft_c_dpo_is_the_tilt_at_its_multiplier(tmp_path: Path, vocabulary: str) -> None:
    result, given = population(tmp_path, vocabulary, ConstrainedDPO(beta=1.0))
    assert not result["diverges"]
    assert result["multiplier_at_optimum"] == pytest.approx([0.3])
    best = measure(tilt(*given, 0.3, 1.0), *given)
    assert result["at_optimum"]["wellformed/reward"] == pytest.approx(best.reward_wellformed, abs=1e-5)
    assert result["at_optimum"]["malformed"] == pytest.approx(best.malformed, abs=1e-5)


def test_with_flipped_orders_dpo_aims_at_a_smaller_gain(tmp_path: Path, vocabulary: str) -> None:
    gains = []
    for flip in (0.0, 0.2):
        result, _ = population(tmp_path / str(flip), vocabulary, DPO(beta=1.0), flip)
        assert not result["diverges"]
        gains.append(result["at_optimum"]["wellformed/reward"] - result["reference"]["wellformed/reward"])
    assert 0 < gains[1] < 0.5 * gains[0]


def test_hard_labels_have_no_optimum_to_be_compared_with(tmp_path: Path, vocabulary: str) -> None:
    result, _ = population(tmp_path, vocabulary, ConstrainedDPO(beta=1.0, labels="hard"))
    assert result["diverges"]
    assert result["final"]["regret_share"] is None
    assert set(result["at_optimum"].values()) == {None}


def test_a_flip_that_is_not_the_datas_is_refused(tmp_path: Path, vocabulary: str) -> None:
    oracle = OracleMeasure(beta=1.0, optimum="population", prompts=1, flip=0.1)
    with pytest.raises(ValueError, match=r"0\.1 here and 0\.0 in the data"):
        theatre(tmp_path, vocabulary, oracle)


def test_measuring_changes_nothing_of_a_run(tmp_path: Path, vocabulary: str) -> None:
    _, measured = theatre(tmp_path / "a", vocabulary, OracleMeasure(beta=1.0, prompts=PROMPTS))
    _, plain = theatre(tmp_path / "b", vocabulary)
    assert all(torch.equal(a, b) for a, b in zip(measured.parameters(), plain.parameters(), strict=True))


def test_every_constraint_has_its_own_figures(tmp_path: Path, vocabulary: str) -> None:
    oracle = OracleMeasure(
        beta=1.0, limit=[-0.1, -0.1, -0.1], optimum="tilt_at_limit", prompts=PROMPTS, costs="each", every_n_epochs=2
    )
    dual = DualAscent(limit=-0.1, lr=0.5, estimator=ExactCost(prompts=PROMPTS, costs="each"))
    theatre(tmp_path, vocabulary, oracle, dual, costs="each")  # named before it, and yet comes after it
    result = json.loads((tmp_path / "oracle.json").read_text(encoding="utf-8"))
    assert [point["epoch"] for point in result["curve"]] == [0, 2]
    assert result["curve"][-1]["multiplier"] == result["multiplier"] != [0.3] * 3
    assert [point["step"] for point in result["multiplier_path"]] == [0, 4, 8]  # epochs that are not measured too
    assert result["multiplier_path"][-1]["multiplier"] == result["multiplier"]
    names = oracle_world(PROMPTS, "each").constraints
    assert len(result["multiplier"]) == len(result["multiplier_at_optimum"]) == len(names) == 3
    assert {f"cost_{name}" for name in names} <= set(result["final"])


class Stop(Exception):
    """The run was killed."""


class KillAfter(Callback):
    """Ends a run in the first step after an epoch."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.current_epoch == self.epochs:
            raise Stop


def test_a_resumed_run_has_the_whole_curve(tmp_path: Path, vocabulary: str) -> None:
    def oracle() -> OracleMeasure:
        return OracleMeasure(beta=1.0, limit=-0.2, prompts=PROMPTS)

    theatre(tmp_path / "whole", vocabulary, oracle(), epochs=3)
    with pytest.raises(Stop):
        theatre(tmp_path / "part", vocabulary, RunCheckpoint(), oracle(), KillAfter(1), epochs=3)
    kept = str(tmp_path / "part" / "checkpoints" / "last.ckpt")
    theatre(tmp_path / "part", vocabulary, RunCheckpoint(), oracle(), epochs=3, ckpt=kept)
    whole, part = (
        json.loads((tmp_path / name / "oracle.json").read_text(encoding="utf-8")) for name in ("whole", "part")
    )
    assert part["curve"] == whole["curve"]
    assert part["multiplier_path"] == whole["multiplier_path"]
    assert part["final"] == whole["final"]
    assert part["seconds"]["training"] > 0


def test_the_shipped_average_is_what_is_measured_at_the_end(tmp_path: Path, vocabulary: str) -> None:
    dual = DualAscent(limit=-0.3, lr=1.0, estimator=ExactCost(prompts=PROMPTS), ship="average")
    _, module = theatre(tmp_path, vocabulary, OracleMeasure(beta=1.0, prompts=PROMPTS), dual)
    result = json.loads((tmp_path / "oracle.json").read_text(encoding="utf-8"))
    assert result["multiplier"] == module.multiplier.reshape(-1).tolist() != result["curve"][-1]["multiplier"]
    assert result["final"] != result["curve"][-1]["values"]


def test_the_exact_cost_is_the_mean_of_long_sampling(vocabulary: str) -> None:
    """With 4 prompts and 40,000 responses to each drawn from the table, the mean is within 4 of its errors."""
    pair = PolicyReference(TinyLlama(1, 16, tokenizer=vocabulary, positions=64, spread=0.3))
    data = theatre_data()
    data.connect(pair)
    data.setup()
    pair.load()
    world = oracle_world(PROMPTS)
    module = PreferenceAlignment(pair, ConstrainedDPO())
    estimate = ExactCost(prompts=PROMPTS)(module, data, seed=0, epoch=0)
    logp_PK = enumerate_policy(pair, *world_ids(world, data))
    random = np.random.default_rng(0)
    drawn = [
        random.choice(world.cost_PKC[p, :, 0], 40_000, p=np.exp(logp_PK[p])) for p in range(PROMPTS)
    ]  # malformed text, nearly all that this policy says, included
    assert estimate.mean.item() == pytest.approx(
        np.mean(drawn), abs=4 * np.std(drawn) / math.sqrt(np.size(drawn)) + 1e-9
    )
    assert estimate.stderr == 0
    assert estimate.count == PROMPTS
    assert estimate.mean.shape == ()
    train_alone = ExactCost(prompts=PROMPTS, split="train")(module, data, seed=0, epoch=0)
    assert train_alone.mean.item() == pytest.approx(estimate.mean.item())  # all of these prompts are there


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"beta": 0.0}, "beta must be"),
        ({"optimum": "tilt_at_limit"}, "needs a limit"),
        ({"optimum": "best"}, "optimum must be one of"),
        ({"every_n_epochs": 0}, "must be >= 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        OracleMeasure(**{"beta": 1.0, **options})


@pytest.mark.parametrize(
    ("oracle", "said"),
    [
        (OracleMeasure(beta=0.5, prompts=PROMPTS), "0.5 here and 1.0 in the objective"),
        (OracleMeasure(beta=1.0, limit=-9.0, optimum="tilt_at_limit", prompts=PROMPTS), "beyond reach"),
    ],
)
def test_a_run_that_has_no_such_optimum_does_not_begin(
    tmp_path: Path, vocabulary: str, oracle: OracleMeasure, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        theatre(tmp_path, vocabulary, oracle)
