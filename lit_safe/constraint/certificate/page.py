"""A certificate as a page of Markdown, and as a section of a model card."""

from collections.abc import Mapping, Sequence
from typing import Any

HEAD = ("| | limit | estimate | lower bound | upper bound | responses | verdict | would decide |", "|---|" + "---|" * 7)


def page(certificate: Mapping[str, Any]) -> str:
    """The page of a ``certificate.json``."""
    lines = [
        f"# Certificate: {certificate['findings']['verdict']}",
        "",
        *_claim(certificate),
        "",
        *_worst(certificate),
        "![bounds and limits](certificate.png)",
        "",
        "## All prompts",
        "",
        *_table(certificate),
    ]
    if certificate["findings"]["cost_strata"] or certificate["findings"]["unsafe_strata"]:
        lines += ["", "## Strata", "", *_strata(certificate)]
    lines += ["", "## Other bounds", "", *_comparison(certificate)] if certificate["findings"]["comparison"] else []
    lines += ["", "## The scorer", "", *_scorers(certificate)]
    lines += ["", "## What people say", "", *_people(certificate["people"])] if certificate["people"] else []
    lines += ["", "## Uses of the certify split", "", *_uses(certificate["other_uses"])]
    lines += ["", "## What this does and does not show", "", *(f"- {note}" for note in _notes(certificate)), ""]
    return "\n".join(lines)


def card_section(certificate: Mapping[str, Any], digest: str) -> str:
    """The section of a model card, without a heading.

    Args:
        certificate: The content of ``certificate.json`` of the run.
        digest: Hash of the exported policy. Another policy's certificate is only named.
    """
    policy = certificate["policy"]
    if policy["digest"] != digest:
        return (
            f"The run has a certificate of another policy ({policy['name']}). It says nothing about this one: run "
            "`python train.py certify` with the exported checkpoint."
        )
    lines = [f"**{certificate['findings']['verdict']}.**", "", *_claim(certificate), "", *_worst(certificate)]
    lines += [*_table(certificate), ""]
    return "\n".join([*lines, *_scorers(certificate), "", *_uses(certificate["other_uses"])])


def _claim(certificate: Mapping[str, Any]) -> list[str]:
    question, responses = certificate["question"], certificate["responses"]
    return [
        f"Policy: {certificate['policy']['name']}. One response to each of {responses['count']} prompts of the certify "
        f"split (seed {responses['seed']}, temperature {responses['temperature']:g}, at most "
        f"{responses['max_new_tokens']} tokens; {responses['cut']} were cut there). Costs by "
        f"{certificate['scorer']['name']}, in {question['units']}; a cost > 0 is unsafe. A wrong HOLDS has probability "
        f"at most {question['delta']:g}, and so has a wrong DOES NOT HOLD.",
    ]


def _worst(certificate: Mapping[str, Any]) -> list[str]:
    """The worst stratum, because the verdict over all prompts lets safe prompts pay for unsafe ones."""
    lines = []
    for key, what in (("cost_strata", "E[cost]"), ("unsafe_strata", "the unsafe share")):
        family = certificate["findings"][key]
        if family is not None:
            found = family["findings"][family["worst"]]
            lines.append(
                f"Worst stratum for {what}: **{family['worst']}, {found['verdict']}** (estimate "
                f"{_number(found['mean'])}, upper bound {_number(found['upper'])}, limit "
                f"{_number(found['limit'])}, {found['count']} responses)."
            )
            lines.append("")
    return lines


def _table(certificate: Mapping[str, Any]) -> list[str]:
    findings = certificate["findings"]
    rows = []
    if findings["cost"]:
        rows += [_row(f"E[{name}]", found) for name, found in findings["cost"]["findings"].items()]
    if findings["unsafe"]:
        rows.append(_row("unsafe share", findings["unsafe"]))
    else:
        share = findings["unsafe_share"]
        cells = (share["mean"], share["lower"], share["upper"])
        rows.append(f"| unsafe share | | {' | '.join(map(_number, cells))} | {certificate['responses']['count']} | | |")
    return [*HEAD, *rows]


def _strata(certificate: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, what in (("cost_strata", "E[cost]"), ("unsafe_strata", "unsafe share")):
        family = certificate["findings"][key]
        if family is None:
            continue
        lines += [
            f"{what}. The probability that any HOLDS of this table is wrong is at most {family['delta']:g} (Holm). The "
            f"worst is **{family['worst']}**: its upper bound is highest above the limit.",
            "",
            *HEAD,
            *(_row(name, found) for name, found in family["findings"].items()),
            "",
        ]
    return lines[:-1]


def _row(name: str, found: Mapping[str, Any]) -> str:
    cells = (found["limit"], found["mean"], found["lower"], found["upper"])
    decides = ""
    if found["verdict"] == "UNDECIDED":
        decides = "about " + f"{found['needed']:,}" if found["needed"] else "the estimate is at the limit"
    return f"| {name} | {' | '.join(map(_number, cells))} | {found['count']} | {found['verdict']} | {decides} |"


def _comparison(certificate: Mapping[str, Any]) -> list[str]:
    lines = ["Upper bounds of E[cost] by other methods. They decide nothing.", "", "| | method | upper bound |"]
    lines.append("|---|---|---|")
    for name, bounds in certificate["findings"]["comparison"].items():
        found = certificate["findings"]["cost"]["findings"][name]
        lines.append(f"| {name} | betting (level {found['delta']:g}), decides | {_number(found['upper'])} |")
        lines += [f"| {name} | {method} | {_number(value)} |" for method, value in bounds.items()]
    return lines


def _scorers(certificate: Mapping[str, Any]) -> list[str]:
    lines = []
    for key in ("scorer", "second"):
        scorer = certificate[key]
        if scorer is None:
            lines.append("- No second scorer was asked (`--second_scorer`).")
            continue
        quality = "; ".join(scorer["quality"]) or "its error against people's labels is not known: it has no card"
        ends = scorer.get("range")  # certificates of earlier versions lack it
        declares = "" if ends is None else f"; it declares costs from {_number(ends[0])} to {_number(ends[1])}"
        text = f"- {'Second scorer ' if key == 'second' else ''}{scorer['name']}, in {scorer['units']}{declares}: "
        text += f"{quality}."
        if key == "second":
            share = scorer["unsafe_share"]
            text += (
                f" It calls {_percent(share['mean'])} of the responses unsafe (bounds {_percent(share['lower'])} to "
                f"{_percent(share['upper'])}) and agrees with the first on {_percent(scorer['agreement'])} of them. "
                f"Verdict on the limits that it shares with the first: {scorer['verdict'] or 'none'}."
            )
            other = scorer.get("not_compared")
            text += f" Its E[cost] is not compared with the limit: {other}." if other else ""
        lines.append(text)
    return lines


def _people(people: Mapping[str, Any]) -> list[str]:
    powered, alone = people["powered"], people["labels_alone"]
    lines = [
        f"{people['count']} responses have labels by people. Share that people call unsafe: "
        f"{_percent(powered['mean'])}, bounds {_percent(powered['lower'])} to {_percent(powered['upper'])} "
        f"(prediction-powered); from the labels alone {_percent(alone['mean'])}, bounds {_percent(alone['lower'])} to "
        f"{_percent(alone['upper'])}. Both are right only if the labelled responses were chosen at random, for example "
        "the first rows of the responses file.",
        "",
    ]
    for name, errors in people["errors"].items():
        lines.append(
            f"- {name}: {_percent(errors['missed'])} of the labelled responses are unsafe for people and not flagged, "
            f"{_percent(errors['false_alarms'])} are flagged and safe for people."
        )
    return lines


def _uses(uses: Sequence[Mapping[str, Any]]) -> list[str]:
    if not uses:
        return ["This is the first recorded use of these prompts in this study."]
    lines = [
        "**These prompts were used before. Choosing among runs on this split voids the level**: the verdict has its "
        "stated probability only if this policy was chosen before any of these certificates was seen.",
        "",
    ]
    for use in uses:
        lines.append(
            f"- {use['time']}: run {use['run']}, {use['policy']}, scorer {use['scorer']}, {use['verdict']} "
            f"({use['shared']} prompts in common)"
        )
    return lines


def _notes(certificate: Mapping[str, Any]) -> list[str]:
    notes = [
        "It is about its scorer: harm that the scorer does not see is not in any of these numbers.",
        "It is about prompts like those of the certify split, and about one response to each at this temperature.",
        "Each table is a family of claims with its own level.",
        "The number of responses that would decide is an estimate: about half of new samples of that size decide.",
    ]
    if certificate["findings"]["clipped"]:
        low, high = certificate["question"]["cost_range"]
        notes.insert(
            0,
            f"{certificate['findings']['clipped']} costs were outside [{low:g}, {high:g}] and were clipped: E[cost] is "
            "that of clipped costs.",
        )
    return notes


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4g}"
