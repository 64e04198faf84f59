"""A model that is already in memory, for use from Python."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import transformers

from models.sources.source import Description


@dataclass(frozen=True, eq=False)
class Loaded:
    """A causal language model and its tokenizer, as ``from_pretrained`` returned them.

    The policy is a copy, so the original model is unchanged and a second one is in memory.

    Args:
        model: The model, possibly already trained. It is the starting point and the reference.
        tokenizer: Its tokenizer.
        name: Name of the model in reports and exports; null takes the name in its config.
        licence: Licence of the weights, for reports and exports.
    """

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase
    name: str | None = None
    licence: str = "unknown"

    def load_model(self) -> transformers.PreTrainedModel:
        """A copy of the model, in evaluation mode.

        Raises:
            ValueError: If weights hold no numbers, because they are offloaded to the CPU or a disk. Names the first.
        """
        elsewhere = [name for name, parameter in self.model.named_parameters() if parameter.is_meta]
        if elsewhere:
            raise ValueError(
                f"{self.describe()}: {elsewhere[0]} holds no numbers ({len(elsewhere)} such weights): the model is "
                "offloaded, or on the meta device. Read it without device_map"
            )
        return copy.deepcopy(self.model).eval()

    def load_tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        return copy.deepcopy(self.tokenizer)

    def describe(self) -> Description:
        return Description(self.name or self.model.config.name_or_path or "a model in memory", licence=self.licence)
