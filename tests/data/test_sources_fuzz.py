"""Whatever stands in a row, a source gives a usable row or names the row and the column, and never fails otherwise."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.annotators.flags import Flags
from data.preparation import prepare
from data.schema import BadRow, Row, SftRow, check_text
from data.sources.beavertails import BeaverTails
from data.sources.hh_rlhf import HHRLHF
from data.sources.instructions import Instructions
from data.sources.pku_saferlhf import PKUSafeRLHF
from data.sources.scored import ScoredPairs
from data.sources.trl import TRL
from data.sources.xstest import XSTest

SOURCES: dict[str, tuple[Callable[[str], Any], list[str]]] = {
    "pku": (
        lambda path: PKUSafeRLHF(path, categories=["Noise"]),
        ["prompt", "better_response_id", "safer_response_id"]
        + [f"response_{k}{rest}" for k in (0, 1) for rest in ("", "_severity_level", "_harm_category")]
        + [f"is_response_{k}_safe" for k in (0, 1)],
    ),
    "beavertails": (
        lambda path: BeaverTails(path, categories=["Noise"]),
        ["prompt", "response", "is_safe", "category"],
    ),
    "hh": (HHRLHF, ["chosen", "rejected"]),
    "trl": (
        lambda path: TRL(path, scores={"s": ["score_chosen", "score_rejected"]}),
        ["prompt", "chosen", "rejected", "score_chosen", "score_rejected"],
    ),
    "scored": (
        lambda path: ScoredPairs(path, safe=["safe_0", "safe_1"], better="better"),
        ["prompt", "response_0", "response_1", "safe_0", "safe_1", "better"],
    ),
    "xstest": (
        lambda path: XSTest(path, [path, path]),
        ["id", "type", "prompt", "completion", "final_label", "focus"],
    ),
    "instructions": (lambda path: Instructions(path, input="input"), ["prompt", "input", "response"]),
}

TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=8)  # lone surrogates among them
TALK = st.lists(st.sampled_from(["Human:", "Assistant:", "hello"]), max_size=5).map(
    lambda parts: "".join(f"\n\n{part} x" for part in parts)
)
TURN = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "bot"]) | TEXT,
        "content": TEXT,
        "from": TEXT,
        "value": TEXT,
    },
)
LABEL = st.sampled_from(["1_full_compliance", "2_full_refusal", "contrast_x", "7"])
LEAF = LABEL | st.none() | st.booleans() | st.integers(-1, 3) | st.just(10**400) | st.floats() | TEXT | TALK
VALUE = LEAF | st.lists(TURN | LEAF, max_size=3) | TURN | st.dictionaries(st.just("Noise"), LEAF)


@pytest.mark.parametrize("name", SOURCES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_any_row_is_usable_or_named(tmp_path: Path, name: str, data: st.DataObject) -> None:
    make, columns = SOURCES[name]
    record = st.fixed_dictionaries({}, optional=dict.fromkeys(columns, VALUE))
    lines = data.draw(st.lists(record | VALUE, min_size=1, max_size=6))
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    for item in make(str(path)):
        if isinstance(item, BadRow):
            assert item.row.startswith("rows.jsonl:")
            assert item.column
            assert item.reason
            assert str(item).startswith(f"row {item.row}, column {item.column!r}: ")
            continue
        texts = [item.response] if isinstance(item, SftRow) else [response.text for response in item.responses]
        texts += [item.prompt] if isinstance(item.prompt, str) else [message.content for message in item.prompt]
        assert all(check_text(item.id, "text", text) == text for text in texts)
        if isinstance(item, Row):
            scores = [value for response in item.responses for value in response.scores.values()]
            assert all(map(math.isfinite, scores))
    if name != "instructions":
        rows, report = prepare([make(str(path))], Flags(), order="helpful_or_safer", on_bad_row="skip")
        assert report.kept == len(rows)
        assert report.read == report.kept + sum(dropped.count for dropped in report.dropped.values())
