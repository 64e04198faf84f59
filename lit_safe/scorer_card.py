"""The card of a scorer: what it was trained on, its measured quality, its units. A JSON file beside the scorer.

This module imports no other module of this project, so every part can use it.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

CARD = "card.json"
MINIMUM_AUC = 0.6
"""A scorer below this area under the ROC curve, against people's labels, sets no limit and certifies nothing."""


@dataclass(frozen=True)
class Quality:
    """How well an output ranks held-out responses that people labelled.

    Attributes:
        auc: Area under the ROC curve; for a reward, the accuracy within pairs. None if it was not measured.
        stderr: Its standard error, clustered by prompt; None if unknown.
        low: Lower end of its 95 % interval.
        high: Upper end.
        responses: Number of labelled responses (for a reward, of pairs).
        prompts: Number of their prompts.
        accuracy: Share of responses on which a score > 0 is what people say. This and all that follow are None if they
            were not measured; a scorer that ranks well may have its zero in the wrong place.
        accuracy_low: Lower end of its 95 % interval.
        accuracy_high: Upper end.
        kappa: Cohen's kappa of the same agreement.
        hits: Share of people's positives (unsafe, or refusals) with a score > 0 (sensitivity).
        false_alarms: Share of people's negatives with a score > 0 (1 - specificity).
        positives: Number of labelled positives. Without it and the next five, no share can be corrected by the card.
        negatives: Number of labelled negatives.
        hits_low: Lower end of the 95 % interval of ``hits``.
        hits_high: Upper end.
        false_alarms_low: Lower end of the 95 % interval of ``false_alarms``.
        false_alarms_high: Upper end.
    """

    auc: float | None = None
    stderr: float | None = None
    low: float | None = None
    high: float | None = None
    responses: int = 0
    prompts: int = 0
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    kappa: float | None = None
    hits: float | None = None
    false_alarms: float | None = None
    positives: int | None = None
    negatives: int | None = None
    hits_low: float | None = None
    hits_high: float | None = None
    false_alarms_low: float | None = None
    false_alarms_high: float | None = None

    def opposite(self) -> Quality:
        """How well the opposite verdict agrees with people: its positives are the negatives here.

        The area under the ROC curve, accuracy and kappa stay.
        """
        turned = {
            f"{name}{end}": None if (rate := getattr(self, f"{other}{same}")) is None else 1 - rate
            for name, other in (("hits", "false_alarms"), ("false_alarms", "hits"))
            for end, same in (("", ""), ("_low", "_high"), ("_high", "_low"))
        }
        return replace(self, positives=self.negatives, negatives=self.positives, **turned)  # type: ignore[arg-type]


@dataclass(frozen=True)
class ScorerCard:
    """The facts about a scorer.

    Attributes:
        name: The scorer's name: its folder's.
        units: Units of each output, for example ``log_odds`` of being unsafe, or Bradley-Terry ``nats``.
        trained_on: Splits of the data that training read.
        quality: Quality of each output on held-out labels.
        held_out: Split on which quality and calibration were measured.
        range: Smallest and largest possible score of every cost output, in its units. None if scores have no bounds.
        calibration: Slope, intercept and calibration error of each calibrated output.
        data: Name, files, options and licence of each source.
        details: Anything else, as JSON values.
    """

    name: str
    units: dict[str, str]
    trained_on: tuple[str, ...]
    quality: dict[str, Quality]
    held_out: str = "val"
    range: tuple[float, float] | None = None
    calibration: dict[str, dict[str, Any]] = field(default_factory=dict)
    data: tuple[dict[str, Any], ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: str | Path) -> ScorerCard:
        """Read the card of a folder.

        Raises:
            FileNotFoundError: If the folder has no card.
            ValueError: If the file is no card. The message names it.
        """
        path = Path(folder) / CARD
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
            quality = {name: Quality(**values) for name, values in read.pop("quality").items()}
            read |= {"trained_on": tuple(read["trained_on"]), "data": tuple(read.get("data", ()))}
            if read.get("range") is not None:
                low, high = (float(end) for end in read["range"])
                read["range"] = (low, high)
            return cls(quality=quality, **read)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not the card of a scorer ({type(error).__name__}: {error})") from None

    def save(self, folder: str | Path) -> None:
        """Write the card into a folder, atomically. Numbers that do not exist are null."""
        path = Path(folder) / CARD
        partial = path.with_name(f"{CARD}.partial")
        partial.write_text(json.dumps(_finite(asdict(self)), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(partial, path)

    def check_usable(
        self,
        min_auc: float = MINIMUM_AUC,
        forced: str | None = None,
        *,
        outputs: tuple[str, ...] | None = None,
        reads: str | None = None,
    ) -> None:
        """Refuse a scorer whose costs cannot set a multiplier or support a certificate.

        Args:
            min_auc: Smallest acceptable area under the ROC curve against people's labels.
            forced: The name of a scorer to use whatever its AUC is. Another name forces nothing.
            outputs: The outputs that are used; all with a quality by default.
            reads: The split whose prompts are scored, for example ``certify``. A scorer that was trained on it is
                refused, forced or not.

        Raises:
            ValueError: If an AUC is missing or below ``min_auc``, or the scorer was trained on the split.
        """
        if reads is not None and reads in self.trained_on:
            raise ValueError(
                f"the scorer {self.name} was trained on the {reads} split, so its costs there prove nothing: name a "
                f"scorer whose card does not list {reads} under trained_on"
            )
        if forced is not None and forced == self.name:
            return
        force = f"to use it all the same, set forced: {self.name}"
        for output in outputs if outputs is not None else tuple(self.quality):
            auc = self.quality.get(output, Quality()).auc
            if auc is None:
                raise ValueError(
                    f"the scorer {self.name} has no AUC of {output!r} against held-out human labels on its card: "
                    f"fit it on data with labels in the {self.held_out} split; {force}"
                )
            if not auc >= min_auc:
                raise ValueError(
                    f"the scorer {self.name} ranks held-out human labels of {output!r} with an AUC of {auc:.3f}, under "
                    f"{min_auc}: a limit on its cost has no meaning; {force}"
                )


def check_scorer(cost: object, *, reads: str | None = None) -> None:
    """Check the card of a cost function before its costs move a multiplier or support a certificate.

    A cost function with a card has a method ``check_usable(reads=...)``. Others, such as a function of your own, have
    no card and are used as they are.

    Raises:
        ValueError: As in ``ScorerCard.check_usable``.
    """
    check = getattr(cost, "check_usable", None)
    if check is not None:
        check(reads=reads)


def _finite(value: Any) -> Any:
    """JSON values with null in place of NaN and infinity."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
