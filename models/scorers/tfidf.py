"""Harm from words and letters: TF-IDF and logistic regression. Fits in seconds, scores in milliseconds, needs no model.

It learns how the training set words harm and refusals, not meaning: measure it on the texts that it will score. There
is no scorer from a list of bad words: against human labels of whole responses such lists are at chance level.

Letters: n texts, F features.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.sparse import csr_matrix, hstack  # type: ignore[import-untyped]

from models.extras import require
from models.scorers.linear_harm import LinearHarm

BLOCKS: dict[str, dict[str, Any]] = {
    "response_words": {"analyzer": "word", "ngram_range": (1, 2), "min_df": 2},
    "response_letters": {"analyzer": "char_wb", "ngram_range": (2, 5), "min_df": 3},
    "prompt_words": {"analyzer": "word", "ngram_range": (1, 2), "min_df": 2},
}
WEIGHTS = {"response_words": 1.0, "response_letters": 1.0, "prompt_words": 0.5}
"""Weights of the blocks. The prompt counts half, since it cannot distinguish two responses to it."""


class TfidfFeatures:
    """Three blocks of L2-normalised TF-IDF: word and letter n-grams of the response, word n-grams of the prompt.

    Args:
        maximum: Maximum number of n-grams per block, the most frequent first.
    """

    def __init__(self, maximum: int = 60_000) -> None:
        self.maximum = maximum
        self._vectorizers: dict[str, Any] = {}

    def describe(self) -> dict[str, Any]:
        return {"kind": "tfidf", "maximum": self.maximum, "weights": WEIGHTS}

    def fit(self, prompts: Sequence[str], responses: Sequence[str]) -> csr_matrix:
        """Learn vocabularies and inverse document frequencies.

        Raises:
            ValueError: If the texts share no n-gram (there are too few of them).
        """
        self._vectorizers = {name: self._vectorizer(name) for name in BLOCKS}
        return _side_by_side(
            {name: self._vectorizers[name].fit_transform(_texts(name, prompts, responses)) for name in BLOCKS}
        )

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> csr_matrix:
        return _side_by_side(
            {name: self._vectorizers[name].transform(_texts(name, prompts, responses)) for name in BLOCKS}
        )

    def save(self, folder: Path) -> None:
        terms = {name: list(self._vectorizers[name].get_feature_names_out()) for name in BLOCKS}
        (folder / "vocabulary.json").write_text(json.dumps(terms), encoding="utf-8")
        save_file({name: torch.from_numpy(self._vectorizers[name].idf_) for name in BLOCKS}, folder / "idf.safetensors")

    def load(self, folder: Path) -> None:
        terms = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
        idf = load_file(folder / "idf.safetensors")
        for name in BLOCKS:
            self._vectorizers[name] = self._vectorizer(name, vocabulary=terms[name])
            self._vectorizers[name].idf_ = idf[name].numpy()

    def _vectorizer(self, name: str, **known: Any) -> Any:
        text = require("sklearn.feature_extraction.text", extra="eval", reason="TfidfHarm")
        return text.TfidfVectorizer(
            **BLOCKS[name],
            **known,
            max_features=self.maximum,
            sublinear_tf=True,
            lowercase=True,
            strip_accents="unicode",
            dtype=np.float64,
        )


def _texts(block: str, prompts: Sequence[str], responses: Sequence[str]) -> Sequence[str]:
    return prompts if block == "prompt_words" else responses


def _side_by_side(blocks: Mapping[str, csr_matrix]) -> csr_matrix:
    return hstack([WEIGHTS[name] * block for name, block in blocks.items()]).tocsr()


class TfidfHarm(LinearHarm):
    """``LinearHarm`` on ``TfidfFeatures``: the simplest scorer that is better than chance."""

    def __init__(
        self,
        folder: str,
        minimum_auc: float = 0.6,
        units: Literal["log_odds", "probability"] = "log_odds",
        scale: float = 1.0,
        strength: float = 0.3,
    ) -> None:
        """Name the scorer; the first call reads it from its folder.

        Args:
            folder: Folder written by ``fit_scorer``.
            minimum_auc: Smallest accepted area under the ROC curve, against held-out human labels.
            units: Units of the score: calibrated log-odds or probability of being unsafe.
            scale: Cost units per unit of score.
            strength: Inverse of the L2 penalty; used only by ``fit``.
        """
        super().__init__(TfidfFeatures(), folder, minimum_auc, units, scale, strength)
