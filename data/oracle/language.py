"""The oracle world's tokenizer: one token a word, in Hugging Face's format."""

from __future__ import annotations

from pathlib import Path

import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from data.oracle.grammar import words

END = "<end>"  # ends a response, and pads: whoever masks by the pad id is found out here
UNKNOWN = "<unk>"


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of every word that a prompt or a response can hold; it gives a text back exactly.

    It puts nothing in front of a text. The unknown word is no special token, so that it is seen in what a policy says,
    and such a text is malformed.
    """
    vocabulary = {word: number for number, word in enumerate((END, UNKNOWN, *words()))}
    backend = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END, pad_token=END, clean_up_tokenization_spaces=False
    )


def save(folder: str | Path) -> None:
    """Write the tokenizer where ``AutoTokenizer.from_pretrained(folder)`` finds it."""
    tokenizer().save_pretrained(str(folder))
