"""Fine-tuning data as a LightningDataModule: responses to imitate, split and ordered like preference data."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from data.micro_batches import MicroBatch, MicroBatchLimit, MicroBatchSize
from data.pack import pack_rows, scored_sizes
from data.render import TODAY
from data.rendered import check_sizes
from data.schema import BadRow, SftRow, SftSource
from data.split import Split, assign, placed, text_id
from data.steps import EvalLoader, StepLoader, ordered
from data.tokenised import TokenisedData
from data.tokeniser import OnBadRow, Tokeniser
from data.tokens import Int64s, TokenisedRows
from lit_safe.types import ResponseIds, SequenceBatch


class SftData(TokenisedData[TokenisedRows, SftSource]):
    """Single responses from any number of sources. A prompt is in the same split as in PreferenceData.

    Args:
        sources: Datasets of responses.
        rows_per_step: Rows of one optimizer step over all micro-batches and ranks.
        micro_batch_tokens: Maximum number of tokens, with padding, in one forward and backward pass on one rank; a row
            that has more is computed alone. Rows of similar length are computed together. Null takes a number that
            suits the device and its memory. It has no effect on which rows a step has.
        micro_batch_rows: Maximum number of rows in a pass. Without ``micro_batch_tokens`` it is the only limit.
        eval_batch_rows: Rows of one forward pass without gradients on one rank.
        max_length: Maximum number of tokens of prompt and response together. The response is kept; the prompt is cut
            from its start.
        max_eval_rows: Maximum number of rows of the val split to evaluate, chosen by hash; null takes all.
        on_bad_row: ``error`` stops at an unusable row and names it; ``skip`` counts it in the report.
        tokenizer: Name or folder of a tokenizer; null takes the model's.
        template: Chat template that replaces the tokenizer's own: safe_rlhf, human_assistant, or a .jinja file; null
            takes the tokenizer's.
        template_date: The date that a chat template prints as today's date, whatever day the run takes place.
        rendered: true: prompts are plain text that a chat template has already produced, and special tokens in it are
            read as special tokens. false: special tokens in a prompt are read as quoted text.
        cache_dir: Folder for tokenised rows between runs; null stores none.
        seed: Seed of the order of rows.
        duplicates: ``drop`` keeps a prompt with the same response once. ``keep`` keeps every copy; use it for samples
            whose frequencies are to be learned.
        held_out: false puts every prompt into every split, for a world whose prompts are the whole population. Then
            the val split measures no generalisation, and the report says so.
    """

    kind: type[TokenisedRows] = TokenisedRows

    def __init__(
        self,
        sources: list[SftSource],
        rows_per_step: int = 32,
        micro_batch_rows: int | None = None,
        eval_batch_rows: int = 16,
        max_length: int = 512,
        max_eval_rows: int | None = None,
        on_bad_row: OnBadRow = "error",
        tokenizer: str | None = None,
        cache_dir: str | None = None,
        seed: int = 0,
        duplicates: Literal["drop", "keep"] = "drop",
        held_out: bool = True,
        template: str | None = None,
        template_date: str = TODAY.isoformat(),
        rendered: bool = False,
        micro_batch_tokens: int | None = None,
    ) -> None:
        limits = {"micro_batch_rows": micro_batch_rows, "micro_batch_tokens": micro_batch_tokens}
        check_sizes(rows_per_step=rows_per_step, eval_batch_rows=eval_batch_rows, **limits)
        limit = MicroBatchLimit(micro_batch_rows, micro_batch_tokens)
        rendering = (template, template_date, rendered, limit)
        super().__init__(sources, max_length, on_bad_row, tokenizer, cache_dir, seed, held_out, *rendering)
        self.duplicates = duplicates
        self.rows_per_step = rows_per_step
        self.eval_batch_rows, self.max_eval_rows = eval_batch_rows, max_eval_rows

    def train_dataloader(self) -> StepLoader[SequenceBatch]:
        """Each item is the list of micro-batches of one optimizer step."""
        index = self.rows_of("train")
        ids = self.tokenised.row_id[index]
        divide = self.micro_batch.divide(self._tokens_of(index))
        return StepLoader(ids, self._packer(index), self.rows_per_step, divide, self.seed, self.rank, self.position)

    def val_dataloader(self) -> EvalLoader[SequenceBatch]:
        """Batches of the val split."""
        index = self._evaluated(self.rows_of("val"))
        ids, lengths = self.tokenised.row_id[index], self._tokens_of(index)
        return EvalLoader(ids, self._packer(index), self.eval_batch_rows, self.rank, lengths)

    def test_dataloader(self) -> EvalLoader[SequenceBatch]:
        """Batches of the val split."""
        return self.val_dataloader()

    def predict_dataloader(self) -> EvalLoader[SequenceBatch]:
        """Batches of the val split."""
        return self.val_dataloader()

    @property
    def largest_micro_batch(self) -> MicroBatchSize:
        """An upper bound on one training forward pass.

        With ``micro_batch_rows`` every row is assumed as long as the longest.

        Raises:
            ValueError: No row was kept.
        """
        rows = self.tokenised
        if not len(rows.name):
            raise self._empty("train")
        return self.micro_batch.largest(
            self._tokens_of(np.arange(len(rows.row_id))), rows.response.sizes, self.rows_per_step
        )

    def responses(self, split: Split, fit: tuple[int, int] | None = None) -> Iterator[ResponseIds]:
        """The responses of a split's rows that training or evaluation reads, with the texts of their prompts.

        Args:
            split: ``train`` or ``val``. An empty split gives none.
            fit: Optimizer steps of the run, and those of an epoch; gives only the rows of these steps.
        """
        rows = self.tokenised
        index = self._members(rows.split, split)
        if fit is not None and len(index):
            index = index[self.train_dataloader().rows_used(*fit)[0]]
        elif split == "val":
            index = self._evaluated(index)
        text = dict(zip(rows.prompts.prompt_id.tolist(), rows.prompts.text, strict=True))
        for i in map(int, index):
            yield ResponseIds(
                int(rows.row_id[i]), rows.name[i], text[int(rows.prompt_id[i])], tuple(rows.response.at(i).tolist())
            )

    def _evaluated(self, index: Int64s) -> Int64s:
        """At most ``max_eval_rows`` of the rows at ``index``, chosen by hash, in their order."""
        return index[np.sort(ordered(self.tokenised.row_id[index], "evaluation")[: self.max_eval_rows])]

    def _tokens_of(self, index: Int64s) -> Int64s:
        """Tokens of each row at ``index``."""
        return (self.tokenised.prompt.sizes + self.tokenised.response.sizes)[index]

    def _packer(self, index: Int64s) -> Any:
        sizes = scored_sizes(self.tokenised.response, self.tokenised.response_unscored, index)

        def pack(micro: MicroBatch, step: Int64s) -> SequenceBatch:
            return pack_rows(self.tokenised, index[micro.rows], micro.fillers, int(sizes[step].sum()))

        return pack

    def _tokenise(self, tokeniser: Tokeniser, *, progress: bool) -> tuple[TokenisedRows, dict[str, Any], list[str]]:
        places = [array("q") for _ in self.sources]
        dropped: Counter[str] = Counter()
        splits = assign(self._first_reading(places, dropped), placed(self.sources))
        kept = _Kept(self.sources, places)
        licences = sorted({source.licence for source in self.sources})
        report = {"kept": len(kept), "dropped": dict(dropped), "licences": licences}
        lines = [f"{len(kept):,} rows read"] + [f"{n:,} rows dropped: {reason}" for reason, n in dropped.items()]
        return self._ids(tokeniser, kept, splits, progress=progress), report, lines

    def _ids(self, tokeniser: Tokeniser, rows: Any, splits: Any, *, progress: bool) -> TokenisedRows:
        return tokeniser.rows(rows, splits, progress=progress)

    def _first_reading(self, places: list[array[int]], dropped: Counter[str]) -> Iterator[SftRow]:
        """The rows to keep. Fills ``places`` with their numbers in each source, from 0, and counts the others."""
        seen: set[int] = set()
        for source, mine in zip(self.sources, places, strict=True):
            for place, row in enumerate(source):
                if isinstance(row, BadRow):
                    if self.on_bad_row == "error":
                        raise row
                    dropped[f"column {row.column!r} {row.reason}"] += 1
                    continue
                key = self._key(row)
                if self.duplicates == "drop" and key in seen:
                    dropped["the same prompt and response again"] += 1
                    continue
                seen.add(key)
                mine.append(place)
                yield row

    def _key(self, row: SftRow) -> int:
        """A hash of all texts of a row, which tells whether it is a duplicate."""
        return text_id(row.prompt, row.response)

    def _options(self) -> dict[str, object]:
        return {"duplicates": self.duplicates}


class _Kept:
    """The rows at ``places`` of each source. Each iteration reads the sources again."""

    def __init__(self, sources: Sequence[SftSource], places: Sequence[array[int]]) -> None:
        self.sources, self.places = sources, places

    def __len__(self) -> int:
        return sum(map(len, self.places))

    def __iter__(self) -> Iterator[SftRow]:
        """Every row. Raises ValueError if a source does not give the rows that it gave before."""
        for source, places in zip(self.sources, self.places, strict=True):
            wanted = iter(places)
            following = next(wanted, None)
            for place, row in enumerate(source):
                if following is None:
                    break
                if place == following and not isinstance(row, BadRow):
                    yield row
                    following = next(wanted, None)
            if following is not None:
                raise ValueError(f"row {following} of {type(source).__name__} is gone: it changed while it was read")
