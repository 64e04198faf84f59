"""What all judges with verdicts in words share: reading them, naming those out of format, and their measured error.

Letters: n responses.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_safe.scorer_card import MINIMUM_AUC, ScorerCard
from models.scorers.formats.judge_format import JudgeFormat, MalformedVerdictError

log = logging.getLogger(__name__)


class VerdictJudge(ABC):
    """A ``lit_safe.types.CostFunction`` that gives 1 or 0, and NaN for an output that is no verdict.

    ``evaluate`` counts and names responses with NaN, and leaves them out. Where every score is needed, as in a dual
    step or a certificate, NaN is an error that names the response.

    Args:
        format: How to ask, and how to read the verdict.
        folder: Folder with the ``card.json`` of this judge: its error on human labels. Null: it is unknown.
        malformed_as: Verdict in place of NaN, 0 or 1.
        minimum_auc: Smallest acceptable area under the ROC curve against human labels, for multipliers and
            certificates.
        forced: Name of the judge (``name``), to use it although its error is unknown or too large.

    Raises:
        ValueError: If ``malformed_as`` is neither 0, 1 nor None.
    """

    range = (0.0, 1.0)

    def __init__(
        self,
        format: JudgeFormat,
        folder: str | None = None,
        malformed_as: int | None = None,
        minimum_auc: float = MINIMUM_AUC,
        forced: str | None = None,
    ) -> None:
        if malformed_as not in (None, 0, 1):
            raise ValueError(f"malformed_as must be 0, 1 or null, got {malformed_as}")
        self.format = format
        self.folder = folder
        self.malformed_as = malformed_as
        self.minimum_auc = minimum_auc
        self.forced = forced
        self.malformed = 0
        """Number of outputs so far that were no verdict."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The judge's name: its model's."""

    @abstractmethod
    def outputs_of(self, prompts: Sequence[str], responses: Sequence[str]) -> list[str]:
        """What the judge says about each response."""

    @abstractmethod
    def settings(self) -> list[object]:
        """All that decides an output beside the format, as JSON values."""

    @property
    def units(self) -> str:
        """The meaning of a verdict."""
        return f"{self.format.gives} (1 or 0)"

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """[n] float32 verdicts.

        Raises:
            ValueError: If the numbers of prompts and responses differ.
        """
        if len(prompts) != len(responses):
            raise ValueError(f"{len(prompts)} prompts, {len(responses)} responses")
        verdict_n = torch.zeros(len(responses))
        strange: list[str] = []
        for i, output in enumerate(self.outputs_of(prompts, responses)):
            try:
                verdict_n[i] = self.format.verdict(output)
            except MalformedVerdictError as error:
                verdict_n[i] = math.nan if self.malformed_as is None else self.malformed_as
                strange.append(f"{output[:60]!r} {error}, for the response {responses[i][:40]!r}")
        if strange:
            self.malformed += len(strange)
            log.warning("%s: %d of %d outputs are no verdict: %s", self.name, len(strange), len(responses), strange[0])
        return verdict_n

    def card(self) -> ScorerCard | None:
        """The card of ``folder``; None without one.

        Raises:
            FileNotFoundError: If the folder has no card.
        """
        return None if self.folder is None else ScorerCard.load(self.folder)

    def check_usable(self, *, reads: str | None = None) -> None:
        """Refuse to move a multiplier or support a certificate with an unmeasured or bad judge.

        Args:
            reads: The split whose prompts are judged.

        Raises:
            ValueError: As in ``ScorerCard.check_usable``. A judge without a card must be forced by its name.
        """
        card = self.card()
        if card is None:
            card = ScorerCard(self.name, {}, (), {}, details={"card": "none"})
        card.check_usable(self.minimum_auc, self.forced, outputs=(self.format.gives,), reads=reads)

    def digest(self) -> str:
        """A hash of everything that decides a verdict, as far as it is known here."""
        parts = [type(self).__name__, repr(self.format), self.malformed_as, *self.settings()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
