"""A report as a page of Markdown: what was run, on what, what changed, and how much of that can be believed."""

from collections.abc import Mapping, Sequence
from typing import Any

from lit_safe.constraint.limits import sentence
from lit_safe.report.tables import QUANTITIES, estimate_from_json, number, with_error, with_interval
from lit_safe.statistics.bootstrap import FEWEST

RANKING = "logps/accuracies"  # what the sentence on small samples is about
FEW = 50  # prompts: below it, clustered errors are themselves uncertain


def markdown(report: Mapping[str, Any]) -> str:
    """The page of a ``report.json``."""
    first = [sentence(report["limit"]), ""] if "limit" in report else []  # reports of earlier versions have none
    return "\n".join(
        [
            *first,
            f"# {report['objective']['name']}: before and after",
            "",
            _summary(report),
            "",
            "![before and after, and the way there](report.png)",
            "",
            *_section("Held-out pairs and prompts, before and after", _comparison(report)),
            *_section("What was run", _run(report)),
            *_section("Data", _data(report)),
            *_section("Training", _training(report)),
            *_section("What this does and does not show", [f"- {note}" for note in notes(report)]),
            *(_section("Samples", _samples(report)) if report["samples"] else []),
        ]
    )


def notes(report: Mapping[str, Any]) -> list[str]:
    """What a reader has to know to believe no more than the numbers say."""
    metrics = report["metrics"]
    lines = [
        "Intervals are 95 % and clustered by prompt: exact ones on the effective sample size for shares, Student's t "
        f"and a bootstrap over prompts for means; n/a where nothing varies or there are fewer than {FEWEST} prompts. "
        f"Each interval stands for itself: of {len(metrics)} rows, one may leave out 0 by chance.",
        "Before training every implicit reward ties (policy and reference are the same) and counts one half; the "
        "policy's own log-probs are what has an answer before and after.",
    ]
    if RANKING in metrics:
        difference = estimate_from_json(metrics[RANKING]["difference"])
        low, high = difference.interval
        reach = number(RANKING, (high - low) / 2)
        small = (
            f"A change of ranking accuracy under about ±{reach} points would not show."
            if high > low
            else "What change of ranking accuracy would show cannot be told."
        )
        few = "; these are few" if difference.clusters < FEW else ""
        lines.append(
            f"There are {difference.count} held-out pairs of {difference.clusters} prompts{few}. "
            f"{small} One seed was run: the intervals hold for this run, "
            "not for training again."
        )
    scorer = report["scorer"]
    if scorer is not None and "held_out" in (scorer["card"] or {}):
        held_out = scorer["card"]["held_out"]
        auc = "unknown" if held_out["auc"] is None else f"{held_out['auc']:.2f}"
        lines.append(
            f"Responses are scored by a program ({scorer['name']}), not by people. Against people's labels of held-out "
            f"responses its AUC is {auc}{_auc_interval(held_out)} (0.5 is a coin, 1 never errs). "
            "It was fitted on the data's responses, and what it says of this policy's own is unchecked: read the share "
            "of unsafe responses as a trend, not as a rate."
        )
    if report.get("limit", {}).get("constraints"):
        lines.append(
            "The cost that stands beside the limit was estimated on the prompts that moved the multiplier, at the end "
            "of training: it certifies nothing for other prompts."
        )
    return [*lines, *report["notes"]]


def _auc_interval(held_out: Mapping[str, Any]) -> str:
    """The 95 % interval on a scorer's card; cards of an earlier version have none."""
    low, high = (held_out.get(f"auc_{end}") for end in ("low", "high"))
    return "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"


def _summary(report: Mapping[str, Any]) -> str:
    lines = []
    for name in ("rollouts/unsafe", RANKING, "logps/accuracies/safer", "logratios/margins"):
        if name not in report["metrics"]:
            continue
        entry, quantity = report["metrics"][name], QUANTITIES[name]
        difference = estimate_from_json(entry["difference"])
        before, after = (number(name, estimate_from_json(entry[when]).mean) for when in ("before", "after"))
        unit = "points" if quantity.share else quantity.unit
        lines.append(
            f"- {quantity.label}: {before} {quantity.unit} before, {after} {quantity.unit} after, "
            f"**{difference.verdict}** ({with_interval(name, difference)} {unit})"
        )
    return "\n".join(lines)


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *lines, ""]


def _comparison(report: Mapping[str, Any]) -> list[str]:
    lines = ["| | before | after | difference [95 %] | | pairs or responses / prompts |", "|---|---|---|---|---|---|"]
    for name, quantity in QUANTITIES.items():
        if name not in report["metrics"]:
            continue
        entry = report["metrics"][name]
        before, after, difference = (estimate_from_json(entry[key]) for key in ("before", "after", "difference"))
        lines.append(
            f"| {quantity.label} ({quantity.unit}) | {with_error(name, before)} | {with_error(name, after)} "
            f"| {with_interval(name, difference)} | {difference.verdict} | {difference.count} / {difference.clusters} |"
        )
    return lines


def _run(report: Mapping[str, Any]) -> list[str]:
    model = report["model"]
    return [
        f"- objective: `{report['objective']['text']}`",
        f"- model: {model['source']}, {model['parameters'] / 1e6:.1f} M parameters of which "
        f"{model['trainable'] / 1e6:.1f} M train, {model['dtype']}, log-probs by `{model['backend']}`; "
        f"licence {model['licence']}",
        f"- reference: {model['reference']}",
        f"- command: `{report['command']}` (seed {report['seed']}; resolved configuration in `config.yaml`)",
        "- versions: " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
    ]


def _data(report: Mapping[str, Any]) -> list[str]:
    data = report["data"]
    lines = [
        f"- {source['name']}: licence {source['licence']}; responses from {' and '.join(source['responses_from'])}"
        for source in data["sources"]
    ]
    safe_dpo, share = data["safe_dpo"], data["unsafe_share"]
    lines.append(
        f"- of the labelled pairs, SafeDPO keeps {safe_dpo['keep']}, swaps {safe_dpo['swap']} and drops "
        f"{safe_dpo['drop']} (both responses unsafe)"
    )
    known = {name: value for name, value in share.items() if value is not None}
    lines.append(
        "- share of responses that the cost threshold makes unsafe: "
        + (", ".join(f"{name} {100 * value:.1f} %" for name, value in known.items()) or "no cost is known")
    )
    return [*lines, "", "Rows kept and dropped, and why:", "", "```text", *data["lines"], "```"]


def _training(report: Mapping[str, Any]) -> list[str]:
    training = report["training"]
    start, end = training["multiplier"]
    lines = [
        f"- {training['steps']} optimizer steps over {training['pairs']} pairs in {training['seconds']:.0f} s: "
        f"{training['tokens_per_s']:.0f} tokens/s, {training['pairs_per_s']:.2f} pairs/s",
        f"- evaluation: {report['evaluation']['seconds_before']:.0f} s before, "
        f"{report['evaluation']['seconds_after']:.0f} s after",
    ]
    if training["peak_gib"] is not None:
        lines.append(f"- peak memory {training['peak_gib']:.1f} GiB on {training['device']}")
    if start != end:
        lines.append(f"- the multiplier went from {start} to {end}; its path and the cost's are in `metrics.csv`")
    elif any(value for value in (start if isinstance(start, list) else [start])):
        lines.append(f"- the multiplier stood at {start} (objectives without a cost term do not read it)")
    return lines


def _samples(report: Mapping[str, Any]) -> list[str]:
    lines = ["**Content warning:** prompts and responses of safety data; they may be offensive or harmful.", ""]
    for sample in report["samples"]:
        texts = {"prompt": sample["prompt"]}
        if sample.get("response_before") is not None:  # reports of earlier versions have none
            texts[f"before training, cost {sample['cost_before']:.2f}"] = sample["response_before"]
        texts[f"after training, cost {sample['cost']:.2f}"] = sample["response"]
        for name, text in texts.items():
            lines += [f"{name}:", "", *(f"    {line}" for line in text.splitlines()), ""]
    return lines
