"""Scores of responses from a sequence-classification folder: rewards or costs.

Letters: n texts, B texts of a batch, S padded length, K outputs of the model, C of them used.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor

from lit_safe.scorer_card import CARD, MINIMUM_AUC, ScorerCard
from models.scorers.beaver import TEMPLATE, is_beaver, load_beaver
from models.scorers.score_text import ScoreText

REWARD = "reward"
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


class ScoreFolder:
    """A ``lit_safe.types.CostFunction`` that reads any ``AutoModelForSequenceClassification`` folder.

    Folders of ``lit_safe.training.score_model.ScoreModel``, other sequence classifiers, and Safe-RLHF's score models
    (Beaver) are read alike. A text is the prompt as a user's turn and the response as the assistant's, ended by the
    stop token, at which the score is read. The scorer computes the classifier's own logits, in batches of texts of
    similar length.

    Args:
        folder: Folder or hub id.
        outputs: Names of the outputs to use, in this order. Null takes all but ``reward``; the reward if it is the only
            one.
        template: ``own`` takes the folder's chat template; ``safe_rlhf`` takes Safe-RLHF's, which its own models get in
            any case.
        max_length: Maximum number of tokens of a text; null takes the card's, or 512.
        batch_tokens: Maximum number of tokens in a forward pass, padding included.
        scale: Multiplies every score, > 0.
        threshold: Score at which the cost is 0: ``cost = scale * (score - threshold)``.
        minimum_auc: Smallest acceptable area under the ROC curve against held-out human labels, for multipliers and
            certificates.
        forced: Name of the scorer, as its card gives it, to use it although its AUC is missing or too small.
        dtype: Type of the weights and of the computation.

    Raises:
        ValueError: If a size or ``scale`` is not positive.
    """

    def __init__(
        self,
        folder: str,
        outputs: list[str] | None = None,
        template: Literal["own", "safe_rlhf"] = "own",
        max_length: int | None = None,
        batch_tokens: int = 8192,
        scale: float = 1.0,
        threshold: float = 0.0,
        minimum_auc: float = MINIMUM_AUC,
        forced: str | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        for name, value in (("max_length", max_length or 1), ("batch_tokens", batch_tokens), ("scale", scale)):
            if not value > 0:
                raise ValueError(f"{name} must be > 0, got {value}")
        if template not in ("own", "safe_rlhf"):
            raise ValueError(f"template must be own or safe_rlhf, got {template!r}")
        self.folder = folder
        self.asked = None if outputs is None else list(outputs)
        self.template = template
        self.max_length = max_length
        self.batch_tokens = batch_tokens
        self.scale = scale
        self.threshold = threshold
        self.minimum_auc = minimum_auc
        self.forced = forced
        self.dtype = dtype
        self._model: Any = None
        self._text: ScoreText | None = None
        self._index: list[int] = []
        self._device = torch.device("cpu")

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Scores [n] float32 of one output, or [n, C] of several.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If an output does not exist, or a score is not finite (the error gives the response's start).
        """
        model, text = self._loaded()
        ids = [text.ids(*pair) for pair in zip(prompts, responses, strict=True)]
        score_nC = torch.zeros(len(ids), len(self._index))
        # a stock classifier without a pad token reads one text at a time
        limit = 0 if model.config.get_text_config().pad_token_id is None else self.batch_tokens
        for rows in batches([len(one) for one in ids], limit):
            score_nC[rows] = self._scores(model, [ids[row] for row in rows]).cpu()
        wrong = (~score_nC.isfinite()).any(-1).nonzero()[:, 0].tolist()
        if wrong:
            raise ValueError(
                f"the scorer {self.folder} gave {score_nC[wrong[0]].tolist()} for the response "
                f"{responses[wrong[0]][:40]!r}"
            )
        score_nC = self.scale * (score_nC - self.threshold)
        return score_nC[:, 0] if len(self._index) == 1 else score_nC

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs that a call returns, in order."""
        model, _ = self._loaded()
        return tuple(str(model.config.id2label[k]) for k in self._index)

    @property
    def range(self) -> tuple[float, float] | None:
        """Smallest and largest possible cost, from the card's range. None if the card has none, and with the reward."""
        card = self.card()
        if card is None or card.range is None or REWARD in (self.asked or ()):
            return None
        low, high = card.range
        return self.scale * (low - self.threshold), self.scale * (high - self.threshold)

    def use_device(self, device: torch.device) -> None:
        """Run on ``device`` from now on."""
        self._device = device
        if self._model is not None:
            self._model.to(device)

    def card(self) -> ScorerCard | None:
        """The folder's card; None if it has none."""
        return ScorerCard.load(self.folder) if (Path(self.folder) / CARD).is_file() else None

    def check_usable(self, *, reads: str | None = None) -> None:
        """Refuse to move a multiplier or support a certificate with an unmeasured or bad scorer.

        Args:
            reads: The split whose prompts are scored.

        Raises:
            ValueError: As in ``ScorerCard.check_usable``. A folder without a card must be forced by its name.
        """
        name = Path(self.folder).name
        card = self.card()
        if card is None:
            card = ScorerCard(name, {}, (), {}, details={"card": "none"})
        card.check_usable(self.minimum_auc, self.forced, outputs=self.outputs, reads=reads)

    def digest(self) -> str:
        """A hash of everything that decides a score: the folder's files and the settings."""
        found = hashlib.sha256()
        for path in sorted(Path(self.folder).iterdir()):
            if path.suffix in (".safetensors", ".bin", ".json", ".jinja", ".model") and path.name != CARD:
                found.update(path.name.encode())
                with path.open("rb") as file:
                    found.update(hashlib.file_digest(file, "sha256").digest())
        settings = [self.asked, self.template, self.max_length, self.scale, self.threshold, self.dtype]
        found.update(json.dumps(settings).encode())
        return found.hexdigest()

    def _loaded(self) -> tuple[Any, ScoreText]:
        if self._model is not None and self._text is not None:
            return self._model, self._text
        if not Path(self.folder).is_dir() and not HUB_ID.fullmatch(self.folder):
            raise FileNotFoundError(
                f"there is no score model in {self.folder}: train one (configs/score/cost.yaml), or name a folder or a "
                "hub id"
            )
        config = transformers.AutoConfig.from_pretrained(self.folder)
        options = {"dtype": getattr(torch, self.dtype)}
        beaver = is_beaver(config)
        if beaver:
            model: Any = load_beaver(self.folder, **options)
        else:
            model = transformers.AutoModelForSequenceClassification.from_pretrained(self.folder, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
        if beaver:
            model.config.id2label = _beaver_outputs(model.config)
        names = {str(name): k for k, name in model.config.id2label.items()}
        wanted = self.asked if self.asked is not None else [n for n in names if n != REWARD] or list(names)
        unknown = [name for name in wanted if name not in names]
        if unknown:
            raise ValueError(f"{self.folder} has no output {unknown[0]!r}: its outputs are {', '.join(names)}")
        card = self.card()
        length = self.max_length or (card.details.get("max_length") if card else None) or 512
        template = TEMPLATE if beaver or self.template == "safe_rlhf" else None
        self._index = [names[name] for name in wanted]
        self._text = ScoreText(tokenizer, template, int(length))
        self._model = model.eval().requires_grad_(False).to(self._device)
        return self._model, self._text

    @torch.no_grad()
    def _scores(self, model: Any, ids: list[list[int]]) -> Tensor:
        """[B, C] fp32 logits of the used outputs, of texts padded on the right."""
        pad = model.config.get_text_config().pad_token_id or 0
        length = max(map(len, ids))
        ids_BS = torch.full((len(ids), length), pad, dtype=torch.int64)
        mask_BS = torch.zeros_like(ids_BS)
        for row, one in enumerate(ids):
            ids_BS[row, : len(one)] = torch.tensor(one)
            mask_BS[row, : len(one)] = 1
        logits_BK = model(input_ids=ids_BS.to(self._device), attention_mask=mask_BS.to(self._device)).logits
        found: Tensor = logits_BK.float()[:, self._index]
        return found


def batches(sizes: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices of texts in batches of at most ``tokens`` tokens with padding, longest first. A longer text is alone."""
    batch: list[int] = []
    for row in sorted(range(len(sizes)), key=lambda row: (-sizes[row], row)):
        if batch and sizes[batch[0]] * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _beaver_outputs(config: Any) -> dict[int, str]:
    count, kind = getattr(config, "score_dim", 1), getattr(config, "score_type", REWARD)
    return {0: kind} if count == 1 else {k: f"{kind}_{k}" for k in range(count)}
