"""Guardrail models as judges: Llama Guard, WildGuard, Granite Guardian, or any chat model with a question.

Letters: B texts of a batch, S padded length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import transformers
from jinja2 import TemplateError
from torch import Tensor

from lit_safe.scorer_card import MINIMUM_AUC
from models.digest import fingerprint
from models.scorers.formats.judge_format import JudgeFormat
from models.scorers.quoting import Quoting
from models.scorers.score_folder import batches
from models.scorers.verdicts import VerdictJudge
from models.sources import ModelSource


class GuardModel(VerdictJudge):
    """Asks a causal language model about each response, by greedy decoding, and reads its verdict.

    Strings of special tokens in prompts and responses are quoted text, so a response cannot end its turn in the
    judge's prompt. A text that is too long is cut: the longer one of prompt and response loses its middle. Its number
    is in ``cut``.

    Args:
        source: The model.
        format: How to ask, and how to read the verdict: a class of ``models.scorers.formats``.
        text: ``own`` renders with the tokenizer's chat template. ``written`` takes the format's published text. Null
            takes ``written`` if the tokenizer has no template.
        folder: As in ``VerdictJudge``, like the next three.
        malformed_as: Verdict in place of NaN, 0 or 1.
        minimum_auc: Smallest acceptable AUC for multipliers and certificates.
        forced: Name of the judge, to use it in any case.
        max_length: Maximum number of tokens of a question.
        batch_tokens: Maximum number of tokens of a batch of questions, padding included.

    Raises:
        ValueError: If a size is not positive.
    """

    def __init__(
        self,
        source: ModelSource,
        format: JudgeFormat,
        text: Literal["own", "written"] | None = None,
        folder: str | None = None,
        malformed_as: int | None = None,
        minimum_auc: float = MINIMUM_AUC,
        forced: str | None = None,
        max_length: int = 4096,
        batch_tokens: int = 16384,
    ) -> None:
        super().__init__(format, folder, malformed_as, minimum_auc, forced)
        for name, value in (("max_length", max_length), ("batch_tokens", batch_tokens)):
            if value < 1:
                raise ValueError(f"{name} must be > 0, got {value}")
        self.source = source
        self.text = text
        self.max_length = max_length
        self.batch_tokens = batch_tokens
        self.cut = 0
        """Number of questions so far of which a text was cut."""
        self._model: Any = None
        self._quoting: Quoting | None = None
        self._device = torch.device("cpu")

    @property
    def name(self) -> str:
        return str(self.source.describe())

    def settings(self) -> list[object]:
        model, _ = self._loaded()
        return [fingerprint(model), self.text, self.max_length]

    def use_device(self, device: torch.device) -> None:
        """Run on ``device`` from now on."""
        self._device = device
        if self._model is not None:
            self._model.to(device)

    @torch.no_grad()
    def outputs_of(self, prompts: Sequence[str], responses: Sequence[str]) -> list[str]:
        model, quoting = self._loaded()
        asked = [self.ids(*both) for both in zip(prompts, responses, strict=True)]
        outputs = [""] * len(asked)
        stops = _stop_ids(model, quoting.tokenizer)
        config = transformers.GenerationConfig(
            max_new_tokens=self.format.max_new_tokens,
            do_sample=False,
            eos_token_id=stops or None,
            pad_token_id=stops[0] if stops else 0,
        )
        for rows in batches([len(ids) for ids in asked], self.batch_tokens):
            for row, output in zip(rows, self._generate(model, [asked[row] for row in rows], config), strict=True):
                outputs[row] = quoting.tokenizer.decode(output, skip_special_tokens=True)
        return outputs

    def ids(self, prompt: str, response: str) -> list[int]:
        """The ids of a question, at most ``max_length``.

        Raises:
            ValueError: If the template refuses the texts, or the question is too long even without them.
        """
        _, quoting = self._loaded()
        ids = self._ids(quoting, prompt, response)
        if len(ids) <= self.max_length:
            return ids
        self.cut += 1
        if len(self._ids(quoting, "", "")) >= self.max_length:
            raise ValueError(f"max_length is {self.max_length}, and the question of {self.name} alone has more tokens")
        while len(ids) > self.max_length:
            keep = 0.95 * self.max_length / len(ids)
            if len(response) >= len(prompt):
                response = _without_middle(response, keep)
            else:
                prompt = _without_middle(prompt, keep)
            ids = self._ids(quoting, prompt, response)
        return ids

    def _ids(self, quoting: Quoting, prompt: str, response: str) -> list[int]:
        prompt, response = quoting.quoted(prompt), quoting.quoted(response)
        tokenizer: Any = quoting.tokenizer
        written = self.format.written(prompt, response)
        if self.text == "written" and written is None:
            raise ValueError(f"{type(self.format).__name__} has no written text: set text to own")
        if written is None or self.text == "own" or (self.text is None and tokenizer.chat_template is not None):
            try:
                text = tokenizer.apply_chat_template(
                    self.format.turns(prompt, response),
                    tokenize=False,
                    add_generation_prompt=True,
                    **self.format.options(),
                )
            except (TemplateError, ValueError) as error:
                raise ValueError(f"the chat template of {self.name} refuses a question: {error}") from None
            return quoting.ids(str(text))
        ids = quoting.ids(written)
        first = list(tokenizer("a").input_ids)[:1]
        return [*first, *ids] if first == [tokenizer.bos_token_id] and ids[:1] != first else ids

    def _generate(self, model: Any, asked: list[list[int]], config: transformers.GenerationConfig) -> list[list[int]]:
        width = max(map(len, asked))
        ids_BS = torch.tensor([[0] * (width - len(ids)) + ids for ids in asked], device=self._device)
        mask_BS = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in asked], device=self._device)
        out: Tensor = model.generate(input_ids=ids_BS, attention_mask=mask_BS, generation_config=config)
        return [row[width:] for row in out.tolist()]

    def _loaded(self) -> tuple[Any, Quoting]:
        if self._model is None or self._quoting is None:
            model = self.source.load_model().eval().requires_grad_(False)
            model.generation_config = transformers.GenerationConfig()  # keeps out the model's own settings
            self._model = model.to(self._device)
            self._quoting = Quoting(self.source.load_tokenizer())
        return self._model, self._quoting


def _without_middle(text: str, keep: float) -> str:
    """The beginning and the end of a text, together ``keep`` of it."""
    half = int(len(text) * keep / 2)
    return text[:half] + " ... " + text[len(text) - half :] if len(text) > 20 else text[:half]


def _stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the tokenizer's and the model's."""
    named = getattr(model.config, "eos_token_id", None)
    found = [tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    return list(dict.fromkeys(int(token) for token in found if token is not None))
