"""The packed layout, by hand."""

import pytest
import torch

from lit_safe.sequences import pack_sequences, select_sequences
from lit_safe.types import IGNORE


def test_every_response_token_is_predicted_by_the_position_before_it_and_no_prompt_token_is() -> None:
    packed = pack_sequences([[1, 2], [3], [4, 5]], [[10, 11], [], [12]])
    assert packed.input_ids.tolist() == [1, 2, 10, 11, 3, 4, 5, 12]
    assert packed.target.tolist() == [IGNORE, 10, 11, IGNORE, IGNORE, IGNORE, 12, IGNORE]
    assert packed.position.tolist() == [0, 1, 2, 3, 0, 0, 1, 2]
    assert packed.cu_seqlens.tolist() == [0, 4, 5, 8]


def test_nothing_packs_to_nothing() -> None:
    packed = pack_sequences([], [])
    assert packed.input_ids.shape == (0,)
    assert packed.cu_seqlens.tolist() == [0]


@pytest.mark.parametrize(("prompts", "responses"), [([[]], [[1]]), ([[1]], [])])
def test_a_prompt_without_tokens_or_without_a_response_is_refused(
    prompts: list[list[int]], responses: list[list[int]]
) -> None:
    with pytest.raises(ValueError, match=r"no tokens|shorter"):
        pack_sequences(prompts, responses)


def test_selected_sequences_are_those_packed_alone() -> None:
    prompts, responses = [[1, 2], [3], [4, 5]], [[10, 11], [], [12]]
    index = [2, 0, 2]
    selected = select_sequences(pack_sequences(prompts, responses), torch.tensor(index))
    alone = pack_sequences([prompts[i] for i in index], [responses[i] for i in index])
    assert all(torch.equal(a, b) for a, b in zip(selected[:4], alone[:4], strict=True))
