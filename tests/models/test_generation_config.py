"""Folders of models whose own files have peculiarities that real models have."""

import json

import pytest
import transformers

from models.adaptation import Full, LoRA
from models.pair import PolicyReference
from models.sources import TinyLlama


class UnusedSettings(TinyLlama):
    """Its generation config has settings of ways of decoding that it does not use, as Llama 2 chat's has."""

    def load_model(self) -> transformers.PreTrainedModel:
        model = super().load_model()
        model.generation_config = transformers.GenerationConfig(eos_token_id=[258, 256])
        for name, value in {"temperature": 0.9, "top_p": 0.6, "do_sample": False, "length_penalty": 0.5}.items():
            setattr(model.generation_config, name, value)
        return model


@pytest.mark.parametrize(
    ("adaptation", "adapter_only"),
    [(Full(), False), (LoRA(r=2), False), (LoRA(r=2), True)],
    ids=["full", "merged", "adapter"],
)
def test_a_generation_config_that_transformers_does_not_write_is_cleared_of_unused_settings(
    adaptation, adapter_only, tmp_path
):
    pair = PolicyReference(UnusedSettings(), adaptation)
    pair.load()
    pair.save_pretrained(str(tmp_path), adapter_only=adapter_only)
    written = json.loads((tmp_path / "generation_config.json").read_text(encoding="utf-8"))
    assert written["eos_token_id"] == [256, 258]
    assert not {"temperature", "top_p", "length_penalty"} & {k for k, v in written.items() if v is not None}
    assert pair.policy.causal_lm.generation_config.temperature == 0.9, "writing must not touch the policy"
    transformers.GenerationConfig.from_pretrained(tmp_path).validate(strict=True)
