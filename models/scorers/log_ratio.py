"""Scores of responses from an aligned model: its log-ratio to the model from which it was trained (PeCAN)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from lit_safe.sequences import pack_sequences
from models.digest import digest
from models.pair import PolicyReference
from models.reference import Checkpoint
from models.scorers.score_folder import batches
from models.scorers.score_text import ScoreText
from models.sources import ModelSource

Gives = Literal["reward", "cost"]


class LogRatioScore:
    """A ``lit_safe.types.CostFunction``: beta times the log-ratio of a response under two models.

    A model trained by DPO is optimal for the reward beta log(model / reference), up to a number for each prompt
    (Rafailov et al. 2023, arXiv:2305.18290, eq. 5). PeCAN (Huang et al. 2024, arXiv:2405.19544) takes the reward from a
    model aligned to helpfulness, and the safety from one aligned to safety, instead of score models. The authors' code
    leaves beta out, which is ``beta: 1``: labels are then sharper than the models imply, by 1 / beta.

    The number for each prompt cancels within a pair and in the tilted policy. It moves every cost of a prompt alike, so
    a limit counts from the reference: ``reach`` shows the reference's own mean cost.

    Args:
        model: The aligned model.
        reference: The model from which it was trained. Its vocabulary must be the same.
        beta: Of the DPO run that aligned the model, > 0. Scores are in nats of Bradley-Terry.
        gives: ``reward``, larger is better; or ``cost``, its negative, where the model was aligned to safety.
        max_length: Maximum number of tokens of a text.
        batch_tokens: Maximum number of tokens in a forward pass.

    Raises:
        ValueError: If a number is not positive, or ``gives`` is unknown.
    """

    def __init__(
        self,
        model: ModelSource,
        reference: ModelSource,
        beta: float = 0.1,
        gives: Gives = "reward",
        max_length: int = 512,
        batch_tokens: int = 8192,
    ) -> None:
        for name, value in (("beta", beta), ("max_length", max_length), ("batch_tokens", batch_tokens)):
            if not value > 0:
                raise ValueError(f"{name} must be > 0, got {value}")
        if gives not in get_args(Gives):
            raise ValueError(f"gives must be one of {', '.join(get_args(Gives))}, got {gives!r}")
        self.beta = beta
        self.gives = gives
        self.max_length = max_length
        self.batch_tokens = batch_tokens
        self.pair = PolicyReference(model, reference=Checkpoint(reference))
        self._text: ScoreText | None = None
        self._device = torch.device("cpu")

    @property
    def outputs(self) -> tuple[str, ...]:
        """The name of the score."""
        return (self.gives,)

    def digest(self) -> str:
        """A hash of everything that decides a score: both models with every bit, and the settings."""
        self._loaded()
        assert self.pair.policy is not None
        settings = [self.beta, self.gives, self.max_length]
        parts = [digest(self.pair.policy), self.pair.reference_digest(), json.dumps(settings)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def use_device(self, device: torch.device) -> None:
        """Run on ``device`` from now on."""
        self._device = device
        self.pair.to(device)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """[n] float32 scores. The stop token after a response counts; a response that is cut has none.

        Raises:
            ValueError: If a score is not finite (the error gives the response's start).
        """
        text = self._loaded()
        parts = [text.parts(*both) for both in zip(prompts, responses, strict=True)]
        score_n = torch.zeros(len(parts))
        for rows in batches([len(prompt) + len(response) for prompt, response in parts], self.batch_tokens):
            sequences = pack_sequences(*zip(*(parts[row] for row in rows), strict=True))
            logp = self.pair.both_logp(type(sequences)(*(part.to(self._device) for part in sequences[:4])))
            score_n[rows] = self.beta * (logp.policy - logp.reference).float().cpu()
        wrong = (~score_n.isfinite()).nonzero()[:, 0].tolist()
        if wrong:
            raise ValueError(
                f"{self.pair.source.describe()} gave the log-ratio {score_n[wrong[0]].item()} for the response "
                f"{responses[wrong[0]][:40]!r}"
            )
        return -score_n if self.gives == "cost" else score_n

    def _loaded(self) -> ScoreText:
        if self._text is None:
            self.pair.load()
            self.pair.requires_grad_(False).to(self._device)
            self._text = ScoreText(self.pair.load_tokenizer(), max_length=self.max_length)
        return self._text
