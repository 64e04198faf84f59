"""What a pair refuses, and what it says, when it is loaded."""

import logging

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as kinds
from transformers import PreTrainedTokenizerFast

from models.adaptation import Full, LoRA
from models.pair import PolicyReference
from models.reference import Checkpoint
from models.sources import TinyLlama
from tests.models.adapter_world import Small


class Swapped(TinyLlama):
    """The same number of tokens, two of which have changed places."""

    def load_tokenizer(self):
        own = super().load_tokenizer()
        vocabulary = own.get_vocab()
        vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
        made = Tokenizer(kinds.BPE(vocab=vocabulary, merges=[]))
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>")


def test_a_reference_that_reads_other_tokens_is_refused():
    number = TinyLlama().load_tokenizer().get_vocab()["A"]
    message = rf"reads other tokens .*'A' is number {number} of the policy's and {number + 1} of the reference's"
    with pytest.raises(ValueError, match=message):
        PolicyReference(TinyLlama(), reference=Checkpoint(Swapped(seed=1))).load()
    PolicyReference(TinyLlama(), reference=Checkpoint(TinyLlama(seed=1))).load()


@pytest.mark.parametrize(
    ("adaptation", "said"),
    [(Full(), True), (LoRA(r=2), True), (LoRA(r=2, target_modules=["q_proj"]), False)],
    ids=["full", "all linear", "attention"],
)
def test_routers_that_train_without_their_own_loss_are_named(adaptation, said, caplog):
    with caplog.at_level(logging.WARNING, logger="models.load_checks"):
        PolicyReference(Small("mixtral"), adaptation).load()
    assert ("2 routers train" in caplog.text or "4 routers train" in caplog.text) == said


def test_a_dense_model_has_nothing_to_say_of_routers(caplog):
    PolicyReference(Small("llama")).load()
    assert "routers" not in caplog.text
