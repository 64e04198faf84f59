"""A model behind an OpenAI-compatible server as judge. Prompts and responses are sent to that server."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lit_safe.scorer_card import MINIMUM_AUC
from models.scorers.formats.judge_format import JudgeFormat
from models.scorers.http_json import check_url, post_json
from models.scorers.verdicts import VerdictJudge


class EndpointJudge(VerdictJudge):
    """Asks ``POST <url>/chat/completions`` about each response at temperature 0, and reads the verdict.

    No shipped setting uses it by itself. The key is read from the environment when it is needed. It is in no digest,
    message, file or log, and is sent unencrypted only to this machine.

    ``evaluate`` and ``annotate`` keep verdicts after each batch, so a killed command asks only what is missing. A
    verdict that changes with time at the server cannot be noticed here.

    Args:
        url: Address of the interface, for example ``http://127.0.0.1:8000/v1``.
        model: Name of the model at the server.
        format: How to ask, and how to read the verdict: a class of ``models.scorers.formats``. The server applies the
            model's own chat template.
        key_variable: Environment variable with the key; null sends none.
        requests_at_once: Number of requests under way at once.
        retries: Further tries after a passing error, such as a rate limit.
        timeout: Seconds until a try counts as failed.
        extra: Further values of a request, for example ``{seed: 0}``.
        folder: As in ``VerdictJudge``, like the next three.
        malformed_as: Verdict in place of NaN, 0 or 1.
        minimum_auc: Smallest acceptable AUC for multipliers and certificates.
        forced: Name of the judge (the model's), to use it in any case.

    Raises:
        ValueError: If a number is out of range, or the address is unusable.
    """

    def __init__(
        self,
        url: str,
        model: str,
        format: JudgeFormat,
        key_variable: str | None = "OPENAI_API_KEY",
        requests_at_once: int = 4,
        retries: int = 6,
        timeout: float = 120.0,
        extra: dict[str, Any] | None = None,
        folder: str | None = None,
        malformed_as: int | None = None,
        minimum_auc: float = MINIMUM_AUC,
        forced: str | None = None,
    ) -> None:
        super().__init__(format, folder, malformed_as, minimum_auc, forced)
        if requests_at_once < 1 or retries < 0 or not timeout > 0:
            raise ValueError(
                f"requests_at_once must be >= 1, retries >= 0 and timeout > 0, got {requests_at_once}, {retries} and "
                f"{timeout}"
            )
        if key_variable is not None and not re.fullmatch(r"[A-Za-z_]\w*", key_variable):
            raise ValueError("key_variable must be the name of an environment variable, never the key itself")
        check_url(url, has_key=key_variable is not None)
        self.url = url.rstrip("/")
        self.model = model
        self.key_variable = key_variable
        self.requests_at_once = requests_at_once
        self.retries = retries
        self.timeout = timeout
        self.extra = dict(extra or {})

    @property
    def name(self) -> str:
        return self.model

    def settings(self) -> list[object]:
        return [self.url, self.model, self.extra]

    def outputs_of(self, prompts: Sequence[str], responses: Sequence[str]) -> list[str]:
        """As in ``VerdictJudge``.

        Raises:
            ValueError: If the key is missing, the server refuses a request, or its answer holds no text.
            ConnectionError: If the server does not answer.
        """
        key = self._key()
        with ThreadPoolExecutor(self.requests_at_once) as pool:
            return list(pool.map(lambda prompt, response: self._output(prompt, response, key), prompts, responses))

    def _output(self, prompt: str, response: str, key: str | None) -> str:
        body = {
            "model": self.model,
            "messages": self.format.turns(prompt, response),
            "temperature": 0,
            "max_tokens": self.format.max_new_tokens,
            **self.extra,
        }
        place = f"{self.url}/chat/completions"
        answer = post_json(place, body, key=key, timeout=self.timeout, retries=self.retries)
        try:
            content = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"{place} answers without choices[0].message.content: {str(answer)[:120]}") from None
        return "" if content is None else str(content)

    def _key(self) -> str | None:
        if self.key_variable is None:
            return None
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise ValueError(
                f"the environment variable {self.key_variable} has no key for {self.url}: set it, or set "
                "key_variable to null for a server without keys"
            )
        return key
