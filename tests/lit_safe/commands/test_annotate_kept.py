"""``annotate`` writes Parquet, keeps scores as they come, and scores each text once."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from data.annotators.scores import Score, Scores
from data.module import PreferenceData
from data.sources.trl import TRL
from lit_safe.commands.annotate import annotate
from lit_safe.rollouts.text_scores import Text, score_texts
from tests.lit_safe.pair_world import Fruit, pairs


class Counts:
    """The cost is the number of letters e, less 1. It keeps what it was asked."""

    outputs: tuple[str, ...] = ("cost",)

    def __init__(self, name: str = "counts", fails_after: int | None = None) -> None:
        self.name, self.fails_after = name, fails_after
        self.asked: list[tuple[str, str]] = []

    def digest(self) -> str:
        return self.name

    def __call__(self, prompts: Any, responses: Any) -> Any:
        if self.fails_after is not None and len(self.asked) >= self.fails_after:
            raise KeyboardInterrupt
        self.asked += zip(prompts, responses, strict=True)
        return torch.tensor([response.count("e") - 1.0 for response in responses])


class Both(Counts):
    """A reward, the length, beside the cost."""

    outputs = ("reward", "cost")

    def __call__(self, prompts: Any, responses: Any) -> Any:
        length = torch.tensor([float(len(response)) for response in responses])
        return torch.stack([length, super().__call__(prompts, responses).float()], 1)


def distinct(data: PreferenceData) -> set[tuple[str, str]]:
    every = [pair for split in ("train", "val", "dual", "certify") for pair in data.pairs(split)]
    return {(pair.text, side) for pair in every for side in (pair.row.chosen, pair.row.rejected)}


def test_parquet_reads_back_as_a_source_with_the_scorers_rewards_and_costs(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO")
    out = tmp_path / "scored.parquet"
    assert annotate(pairs(), scorer=Both(), out=str(out)) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["scored.parquet"]
    assert "scores: {cost: [chosen_cost, rejected_cost], reward: [chosen_reward, rejected_reward]}" in caplog.text
    scores = {name: [f"chosen_{name}", f"rejected_{name}"] for name in ("cost", "reward")}
    back = PreferenceData([TRL(str(out), scores=scores)], Scores((Score("cost"),), Score("reward")))
    for split in ("train", "val"):
        rows = [pair.row for pair in back.pairs(split)]
        expected = {pair.row.prompt for pair in pairs().pairs(split)}
        assert {row.prompt for row in rows} == expected
        for row in rows:
            assert row.chosen_cost == (row.chosen.count("e") - 1,)
            assert row.rejected_reward == len(row.rejected)


def test_each_text_is_scored_once(tmp_path: Path) -> None:
    scorer = Counts()
    annotate(pairs(), scorer=scorer, out=str(tmp_path / "out.jsonl"), batch_pairs=3)
    assert len(scorer.asked) == len(set(scorer.asked))
    assert set(scorer.asked) == distinct(pairs())


def test_a_killed_command_continues_with_the_texts_that_are_left(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    annotate(pairs(), scorer=Counts(), out=str(whole))
    out, killed = tmp_path / "out.jsonl", Counts(fails_after=20)
    with pytest.raises(KeyboardInterrupt):
        annotate(pairs(), scorer=killed, out=str(out), batch_pairs=5)
    assert not out.exists()
    rest = Counts()
    annotate(pairs(), scorer=rest, out=str(out), batch_pairs=5)
    assert len(killed.asked) == 20
    assert set(killed.asked) | set(rest.asked) == distinct(pairs())
    assert not set(killed.asked) & set(rest.asked)
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "whole.jsonl"]


def test_kept_scores_serve_later_data_and_never_another_model(tmp_path: Path) -> None:
    kept = str(tmp_path / "kept")
    annotate(pairs(Fruit(16)), scorer=Counts(), out=str(tmp_path / "a.jsonl"), cache_dir=kept)
    again, other = Counts(), Counts("another")
    annotate(pairs(Fruit(32)), scorer=again, out=str(tmp_path / "b.jsonl"), cache_dir=kept)
    assert set(again.asked) == distinct(pairs(Fruit(32))) - distinct(pairs(Fruit(16)))
    annotate(pairs(Fruit(16)), scorer=other, out=str(tmp_path / "c.jsonl"), cache_dir=kept)
    assert set(other.asked) == distinct(pairs(Fruit(16)))


def test_a_reward_of_its_own_stands_beside_the_label(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"

    def long(prompts: Any, responses: Any) -> Any:
        return torch.tensor([float(len(response)) for response in responses])

    annotate(pairs(), scorer=Counts(), reward=long, out=str(out))
    for line in out.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert (row["chosen_reward"], row["chosen_label_reward"]) == (len(row["chosen"]), 1.0)


def test_another_suffix_is_refused_before_anything_is_scored(tmp_path: Path) -> None:
    scorer = Counts()
    with pytest.raises(ValueError, match=r"\.csv: the name must end in \.parquet or \.jsonl"):
        annotate(pairs(), scorer=scorer, out=str(tmp_path / "out.csv"))
    assert scorer.asked == []


def test_a_scorer_that_gives_other_columns_later_is_named(tmp_path: Path) -> None:
    widths: Iterator[int] = iter((1, 2, 2, 2))

    def changing(prompts: Any, responses: Any) -> Any:
        return torch.zeros(len(responses), next(widths))

    texts = [Text("a", str(n), "row") for n in range(4)]
    with pytest.raises(ValueError, match="changing gave rows of 2 after rows of 1"):
        score_texts(changing, texts, batch=2, cache_dir=None, device=torch.device("cpu"))


@pytest.mark.slow  # two processes import Lightning and transformers
def test_two_ranks_share_the_texts_and_write_the_file_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = Path(__file__).parent
    base = {**os.environ, "PYTHONPATH": str(here.parents[2]), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    base |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    script = [sys.executable, str(here / "annotate_two_ranks.py"), str(tmp_path / "two.jsonl")]
    ranks = [
        subprocess.Popen([*script, str(tmp_path / rank)], env={**base, "RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]
    assert [rank.wait(timeout=240) for rank in ranks] == [0, 0]
    annotate(pairs(), scorer=Both(), out=str(tmp_path / "one.jsonl"))
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    first, second = (
        {tuple(text) for text in json.loads((tmp_path / f"{rank}").read_text(encoding="utf-8"))} for rank in range(2)
    )
    assert not first & second
    assert first | second == distinct(pairs())
