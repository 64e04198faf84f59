"""Every equation, theorem, section or table of a paper that the code cites stands in docs/papers.md, and the reverse.

A citation belongs to the paper that the file names last before it, or to the paper after "of" behind it.
"""

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "papers.md"
CITING = [
    path
    for part in ("lit_safe", "models", "data", "ops", "configs", "docs")
    for path in sorted((ROOT / part).rglob("*"))
    if path.suffix in (".py", ".yaml", ".md") and path != PAGE
]
PLACE = re.compile(
    r"(?<![\w-])(eqs?\.|(?:equation|proposition|theorem|algorithm|section|table)s?) "
    r"(\d+(?:\.\d+)*(?:\.[A-Z])?|[IVX]+\.[A-Z])(?:(-|\u2013| and | to )(\d+(?:\.\d+)*))?\b",
    re.IGNORECASE,
)
SURE = {"text", "translation", "code", "second source", "not compared"}


def table(heading: str) -> list[list[str]]:
    """The cells of the rows of the first table under a heading."""
    part = PAGE.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in row] for row in rows[2:]]


PAPERS = table("Papers")
NAMES = {
    name: row[0]
    for row in PAPERS
    for name in (
        re.sub(r"( et al\.)? \d{4}$", "", row[0]),
        *(n for n in row[1].split(", ") if n),
        *re.findall(r"\d{4}\.\d{4,5}", row[2]),
    )
}
NAMED = re.compile(r"(?<![\w-])(" + "|".join(map(re.escape, sorted(NAMES, key=len, reverse=True))) + r")(?![\w-])")


def places(text: str) -> set[tuple[str, str]]:
    """(paper, place) of every citation of a text. The paper is '' if none was named."""
    flat = re.sub(r"\s*\n[\s#]*", " ", text)
    found = set()
    for match in PLACE.finditer(flat):
        kind, first, joint, last = match.groups()
        kind = kind.lower().removesuffix("s")
        kind = "eq." if kind.startswith("eq") else kind
        numbers = [first]
        if last and joint in ("-", "\u2013", " to "):
            numbers = [str(number) for number in range(int(first), int(last) + 1)]
        elif last:
            numbers.append(last)
        behind = re.match(r" of (?:arXiv:)?", flat[match.end() :])
        named = behind and NAMED.match(flat, match.end() + behind.end())
        before = [one.group(1) for one in NAMED.finditer(flat, 0, match.start())]
        paper = NAMES[named.group(1)] if named else NAMES[before[-1]] if before else ""
        found |= {(paper, f"{kind} {number}") for number in numbers}
    return found


@cache
def cited() -> dict[tuple[str, str], set[str]]:
    """Every citation of the repository with the files that have it."""
    found: dict[tuple[str, str], set[str]] = {}
    for path in CITING:
        for one in places(path.read_text(encoding="utf-8")):
            found.setdefault(one, set()).add(path.relative_to(ROOT).as_posix())
    return found


def test_a_place_belongs_to_the_paper_named_last_before_it_or_behind_of():
    text = "Liu et al. 2024, eq. 11 and 12.\n# SafeDPO's eq. 9; table 1 of Liu et al.; Kish, section 8.2"
    assert places(text) == {
        ("Liu et al. 2024", "eq. 11"),
        ("Liu et al. 2024", "eq. 12"),
        ("Kim et al. 2025", "eq. 9"),
        ("Liu et al. 2024", "table 1"),
        ("Kish 1965", "section 8.2"),
    }
    assert places("see eq. 3-5") == {("", "eq. 3"), ("", "eq. 4"), ("", "eq. 5")}


def test_every_place_that_is_cited_is_in_the_table_and_every_row_is_cited():
    found = cited()
    assert not [(place, files) for place, files in found.items() if not place[0]], "no paper is named before these"
    rows = [(row[0], row[1]) for row in table("Places")]
    assert len(rows) == len(set(rows)), "a place stands twice"
    assert {one: files for one, files in found.items() if one not in rows} == {}
    assert [one for one in rows if one not in found] == []


@pytest.mark.parametrize("row", table("Places"), ids=lambda row: f"{row[0]}, {row[1]}")
def test_a_row_says_what_stands_there_how_sure_that_is_and_who_cites_it(row):
    paper, place, says, here, sure = row
    assert len(says) >= 10
    assert sure.partition(":")[0] in SURE
    assert here in cited()[paper, place]
    assert paper in {known[0] for known in PAPERS}


@pytest.mark.parametrize("row", PAPERS, ids=lambda row: row[0])
def test_a_paper_has_a_version_or_says_that_none_was_compared(row):
    _, _, where, how = row
    assert re.search(r"\d{4}\.\d{4,5}(v\d+|, version not compared)|no preprint", where)
    assert how


def test_published_figures_stand_with_their_source():
    figures = table("Published figures")
    assert {row[0] for row in figures} == {"Liu et al. 2024", "Kim et al. 2025"}
    assert all(row[-1].partition(":")[0] in SURE for row in figures)
