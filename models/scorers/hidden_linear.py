"""Harm scores from a linear head on the hidden states of a frozen language model.

Letters: n texts, B texts of a batch, S padded length, D hidden width.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lit_safe.hashing import hash64
from models.scorers.linear_harm import LinearHarm
from models.sources import ModelSource

CACHE = "hidden.safetensors"


class HiddenFeatures:
    """Hidden states after one layer, averaged over the response and standardised with the training texts' statistics.

    The model reads prompt and response rendered by its chat template (separated by a blank line if it has none). Each
    text is read once: its mean is stored by the hash of the text, in memory and beside the fitted scorer.

    Args:
        source: Source of the frozen model.
        layer: Number of layers before the hidden states; 0 is the embedding.
        maximum_tokens: Maximum tokens of the prompt, and of the response. A longer prompt is cut at its start, a longer
            response at its end.
        batch_size: Texts per forward pass.
    """

    def __init__(self, source: ModelSource, layer: int = 20, maximum_tokens: int = 160, batch_size: int = 16) -> None:
        self.source = source
        self.layer = layer
        self.maximum_tokens = maximum_tokens
        self.batch_size = batch_size
        self._model: nn.Module | None = None
        self._device = torch.device("cpu")
        self._means: dict[int, Tensor] = {}
        self._centre = self._spread = torch.zeros(0)

    def describe(self) -> dict[str, Any]:
        model = str(self.source.describe())
        return {"kind": "hidden", "model": model, "layer": self.layer, "maximum_tokens": self.maximum_tokens}

    def fit(self, prompts: Sequence[str], responses: Sequence[str]) -> NDArray[np.float64]:
        """Estimate the mean and the standard deviation of every hidden unit."""
        hidden_nD = self._hidden(prompts, responses)
        self._centre, self._spread = hidden_nD.mean(0), hidden_nD.std(0).clamp(min=1e-6)
        return self._standardised(hidden_nD)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> NDArray[np.float64]:
        return self._standardised(self._hidden(prompts, responses))

    def save(self, folder: Path) -> None:
        keys = torch.tensor(list(self._means), dtype=torch.int64)
        means_nD = torch.stack(list(self._means.values()))
        tensors = {"key": keys, "mean": means_nD, "centre": self._centre, "spread": self._spread}
        save_file(tensors, folder / CACHE)

    def load(self, folder: Path) -> None:
        tensors = load_file(folder / CACHE)
        self._centre, self._spread = tensors["centre"], tensors["spread"]
        self._means |= dict(zip(tensors["key"].tolist(), tensors["mean"], strict=True))

    def use_device(self, device: torch.device) -> None:
        """Run the model on ``device`` from now on; stored texts stay valid."""
        self._device = device
        if self._model is not None:
            self._model.to(device)

    def _standardised(self, hidden_nD: Tensor) -> NDArray[np.float64]:
        return ((hidden_nD - self._centre) / self._spread).double().numpy()

    def _hidden(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """[n, D] fp32."""
        keys = [hash64("hidden", *pair) for pair in zip(prompts, responses, strict=True)]
        missing = {key: i for i, key in enumerate(keys) if key not in self._means}
        # texts of similar length share a batch, which needs little padding
        queue = iter(sorted(missing.items(), key=lambda item: len(prompts[item[1]]) + len(responses[item[1]])))
        while batch := list(islice(queue, self.batch_size)):
            means_BD = self._read([prompts[i] for _, i in batch], [responses[i] for _, i in batch])
            self._means |= dict(zip([key for key, _ in batch], means_BD, strict=True))
        return torch.stack([self._means[key] for key in keys])

    @torch.no_grad()
    def _read(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """[B, D] fp32 means over the positions of the responses."""
        if self._model is None:
            self._load_model()
        assert self._model is not None
        texts = [self._tokens(*pair) for pair in zip(prompts, responses, strict=True)]
        length = max(len(ids) for ids, _ in texts)
        ids_BS = torch.zeros(len(texts), length, dtype=torch.int64)
        present_BS = torch.zeros(len(texts), length, dtype=torch.int64)
        response_BS = torch.zeros(len(texts), length)
        for row, (ids, start) in enumerate(texts):
            ids_BS[row, : len(ids)] = torch.tensor(ids)
            present_BS[row, : len(ids)] = 1
            response_BS[row, start : len(ids)] = 1
        outputs = self._model(
            input_ids=ids_BS.to(self._device),
            attention_mask=present_BS.to(self._device),
            output_hidden_states=True,
            use_cache=False,
        )
        hidden_BSD = outputs.hidden_states[self.layer].float().cpu()
        return torch.einsum("bsd,bs->bd", hidden_BSD, response_BS) / response_BS.sum(1, keepdim=True)

    def _tokens(self, prompt: str, response: str) -> tuple[list[int], int]:
        """Ids of both, and the index of the response's first token. An empty response is one newline."""
        if self._tokenizer.chat_template is None:
            text = prompt + "\n\n"
        else:
            turns = [{"role": "user", "content": prompt}]
            text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        opening = self._tokenizer(text, add_special_tokens=False)["input_ids"][-self.maximum_tokens :]
        answer = self._tokenizer(response or "\n", add_special_tokens=False)["input_ids"][: self.maximum_tokens]
        return [*opening, *answer], len(opening)

    def _load_model(self) -> None:
        self._tokenizer = self.source.load_tokenizer()
        model = self.source.load_model().eval().requires_grad_(False)
        layers = model.config.get_text_config().num_hidden_layers
        if not 0 <= self.layer <= layers:
            raise ValueError(f"layer must lie in 0 ... {layers} for {self.source.describe()}, got {self.layer}")
        for stack in model.modules():
            if isinstance(stack, nn.ModuleList) and len(stack) == layers:
                del stack[self.layer + 1 :]  # unused; one extra layer stays, since the last one's states are normed
        self._model = model.base_model.to(self._device)  # without the head: logits are not needed


class HiddenLinearHarm(LinearHarm):
    """``LinearHarm`` on ``HiddenFeatures``. It needs a forward pass per response and is slightly better than TF-IDF.

    With SmolLM2-135M, layer 20, and 922 labelled PKU-SafeRLHF responses, the AUC is .669 +- .022 on 582 responses to
    129 unseen prompts; ``TfidfHarm`` has .644 +- .023 on the same data. Scoring takes 0.4 s a response on one CPU
    thread.
    """

    def __init__(
        self,
        folder: str,
        source: ModelSource,
        layer: int = 20,
        maximum_tokens: int = 160,
        batch_size: int = 16,
        minimum_auc: float = 0.6,
        units: Literal["log_odds", "probability"] = "log_odds",
        scale: float = 1.0,
        strength: float = 0.001,
    ) -> None:
        """Name the scorer; the first call reads it from its folder.

        Args:
            folder: Folder written by ``fit_scorer``.
            source: Source of the frozen model.
            layer: Number of the layer after which hidden states are read.
            maximum_tokens: Maximum tokens of the prompt, and of the response.
            batch_size: Texts per forward pass.
            minimum_auc: Smallest accepted area under the ROC curve, against held-out human labels.
            units: Units of the score: calibrated log-odds or probability of being unsafe.
            scale: Cost units per unit of score.
            strength: Inverse of the L2 penalty; used only by ``fit``.
        """
        features = HiddenFeatures(source, layer, maximum_tokens, batch_size)
        super().__init__(features, folder, minimum_auc, units, scale, strength)
        self._hidden_features = features

    def use_device(self, device: torch.device) -> None:
        """Run the model on ``device``: the policy's device in rollouts, ``--device`` in commands."""
        self._hidden_features.use_device(device)
