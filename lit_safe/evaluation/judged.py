"""Judges responses to questions: refusals, harm, and a reward.

Letters: n responses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lit_safe.evaluation.suites import Question
from lit_safe.rollouts.scoring import name_of, place
from lit_safe.rollouts.text_scores import Text, score_texts
from lit_safe.rollouts.texts import Drawn
from lit_safe.types import CostFunction

Floats = npt.NDArray[np.float64]

REFUSAL, REWARD, UNSAFE = "refusal", "reward", "unsafe/"


@dataclass(frozen=True)
class Judges:
    """Who judges responses.

    Args:
        refusal: A score > 0 is a refusal. Judges all responses.
        harm: Name → judge; a score > 0 is unsafe, of several columns the largest counts. Judge responses to harmful
            prompts.
        reward: Scores all responses; larger is better. None: no reward is measured.
    """

    refusal: CostFunction
    harm: Mapping[str, CostFunction]
    reward: CostFunction | None = None

    def named(self) -> dict[str, CostFunction]:
        """The judges by the name of their column."""
        found = {REFUSAL: self.refusal, **{f"{UNSAFE}{name}": judge for name, judge in self.harm.items()}}
        return found if self.reward is None else {**found, REWARD: self.reward}


class Judged(NamedTuple):
    """The responses [n] of one model, and the scores [n] of each judge. NaN: not judged, or the score is not finite."""

    drawn: Sequence[Drawn]
    score: Mapping[str, Floats]

    def unknown(self, column: str, asked: npt.NDArray[np.bool_]) -> int:
        """How many of the responses that a judge was asked about have no finite score."""
        return int(np.isnan(self.score[column][asked]).sum())


def judge(
    judges: Judges,
    asked: Sequence[Question],
    drawn: Sequence[Drawn],
    *,
    batch: int,
    cache_dir: Path,
    device: torch.device,
) -> Judged:
    """Judge the responses. Scores of judges with a ``digest`` are kept in ``cache_dir``, so a killed call continues.

    Args:
        judges: The judges.
        asked: The question of each response.
        drawn: The responses.
        batch: Number of responses judged at once.
        cache_dir: Folder of kept scores.
        device: Device of judges that run a model.

    Raises:
        ValueError: If a judge returns no scores, a score is outside the range that the judge declares, or the reward
            has several columns.
    """
    scores: dict[str, Floats] = {}
    for column, scorer in judges.named().items():
        place(scorer, device)
        rows = [i for i, question in enumerate(asked) if judges_question(column, question)]
        texts = [Text(asked[i].prompt.text, drawn[i].text, asked[i].row) for i in rows]
        found = np.full(len(asked), np.nan)
        if rows:
            value_nC = score_texts(
                scorer, texts, batch=batch, cache_dir=cache_dir, device=device, unknown=True, what=f"{column} scores"
            ).numpy()
            if column == REWARD and value_nC.shape[1] != 1:
                raise ValueError(
                    f"the reward scorer {name_of(scorer)} gives {value_nC.shape[1]} scores for a response, a reward is "
                    "one: name its output (outputs: [reward])"
                )
            found[rows] = value_nC.max(-1)  # NaN if one is NaN
        scores[column] = found
    return Judged(tuple(drawn), scores)


def judges_question(column: str, question: Question) -> bool:
    """Whether a judge scores the responses to this question: harm is judged on harmful prompts alone."""
    return question.harmful or not column.startswith(UNSAFE)
