"""The harm of a response as a cost: text features, a calibrated linear head, and a card with its measured quality.

Letters: n texts, F features.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor

from lit_safe.scorer_card import Quality, ScorerCard
from models.scorers.logistic import LogisticHead, Matrix, fit_logistic_head

CARD = "card.json"


class Features(Protocol):
    """Turns n prompts and responses into [n, F] numbers."""

    def describe(self) -> dict[str, Any]:
        """Everything that decides the features, as JSON values. A folder fitted with other features is refused."""

    def fit(self, prompts: Sequence[str], responses: Sequence[str]) -> Matrix:
        """Learn from the training texts, without labels, and return their features [n, F]."""

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Matrix:
        """[n, F] features."""

    def save(self, folder: Path) -> None:
        """Write the learned state, without pickle."""

    def load(self, folder: Path) -> None:
        """Read the state that ``save`` wrote."""


class LinearHarm:
    """A ``lit_safe.types.CostFunction``: ``cost = scale * (score - threshold)`` of a logistic regression, > 0 unsafe.

    The threshold is chosen on out-of-fold training scores so that the share above it equals the share labelled unsafe.
    The unsafe share is therefore right on texts like the training texts, and unvalidated on all others.

    A folder without a recorded held-out AUC, or with one under ``minimum_auc``, is refused: with a scorer at chance
    level, a constraint has no meaning. ``python train.py fit_scorer`` measures and records the AUC.
    """

    def __init__(
        self,
        features: Features,
        folder: str,
        minimum_auc: float = 0.6,
        units: Literal["log_odds", "probability"] = "log_odds",
        scale: float = 1.0,
        strength: float = 0.3,
    ) -> None:
        """Name the scorer; the first call reads it from its folder.

        Args:
            features: Features of a prompt and a response.
            folder: Folder written by ``fit_scorer``.
            minimum_auc: Smallest accepted area under the ROC curve, against held-out human labels.
            units: Units of the score: calibrated log-odds or probability of being unsafe.
            scale: Cost units per unit of score.
            strength: Inverse of the L2 penalty; used only by ``fit``.
        """
        if scale <= 0:
            raise ValueError(f"scale must be > 0 (a negative one swaps safe and unsafe), got {scale}")
        self.features = features
        self.folder = folder
        self.minimum_auc = minimum_auc
        self.units = units
        self.scale = scale
        self.strength = strength
        self._head: LogisticHead | None = None

    def fit(
        self, prompts: Sequence[str], responses: Sequence[str], unsafe: Sequence[bool], prompt_ids: Sequence[int]
    ) -> Tensor:
        """Fit on labelled texts of the training split; ``prompt_ids`` keep a prompt's texts in one fold.

        Returns:
            Out-of-fold costs [n]: each text is scored by a head fitted on other prompts.

        Raises:
            ValueError: If the lengths differ, a label is missing, or the features do not rank unseen texts.
        """
        lengths = {len(prompts), len(responses), len(unsafe), len(prompt_ids)}
        if len(lengths) != 1:
            raise ValueError(f"one prompt, response, label and prompt id for each text, got {sorted(lengths)}")
        features = self.features.fit(prompts, responses)
        self._head, log_odds = fit_logistic_head(features, unsafe, prompt_ids, self.strength)
        return self._cost(log_odds, self._head.threshold)

    @property
    def range(self) -> tuple[float, float] | None:
        """The ends of the costs for probabilities, in cost units. None for log-odds, which have no bounds.

        Raises:
            FileNotFoundError: If the folder contains no fitted scorer.
            ValueError: As for a call.
        """
        if self.units != "probability":
            return None
        border = 1 / (1 + math.exp(-self._fitted().threshold))
        return -self.scale * border, self.scale * (1 - border)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Costs [n] float32 of ``n`` responses to ``n`` prompts.

        Raises:
            FileNotFoundError: If the folder contains no fitted scorer.
            ValueError: If its recorded AUC is missing or under ``minimum_auc``, or it was fitted on other features.
        """
        head = self._fitted()
        if not responses:
            return torch.zeros(0)
        return self._cost(head.log_odds(self.features(prompts, responses)), head.threshold)

    def _fitted(self) -> LogisticHead:
        if self._head is None:
            self.load()
        assert self._head is not None
        return self._head

    def _cost(self, log_odds: Tensor, threshold: float) -> Tensor:
        if self.units == "probability":
            return (self.scale * (log_odds.sigmoid() - 1 / (1 + math.exp(-threshold)))).float()
        return (self.scale * (log_odds - threshold)).float()

    def save(self, card: Mapping[str, Any]) -> None:
        """Write the fitted scorer into its folder; ``card`` holds the measurements, with ``held_out.auc``.

        The card is written last. A folder without one is an incomplete save and is not read.
        """
        if self._head is None:
            raise ValueError("the scorer is not fitted: call fit before save")
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CARD).unlink(missing_ok=True)
        self._head.save(folder / "head.safetensors")
        self.features.save(folder)
        partial = folder / f"{CARD}.partial"
        partial.write_text(
            json.dumps({"features": self.features.describe(), **card}, indent=2) + "\n", encoding="utf-8"
        )
        os.replace(partial, folder / CARD)

    def load(self) -> None:
        """Read the scorer from its folder. Raises the errors of ``__call__``."""
        folder = Path(self.folder)
        card = self._read_card()
        auc = card.get("held_out", {}).get("auc")
        if auc is None:
            raise ValueError(f"the scorer in {folder} has no held-out AUC on its card: run fit_scorer to measure it")
        if not auc >= self.minimum_auc:
            raise ValueError(
                f"the scorer in {folder} has a held-out AUC of {auc:.3f}, under the minimum_auc of {self.minimum_auc}"
            )
        described = self.features.describe()
        if card["features"] != described:
            raise ValueError(f"the scorer in {folder} was fitted on {card['features']}, but {described} is configured")
        self.features.load(folder)
        self._head = LogisticHead.load(folder / "head.safetensors")

    def _read_card(self) -> dict[str, Any]:
        folder = Path(self.folder)
        path = folder / CARD
        if not path.is_file():
            raise FileNotFoundError(
                f"no fitted scorer in {folder}: run `python train.py fit_scorer` with this scorer and labelled data"
            )
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return card

    def card(self) -> ScorerCard:
        """The facts on the folder's card, as for other scorers.

        Raises:
            FileNotFoundError: If the folder contains no fitted scorer.
        """
        read = self._read_card()
        held_out = read.get("held_out", {})
        auc, stderr, low, high = (held_out.get(f"auc{part}") for part in ("", "_stderr", "_low", "_high"))
        counts = (int(held_out.get(name, 0)) for name in ("responses", "prompts"))
        return ScorerCard(
            name=type(self).__name__,
            units={"harm": self.units},
            trained_on=tuple(read.get("trained_on", ("train",))),
            quality={"harm": Quality(auc, stderr, low, high, *counts, **held_out.get("verdicts", {}))},
            data=tuple(read.get("data", ())),
        )

    def check_usable(self, *, reads: str | None = None) -> None:
        """Refuse to move a multiplier or support a certificate with a bad scorer, as ``ScorerCard.check_usable``."""
        self.card().check_usable(self.minimum_auc, reads=reads)

    def digest(self) -> str:
        """A hash of everything that decides a cost: the folder's files, features and settings."""
        found = hashlib.sha256(json.dumps([self.features.describe(), self.units, self.scale]).encode())
        for path in sorted(Path(self.folder).iterdir()):
            if path.suffix in (".safetensors", ".json") and path.name not in (CARD, "hidden.safetensors"):
                found.update(path.name.encode() + path.read_bytes())
            elif path.name == "hidden.safetensors":  # its cache of texts may grow; what was learned stays
                learned = load_file(path)
                found.update(learned["centre"].numpy().tobytes() + learned["spread"].numpy().tobytes())
        return found.hexdigest()
