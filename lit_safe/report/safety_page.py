"""A safety evaluation as a page of Markdown, and in a few lines for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from lit_safe.report.safety import PLOT
from lit_safe.report.tables import estimate_from_json

Row = Mapping[str, Any]

REWARD = "reward"


def page(report: Mapping[str, Any]) -> str:
    """The page of a ``report.json`` of ``evaluate``."""
    name = report["policy"]["name"]
    lines = [f"# Safety evaluation: {name}", "", _what(report), "", f"![both axes]({PLOT})", ""]
    for harmful, title in ((True, "Harmful prompts"), (False, "Harmless prompts")):
        whole = [row for row in report["findings"] if row["harmful"] == harmful and row["category"] is None]
        shares = [row for row in whole if is_axis(row)]
        if not shares:
            lines += [f"## {title}", "", "None were asked: this axis is not measured.", ""]
            continue
        lines += [f"## {title}", "", *_table(shares, report), "", *_judges(report, harmful), ""]
        lines += [f"### {title}: shares as people would find them", "", *_corrected(shares, report), ""]
        others = [row for row in whole if not is_axis(row) and not row["unseen"]]
        lines += [f"### Other measures of {title.lower()}", "", *_table(others, report), ""]
        strata = [row for row in report["findings"] if row["harmful"] == harmful and row["category"] is not None]
        if strata:
            lines += [f"### Categories of {title.lower()}", "", *_table(strata, report), ""]
    lines += ["## Responses", "", *_responses(report), ""]
    lines += ["## Before the run", "", *(f"- {line.strip()}" for line in report["plan"]), ""]
    lines += ["## Prompts", "", *_suites(report), "", "## How to read this", "", *_notes(report), ""]
    return "\n".join(lines)


def summary(report: Mapping[str, Any]) -> str:
    """Both axes in a few lines."""
    lines = []
    for row in report["findings"]:
        if row["category"] is None and not row["unseen"] and is_axis(row):
            line = f"{where(row)}: {measure_words(row['measure'])} {estimate(row, 'policy')} %"
            if row["reference"] is not None:
                line += f", reference {estimate(row, 'reference')} %, difference {estimate(row, 'difference')} points"
                line += f", {verdict(row, report['level'])}"
            lines.append(line)
            if row.get("corrected") is not None:
                found = {**row["corrected"], "measure": row["measure"]}
                told = f"  as people would find it: {estimate(found, 'policy')} %"
                told += f", reference {estimate(found, 'reference')} %" if found["reference"] else ""
                told += f", difference {estimate(found, 'difference')} points" if found["difference"] else ""
                lines.append(f"{told} ({found['by']})")
    return "\n".join(lines)


def is_axis(row: Row) -> bool:
    """Whether a finding is one of the axes: complied or unsafe, refused."""
    return row["measure"] in ("complied", "refused") or row["measure"].startswith("unsafe/")


def measure_words(measure: str) -> str:
    """A measure in words."""
    kind, _, judge = measure.partition("/")
    words = {"complied": "complied (did not refuse)", "cut": "cut at the maximum length", "empty": "empty"}
    return f"unsafe, by {judge}" if judge else words.get(kind, kind)


def where(row: Row) -> str:
    """The group of a finding in words."""
    kind = "harmful" if row["harmful"] else "harmless"
    parts = [row["suite"] or "all suites", f"{kind} prompts"]
    return ", ".join([*parts, *([row["category"]] if row["category"] else []), *(["not trained on"] * row["unseen"])])


def verdict(row: Row, level: float) -> str:
    """What the test by prompt says of a difference."""
    if row["difference"] is None:
        return ""
    difference = estimate_from_json(row["difference"])
    if row["p"] is None:
        return difference.verdict
    rejected = row["p"] <= level if row["holm"] is None else row["holm"]["rejected"]
    if rejected:
        return "higher" if difference.mean > 0 else "lower"
    return "no response changed" if difference.count and row["p"] == 1 and difference.stderr == 0 else "not told apart"


def estimate(row: Row, name: str) -> str:
    """``mean [low, high]``, in percent for shares."""
    if row[name] is None:
        return ""
    one = estimate_from_json(row[name])
    scale, digits = (1, 3) if row["measure"] == REWARD else (100, 1)
    sign = "+" if name == "difference" else ""
    cells = ["n/a" if end != end else f"{scale * end:{sign}.{digits}f}" for end in (one.mean, *one.interval)]
    return f"{cells[0]} [{cells[1]}, {cells[2]}]"


def _table(rows: Sequence[Row], report: Mapping[str, Any]) -> list[str]:
    paired = report["reference"] is not None
    lines = [
        "| prompts | measure | policy |"
        + (" reference | difference | p | |" if paired else "")
        + " responses / prompts |"
    ]
    lines.append("|---|---|---|" + ("---|---|---|---|" if paired else "") + "---|")
    for row in rows:
        unit = "" if row["measure"] == REWARD else " (%)"
        cells = [where(row), measure_words(row["measure"]) + unit, estimate(row, "policy")]
        if paired:
            p = "" if row["p"] is None else f"{row['p']:.3g}" + ("" if row["holm"] is None else " (Holm)")
            cells += [estimate(row, "reference"), estimate(row, "difference"), p, verdict(row, report["level"])]
        lines.append(f"| {' | '.join([*cells, _count(row)])} |")
    return lines


def _corrected(rows: Sequence[Row], report: Mapping[str, Any]) -> list[str]:
    """A table of the corrected shares beside those that judges found, and why others are missing."""
    paired = report["reference"] is not None
    lines = []
    for row in rows:
        if row.get("corrected") is not None:
            found = {**row["corrected"], "measure": row["measure"]}
            cells = [where(row), f"{measure_words(row['measure'])} (%)", estimate(row, "policy")]
            cells += [estimate(found, name) for name in ("policy", *(("reference", "difference") if paired else ()))]
            lines.append(f"| {' | '.join([*cells, found['by']])} |")
    if lines:
        heads = "| prompts | measure | policy, by the judge | policy, corrected |"
        heads += " reference, corrected | difference, corrected |" if paired else ""
        lines = [f"{heads} from |", "|---|---|---|---|" + ("---|---|" if paired else "") + "---|", *lines, ""]
    measures = {row["measure"] for row in rows}
    why = {name: said for name, said in report.get("not_corrected", {}).items() if name in measures}
    return [*lines, *(f"- {measure_words(name)}: not corrected: {said}" for name, said in why.items())]


def _count(row: Row) -> str:
    told = f"{row['policy']['count']} / {row['policy']['clusters']}"
    return f"{told}, {row['unknown']} without a score" if row["unknown"] else told


def _what(report: Mapping[str, Any]) -> str:
    decoding = report["decoding"]
    how = "greedy decoding" if decoding["greedy"] else f"temperature {decoding['temperature']:g}"
    against = f" Reference: {report['reference']['name']}, with the same random numbers." if report["reference"] else ""
    return (
        f"Responses to each prompt: {decoding['samples_per_prompt']}, {how}, at most {decoding['max_new_tokens']} "
        f"tokens, seed {decoding['seed']}, precision {decoding['precision']}.{against}"
    )


def _judges(report: Mapping[str, Any], harmful: bool) -> list[str]:
    """Who judged the responses of an axis, each with its error."""
    lines = []
    for column, judge in report["judges"].items():
        if harmful or not column.startswith("unsafe/"):
            error = "; ".join(judge["quality"]) or "error against people's labels not known"
            units = f", in {judge['units']}" if judge["units"] else ""
            lines.append(f"- judge of {_judged(column, harmful)}: {judge['name']}{units}; {error}")
    if harmful:
        lines += [f"- {pair}, on the policy's responses: {told}" for pair, told in report["agreement"].items()]
    return lines


def _judged(column: str, harmful: bool) -> str:
    """The measure that a judge decides, in words."""
    if column == REWARD:
        return "the reward"
    return measure_words({"refusal": "complied" if harmful else "refused"}.get(column, column))


def _responses(report: Mapping[str, Any]) -> list[str]:
    lines = []
    for arm, counts in report["responses"].items():
        lines.append(f"- {arm}: {counts['count']} responses, {counts['empty']} empty, {counts['cut']} cut.")
        if counts["empty"]:
            lines.append(f"  - empty, for example: {', '.join(counts['empty_rows'])}")
        for column, missing in counts["unknown"].items():
            rows = ", ".join(missing["rows"])
            lines.append(f"  - {column}: {missing['count']} scores are not finite and left out, for example: {rows}")
    return lines


def _suites(report: Mapping[str, Any]) -> list[str]:
    lines = ["| suite | harmful | harmless | in the train split | licence |", "|---|---|---|---|---|"]
    for name, suite in report["suites"].items():
        counts = " | ".join(str(suite[key]) for key in ("harmful", "harmless", "trained_on"))
        lines.append(f"| {name} | {counts} | {suite['licence']} |")
    return lines


def _notes(report: Mapping[str, Any]) -> list[str]:
    level = f"{100 * report['level']:g} %"
    lines = ["- Intervals are 95 %: exact ones of shares on an effective sample size, clustered by prompt."]
    if report["reference"] is not None:
        lines += [
            "- p is that of an exact test by prompt (signs of the differences; McNemar's test with one response each).",
            f"- Rows of whole suites are not adjusted for their number: each is tested at {level}. The categories of "
            "one axis and measure are tested together by Holm's method: the chance of any wrong 'higher' or 'lower' "
            f"among them is at most {level}.",
            "- 'No response changed' is no evidence of equality: the interval says which changes remain possible.",
        ]
    lines += [
        "- A share counts what a judge says. It is as right as the judge, whose error is below each table.",
        "- A corrected share is what people would find. From labels of these responses it is right for any judge, if "
        "they were chosen at random. From the judge's card it is right if the judge errs here as often as there.",
        "- 'Complied' is not yet harm: a response that does not refuse may be useless. A judge of harm says more.",
        "- Empty responses are judged like any other.",
    ]
    return lines
