"""The oracle world's tokenizer: one token per word, in Hugging Face's format."""

from __future__ import annotations

from pathlib import Path

import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from data.oracle.world.grammar import words

END = "<end>"  # ends a response and pads, so that tests detect code that masks by the pad id
UNKNOWN = "<unk>"


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of every word that a prompt or a response can contain. Decoding restores a text exactly.

    It adds nothing before a text. The unknown word is not a special token, so it is visible in a policy's text and
    makes that text malformed.
    """
    vocabulary = {word: number for number, word in enumerate((END, UNKNOWN, *words()))}
    backend = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END, pad_token=END, clean_up_tokenization_spaces=False
    )


def save(folder: str | Path) -> None:
    """Write the tokenizer for ``AutoTokenizer.from_pretrained(folder)``."""
    tokenizer().save_pretrained(str(folder))
