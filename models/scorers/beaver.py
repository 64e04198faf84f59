"""Safe-RLHF's score models (Beaver): their architecture, normalisation and prompt.

Source: safe_rlhf/models/score_model of github.com/PKU-Alignment/safe-rlhf (Dai et al. 2023, arXiv:2310.12773).

Letters: N sequences, S padded length, K outputs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn

TEMPLATE = (
    "{{ bos_token }}BEGINNING OF CONVERSATION: {% for message in messages %}"
    "{% if message.role == 'user' %}USER: {{ message.content }} "
    "{% else %}ASSISTANT:{{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""Safe-RLHF's prompt, ended by the eos token, at which the score is read."""

EPSILON = 1e-8  # of Safe-RLHF's normalisation


class LlamaForScore(transformers.LlamaPreTrainedModel):
    """A Llama trunk with ``score_head``. Weights are named as in Safe-RLHF: ``model.*`` and ``score_head.*``.

    The score is that of the last token that the attention mask marks. With ``do_normalize`` in the configuration, a
    reward is ``(score - mean) / std`` and a cost is ``score / std``, with the stored mean and variance.
    """

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"normalizer\..*", "lm_head.weight"]
    _keys_to_ignore_on_load_missing: ClassVar[list[str]] = ["score_head.bias"]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = transformers.LlamaModel(config)
        # older checkpoints have no bias: it is then missing and stays 0
        self.score_head = nn.Linear(config.hidden_size, getattr(config, "score_dim", 1), bias=True)
        nn.init.zeros_(self.score_head.bias)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """Scores [N, K] as ``logits``, like a sequence classifier."""
        hidden_NSD = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        place_S = torch.arange(input_ids.shape[1], device=input_ids.device)
        last_N = (place_S * attention_mask).argmax(-1)
        end_ND = hidden_NSD[torch.arange(len(last_N), device=last_N.device), last_N]
        score_NK = self._normalised(self.score_head(end_ND).float())
        return transformers.modeling_outputs.SequenceClassifierOutputWithPast(logits=score_NK)

    def _normalised(self, score_NK: Tensor) -> Tensor:
        config = self.config
        if not getattr(config, "do_normalize", False):
            return score_NK
        mean_K, variance_K = (
            torch.as_tensor(getattr(config, name), dtype=score_NK.dtype, device=score_NK.device)
            for name in ("mean", "var")
        )
        centre_K = mean_K if getattr(config, "score_type", "reward") == "reward" else torch.zeros_like(mean_K)
        return (score_NK - centre_K) / (variance_K.sqrt() + EPSILON)


def is_beaver(config: Any) -> bool:
    """Whether a configuration is that of a Safe-RLHF score model of the Llama family."""
    names = getattr(config, "architectures", None) or []
    return config.model_type == "llama" and any(name.endswith("ForScore") for name in names)


def load_beaver(folder: str | Path, **options: Any) -> LlamaForScore:
    """Read a Safe-RLHF score model from a folder or the hub.

    Raises:
        ValueError: If the checkpoint holds no score head.
    """
    model, report = LlamaForScore.from_pretrained(folder, output_loading_info=True, **options)
    missing = [name for name in report["missing_keys"] if name != "score_head.bias"]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(sorted(missing)[:3])}: it is no complete score model")
    loaded: LlamaForScore = model
    return loaded
