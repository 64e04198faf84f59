"""Refuses rows that a model cannot read."""

from __future__ import annotations

import numpy as np

from data.tokens import TokenisedPairs, TokenisedRows


def check_readable(rows: TokenisedPairs | TokenisedRows, positions: int | None, vocabulary: int, tokens: int) -> None:
    """Check that every row fits into a model.

    Args:
        rows: The rows.
        positions: The model's maximum number of tokens in a sequence; None if it has none.
        vocabulary: Rows of the model's embedding.
        tokens: Tokens of the tokenizer, for the message.

    Raises:
        ValueError: A row is too long, or it has a token that the embedding lacks. The message names the row.
    """
    sides = [getattr(rows, side) for side in ("chosen", "rejected", "response") if hasattr(rows, side)]
    sizes = rows.prompt.sizes + np.max([side.sizes for side in sides], axis=0)
    if positions is not None and len(sizes) and np.max(sizes) > positions:
        raise ValueError(
            f"row {rows.name[int(np.argmax(sizes))]} has {int(np.max(sizes)):,} tokens, and the model has "
            f"{positions:,} positions: set data.init_args.max_length to at most {positions}"
        )
    for ids in (rows.prompt, *sides):
        beyond = np.flatnonzero(ids.values >= vocabulary)
        if len(beyond):
            row = int(np.searchsorted(ids.offsets, beyond[0], side="right")) - 1
            raise ValueError(
                f"row {rows.name[row]} has token {int(ids.values[beyond[0]]):,}, and the model's embedding has "
                f"{vocabulary:,} rows for a tokenizer of {tokens:,} tokens: name the model's own tokenizer, or save "
                "the model with its embedding resized (resize_token_embeddings)"
            )
