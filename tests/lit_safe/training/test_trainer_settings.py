"""Settings of the trainer that manual optimisation does without are refused in words that name ours."""

from typing import Any

import pytest

from tests.lit_safe.pair_world import aligned, pairs, trainer


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"accumulate_grad_batches": 4}, "data.pairs_per_step .* data.micro_batch_tokens .*rows_per_step"),
        ({"gradient_clip_val": 1.0}, "model.gradient_clip_norm"),
    ],
)
def test_a_setting_of_lightning_is_refused_with_the_name_of_ours(option: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        trainer(max_epochs=1, **option).fit(aligned(), pairs())
