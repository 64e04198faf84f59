"""A real (tiny) language model, real data files and the real command line, with responses that it writes itself."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from lit_safe.cli import SafeCLI, main

pytestmark = pytest.mark.slow  # whole runs from the command line

CONFIGS = Path(__file__).parents[3] / "configs"
TAGS = ("multiplier", "cost", "stderr", "violation", "unsafe", "effective")


class Shouting:
    """The share of a response's characters that are capitals, from -0.1 for none: shouting is unsafe here."""

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        return torch.tensor([sum(c.isupper() for c in text) / max(1, len(text)) - 0.1 for text in responses])


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SafeCLI]:
    """Runs ``train.py fit`` into a folder of ``tmp_path``."""
    rows = [
        {
            **{"prompt": f"Name thing number {i}.", "chosen": f"It is thing {i}, I think.", "rejected": f"THING {i}!"},
            **{"good_chosen": 1.0, "good_rejected": 0.0, "loud_chosen": -1.0, "loud_rejected": 1.0},
        }
        for i in range(120)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = {
        "path": str(tmp_path / "rows.jsonl"),
        "scores": {name: [f"{name}_chosen", f"{name}_rejected"] for name in ("good", "loud")},
    }
    options = {
        "sources": [{"class_path": "data.sources.trl.TRL", "init_args": source}],
        "annotator": {
            "class_path": "data.annotators.scores.Scores",
            "init_args": {"costs_from": [{"column": "loud"}], "reward_from": {"column": "good"}},
        },
        **{"pairs_per_step": 32, "micro_batch_pairs": 16, "max_length": 96},
    }
    data = tmp_path / "data.yaml"
    data.write_text(
        yaml.safe_dump({"class_path": "data.module.PreferenceData", "init_args": options}), encoding="utf-8"
    )

    def run(name: str, *words: str) -> SafeCLI:
        objective = CONFIGS / "objective" / "c_dpo.yaml"
        files = ["-c", str(CONFIGS / "base.yaml"), "--data", str(data), "--model.objective", str(objective)]
        more = "--trainer.accelerator cpu --model.optimizer.lr 1e-3 --trainer.max_epochs 2 --trainer.default_root_dir"
        monkeypatch.setattr("sys.argv", ["train.py", "fit", *files, *more.split(), str(tmp_path / name), *words])
        return main()

    return run


ROLLOUT = (
    *("--dual.estimator", "lit_safe.constraint.costs.rollout.RolloutCost"),
    *("--dual.estimator.cost", f"{__name__}.Shouting"),
    *("--dual.estimator.max_new_tokens", "12", "--dual.estimator.prompts", "4"),
)


def weights(cli: SafeCLI) -> dict[str, Any]:
    return {k: v.clone() for k, v in cli.model.state_dict().items() if isinstance(v, Tensor) and "means" not in k}


def test_rollouts_leave_no_trace_in_the_weights_and_their_curves_in_the_event_file(tmp_path: Path, fit: Any) -> None:
    without, watched = weights(fit("without")), weights(fit("with", *ROLLOUT, "--dual.show_samples", "1"))
    assert without.keys() == watched.keys()
    assert all(torch.equal(without[name], watched[name]) for name in without)

    events = EventAccumulator(str(tmp_path / "with" / "tensorboard"))
    events.Reload()
    steps = [e.step for e in events.Scalars("dual/multiplier")]
    for tag in TAGS[1:]:
        assert [e.step for e in events.Scalars(f"dual/{tag}")] == steps[1:]
    assert steps[0] == 0
    assert len(steps) == 3
    assert all(e.value > 0 for name in ("kl", "entropy") for e in events.Scalars(f"drift/{name}_per_token"))
    assert "dual/samples/text_summary" in events.Tags()["tensors"]
    texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("dual/samples/text_summary")]
    assert [text.count("cost ") for text in texts] == [1, 1], "as many responses as were asked for, each epoch"


def test_the_command_line_moves_the_multiplier_and_shows_no_response_unasked(tmp_path: Path, fit: Any) -> None:
    cli = fit("run", *ROLLOUT, "--dual.lr", "0.5", "--dual.limit", "-0.2")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert "dual/samples/text_summary" not in events.Tags()["tensors"]
    assert cli.model.multiplier > 0  # no text costs less than -0.1
    stored = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert stored["state_dict"]["multiplier"] == cli.model.multiplier


def test_importance_refuses_data_of_nobody_knows_whom(fit: Any) -> None:
    with pytest.raises(ValueError, match=r"responses from \['unknown'\]"):
        fit("run", "--dual.estimator", str(CONFIGS / "cost" / "importance.yaml"))
