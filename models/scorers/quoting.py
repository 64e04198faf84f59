"""Token ids of texts in which the strings of special tokens are quoted text, not tokens."""

from __future__ import annotations

import transformers

QUOTE = "\ue0f0"  # inserted into the string of a special token in a text, which is then read as quoted text


class Quoting:
    """Marks the special tokens of a tokenizer in foreign texts, so that a text cannot end a turn or begin another.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: transformers.PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        texts = {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
        self.specials = sorted(filter(None, texts), key=len, reverse=True)

    def quoted(self, text: str) -> str:
        """``text`` in which the strings of special tokens are marked."""
        text = text.replace(QUOTE, "")
        for special in self.specials:
            if special in text:
                text = text.replace(special, special[0] + QUOTE + special[1:])
        return text

    def ids(self, text: str) -> list[int]:
        """The ids of a text with marks. Strings of special tokens without a mark are special tokens."""
        return [
            token
            for piece in text.split(QUOTE)
            if piece
            for token in self.tokenizer(piece, add_special_tokens=False, verbose=False).input_ids
        ]
