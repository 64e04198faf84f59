"""The benchmark of tokenising prints a ratio, and refuses to compare what differs."""

import json
import re

import pytest

from data import bench
from data.batch import OneByOne


def test_both_sides_are_timed_on_the_same_pairs(renderer, capsys, tmp_path):
    path = tmp_path / "pairs.jsonl"
    lines = [{"prompt": f"q {i}", "response_0": "yes", "response_1": f"no {i}"} for i in (0, 1, 2, 2)]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    bench.compare(renderer, bench.read(str(path)), 100, rounds=2)
    shown = capsys.readouterr().out
    assert shown.startswith("3 pairs, ")
    assert "output bit-equal" in shown
    seconds = {name: float(re.search(rf"{name} +\S+ +(\S+)", shown)[1]) for name in bench.KINDS}
    (ratio,) = re.findall(r"ratio +(\S+) +\S+\n", shown)
    assert float(ratio) > 0
    assert all(value >= 0 for value in seconds.values())


def test_sides_that_differ_are_refused(renderer, monkeypatch):
    class Forgetful(OneByOne):
        def row(self, item):
            found = super().row(item)
            return found._replace(prompt=found.prompt[1:])

    monkeypatch.setitem(bench.KINDS, "together", Forgetful)
    with pytest.raises(SystemExit, match="differ"):
        bench.compare(renderer, bench.made_up(4, plain=False), 100, rounds=1)


def test_made_up_pairs_differ_from_each_other():
    rows = bench.made_up(40, plain=True)
    assert len({(row.prompt, row.chosen, row.rejected) for row in rows}) == 40
    assert len({row.prompt for row in rows}) == 10
