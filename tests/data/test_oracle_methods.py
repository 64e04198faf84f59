"""Every method has its file, its optimum or the reason why it has none, and a line in the table of the documents."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, logsumexp

import lit_safe.objectives
from data.oracle.study import Job
from data.oracle.study.methods import METHODS, compare, document, jobs_of, table
from data.oracle.study.methods_plot import plot_methods
from data.oracle.truth.measure import OracleMeasure
from data.oracle.truth.optimum import per_token, tilt
from data.oracle.world import oracle_world
from lit_safe.objectives import LengthNormalisedDPO, SimPO
from lit_safe.types import Annotation, Extra, Pair
from tests.data.test_oracle_measure import PROMPTS, theatre, vocabulary

__all__ = ["vocabulary"]  # a fixture

DOCS = Path(__file__).parents[2] / "docs"
LENGTH = torch.tensor([1.0, 2.0, 5.0, 3.0], dtype=torch.float64)
REWARD = torch.tensor([0.3, -1.0, 1.5, 0.0], dtype=torch.float64)
REFERENCE = torch.tensor([0.4, 0.1, 0.2, 0.3], dtype=torch.float64).log()


def slope(objective: Any, score_K: torch.Tensor) -> torch.Tensor:
    """The gradient [K] of the mean loss over all pairs, each order by its Bradley-Terry probability."""
    score_K = score_K.clone().requires_grad_()
    one, other = (index.flatten() for index in torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"))
    share = torch.from_numpy(expit((REWARD[one] - REWARD[other]).numpy()))
    nothing = Pair(torch.full_like(share, torch.nan), torch.full_like(share, torch.nan))
    pair, extra = Pair(score_K[one], score_K[other]), Extra(length=Pair(LENGTH[one], LENGTH[other]))
    scored = objective(pair, Annotation(nothing, nothing), torch.tensor(0.0), extra)
    (gradient,) = torch.autograd.grad((share * scored.loss).sum(), score_K)
    return gradient


@pytest.mark.parametrize("objective", [LengthNormalisedDPO(beta=2.0), SimPO(beta=2.0, gamma=0.0)])
def test_a_loss_on_scores_per_token_is_least_at_its_closed_form(objective: Any) -> None:
    free = isinstance(objective, SimPO)
    base = torch.zeros(4, dtype=torch.float64) if free else REFERENCE
    row = [np.append(part.numpy(), np.nan)[None] for part in (base, REWARD)]
    (logp,) = per_token(row[0], row[1], LENGTH.numpy(), 2.0)
    assert logp[-1] == -np.inf, "malformed text has no length"
    assert logsumexp(logp) == pytest.approx(0)
    best = torch.from_numpy(logp[:-1].copy())
    at_best = slope(objective, best if free else best - REFERENCE)
    torch.testing.assert_close(at_best, torch.zeros_like(at_best), rtol=0, atol=1e-12)
    assert slope(objective, REFERENCE if free else torch.zeros_like(base)).abs().max() > 0.1


def test_with_responses_of_one_length_the_optimum_per_token_is_dpos() -> None:
    row = [np.append(part.numpy(), -np.inf)[None] for part in (REFERENCE, REWARD)]
    row[1][0, -1] = 0.0
    same = per_token(*row, np.full(4, 3.0), 6.0)
    assert np.exp(same) == pytest.approx(np.exp(tilt(*row, np.zeros((1, 5, 1)), 0.0, 2.0)))


def test_a_run_without_a_reference_is_measured_against_the_tabled_one(tmp_path: Path, vocabulary: str) -> None:
    world = oracle_world(PROMPTS)
    tabled_PK = np.full(world.reward_PK.shape, -np.log(world.reward_PK.shape[1]))
    np.savez(tmp_path / "reference.npz", reference_PK=tabled_PK)
    oracle = OracleMeasure(beta=2.0, optimum="per_token", prompts=PROMPTS, reference=str(tmp_path / "reference.npz"))
    _, module = theatre(tmp_path, vocabulary, oracle, epochs=1, objective=SimPO(beta=2.0, gamma=0.0))
    assert not module.pair.has_reference
    result = json.loads((tmp_path / "oracle.json").read_text(encoding="utf-8"))
    assert result["reference"]["kl"] == pytest.approx(0, abs=1e-9)
    assert result["reference"]["wellformed/regret_share"] == pytest.approx(1)
    assert result["curve"][0]["values"]["kl"] > 1  # the untrained policy is not the tabled reference
    assert result["at_optimum"]["wellformed/regret_share"] == pytest.approx(0, abs=1e-9)
    assert result["at_optimum"]["malformed"] == 0


def test_where_no_optimum_is_known_there_is_no_regret(tmp_path: Path, vocabulary: str) -> None:
    theatre(tmp_path, vocabulary, OracleMeasure(beta=1.0, optimum="none", prompts=PROMPTS), epochs=1)
    result = json.loads((tmp_path / "oracle.json").read_text(encoding="utf-8"))
    assert result["final"]["wellformed/regret_share"] is None
    assert set(result["at_optimum"].values()) == {None}
    assert result["final"]["reward"] is not None


def test_a_table_of_another_world_is_refused(tmp_path: Path, vocabulary: str) -> None:
    np.savez(tmp_path / "other.npz", reference_PK=np.zeros((1, 3)))
    oracle = OracleMeasure(beta=1.0, optimum="none", prompts=PROMPTS, reference=str(tmp_path / "other.npz"))
    with pytest.raises(ValueError, match=r"other.npz has a table of \(1, 3\)"):
        theatre(tmp_path, vocabulary, oracle, epochs=1)


def test_every_objective_of_the_library_is_compared() -> None:
    chosen = [job.config["model"]["init_args"]["objective"] for job in jobs_of(METHODS, [0])]
    inner = [one["init_args"]["objective"] for one in chosen if one["class_path"].endswith(".BothOrders")]
    named = {one["class_path"].rpartition(".")[2] for one in (*chosen, *inner)}
    ablations = {"SafetyOffsetDPO"}  # of SafeDPO: `reproduce` runs it
    assert named == set(lit_safe.objectives.__all__) - ablations
    assert len({job.name for job in jobs_of(METHODS, [0])}) == len(METHODS)
    assert len({job.options for job in jobs_of(METHODS, [0, 1])}) == 1  # the same steps for all


def test_a_method_says_that_it_has_no_optimum_where_its_file_does() -> None:
    for method in METHODS:
        aim = Job(method.objective, method.anchor, 0).aim["optimum"]
        assert (aim == "none") is bool(method.without), method.name


def test_a_file_names_the_optimum_of_its_own_objective_and_order() -> None:
    """Of the tilts, that by the reward alone is DPO's on the helpful order, and that at a multiplier C-DPO's."""
    for path in sorted((DOCS.parent / "configs" / "oracle").glob("*.yaml")):
        if path.stem in ("sft", "preference"):
            continue
        job = Job(path.stem, "none", 0)
        config, aim = job.config, job.aim["optimum"]
        model = config["model"]["init_args"]
        name, multiplier = model["objective"]["class_path"].rpartition(".")[2], model.get("multiplier", 0.0)
        order = config.get("data", {}).get("init_args", {}).get("order", "helpful")
        of = {
            "tilt": name in ("DPO", "ConstrainedDPO") and multiplier == 0 and order == "helpful",
            "masked": name == "SafeDPO",
            "tilt_at_multiplier": name == "ConstrainedDPO" and "dual" not in config,
        }
        assert of.get(aim, True), f"{path.name}: {aim}"
        assert order == "helpful" or aim == "none", path.name


def made(*names: str) -> dict[str, Any]:
    """Made-up figures of methods, as ``methods.json`` has them."""
    figures = {"reward": 1.2345, "cost": -0.1, "unsafe": 0.3, "malformed": 0.01, "malformed_worst": 0.02, "kl": 0.5}
    methods = [
        {
            "name": name,
            "optimum": optimum,
            "measured": {
                key: {"mean": value, "stderr": 0.002, "most": value}
                for key, value in {**figures, "wellformed/regret_share": 0.0123 if share else None}.items()
            },
            "seeds": [{"seed": 0, **figures}, {"seed": 1, **figures}],
            "at_optimum": {"reward": 1.3, "cost": -0.11} if share else {"reward": None, "cost": None},
        }
        for name, optimum, share in zip(names, ("tilt", "none", "diverges"), (True, False, False), strict=True)
    ]
    for method in methods:  # what results over seeds have where a figure is not known
        regret = method["measured"]["wellformed/regret_share"]
        regret.update(dict.fromkeys(regret) if regret["mean"] is None else {})
    return {
        "reference": figures,
        "frontier": {"multiplier": [0.0, 1.0], "reward": [1.4, 1.0], "cost": [0.0, -0.2]},
        "methods": methods,
    }


def test_the_table_gives_regret_or_the_reason_why_there_is_none() -> None:
    *_, first, second, third = table(made("A", "B", "C")).splitlines()
    assert first.split(" | ")[1:] == [
        "A", "1.234 ± 0.002", "-0.100 ± 0.002", "30.0 ± 0.2", "1.00 ± 0.20 / 2.00", "0.50 ± 0.00", "1.300, -0.110",
        "1.2 ± 0.2 |",
    ]  # fmt: skip
    assert second.split(" | ")[-2:] == ["no optimum known", "- |"]
    assert third.split(" | ")[-2:] == ["optimum at infinity", "- |"]


def test_the_figure_is_drawn_of_every_method(tmp_path: Path) -> None:
    plot_methods(made("A", "B", "C"), tmp_path / "m.png")
    assert (tmp_path / "m.png").stat().st_size > 10_000


def shown() -> dict[str, Any]:
    """The figures that the documents show."""
    content: dict[str, Any] = json.loads((DOCS / "methods.json").read_text(encoding="utf-8"))
    return content


def test_the_page_has_the_table_of_the_stored_figures() -> None:
    assert table(shown()) in (DOCS / "objectives.md").read_text(encoding="utf-8")
    names, order = [method["name"] for method in shown()["methods"]], [method.name for method in METHODS]
    assert names == [name for name in order if name in names]


def test_the_documents_are_written_from_the_figures(tmp_path: Path) -> None:
    (tmp_path / "objectives.md").write_text("a\n<!-- methods -->\nold\n<!-- end -->\nb", encoding="utf-8")
    document(tmp_path, shown())
    assert (tmp_path / "objectives.md").read_text(encoding="utf-8").startswith("a\n<!-- methods -->\n\n| # | method")
    assert json.loads((tmp_path / "methods.json").read_text(encoding="utf-8")) == shown()
    assert {path.name for path in tmp_path.iterdir()} == {"objectives.md", "methods.json", "methods.png"}


def test_runs_of_no_method_are_refused() -> None:
    with pytest.raises(ValueError, match="no runs of DPO"):
        compare(None, METHODS[:1], [])  # type: ignore[arg-type]  # not read
