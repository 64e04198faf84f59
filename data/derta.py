"""DeRTa: rows that teach to refuse after any part of a harmful answer. The loss is fine-tuning's own.

Letters: R rows, L tokens of a harmful response.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.trainer.states import TrainerFn

from data.micro_batches import Divide, MicroBatch
from data.pack import FILLER, batch_of, scored_sizes
from data.render import TODAY
from data.schema import HarmfulRow, Message, SftRow, SftSource
from data.sft import SftData
from data.split import Split, text_id
from data.steps import StepLoader
from data.tokeniser import OnBadRow, Tokeniser
from data.tokens import PREFIX, TRANSITION, Int64s, TokenisedRefusals, TokenisedRows
from lit_safe.hashing import hash64, uniform, uniforms
from lit_safe.sequences import pack_sequences
from lit_safe.types import IGNORE, ResponseIds, SequenceBatch

Part = Literal["prefix", "transition"]
CODES = {"prefix": PREFIX, "transition": TRANSITION}


class Draws(NamedTuple):
    """What one epoch draws for each row."""

    prefix_R: Int64s  # tokens of the harmful response before the safe one
    scored_R: Int64s  # scored tokens


class DertaData(SftData):
    """Fine-tuning data for decoupled refusal training (Yuan et al. 2024, arXiv:2407.09121, eq. 2).

        L = - E log P(safe | prompt, harmful_{<k}), k ~ U{0 .. L}     (prefix rows)
            - E sum over t = 1 .. L of log P(refusal token | prompt, harmful_{<t})     (transition rows)

    Each ``HarmfulRow`` (of ``data.sources.one_safe.OneSafe``) becomes one row of each kind. Rows of other sources are
    plain rows, for helpfulness. As in the authors' code, the loss is one mean over all scored tokens of a step. A
    prefix is cut on tokens, as in eq. 2; the authors' code cuts on words, and gives a third of the rows no prefix. It
    is cut shorter where the row would exceed ``max_length``. Prefixes and scored positions are functions of (seed,
    epoch, row), so a resumed run draws the same, and every epoch draws others.

    Args:
        sources: Datasets of responses; at least one ``OneSafe`` for the rows of DeRTa.
        refusal: A refusal. Its first token, as the model's own tokenizer and chat template give it at the start of a
            response, is the target of transition rows.
        keep: Probability that a position of a transition row is scored, in (0, 1]. If none of a row is drawn, the
            nearest to being drawn is scored. The authors keep about 5 % with all parameters trained, and all with LoRA.
        prefixed: Probability that a prefix row has a prefix. The authors' code has 2/3.
        parts: Kinds of rows that a ``HarmfulRow`` becomes: ``prefix``, ``transition`` or both.
        rows_per_step: As in ``SftData``, like all further arguments.
        micro_batch_rows: As there.
        eval_batch_rows: As there.
        max_length: As there.
        max_eval_rows: As there.
        on_bad_row: As there.
        tokenizer: As there.
        cache_dir: As there.
        seed: Seed of the order of rows, of prefixes and of scored positions.
        duplicates: As there.
        held_out: As there.
        template: As there.
        template_date: As there.
        rendered: As there.
        micro_batch_tokens: As there.

    Raises:
        ValueError: If ``keep`` or ``prefixed`` is no probability, ``refusal`` is empty, or ``parts`` is.
    """

    kind = TokenisedRefusals
    tokenised: TokenisedRefusals

    def __init__(
        self,
        sources: list[SftSource],
        refusal: str = "Sorry",
        keep: float = 0.05,
        prefixed: float = 1.0,
        parts: list[Part] | None = None,
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
        if not 0 < keep <= 1:
            raise ValueError(f"keep must be a probability above 0, got {keep}")
        if not 0 <= prefixed <= 1:
            raise ValueError(f"prefixed must be a probability, got {prefixed}")
        if not refusal.strip():
            raise ValueError("refusal must be a text such as 'Sorry'")
        self.parts: tuple[Part, ...] = tuple(get_args(Part) if parts is None else parts)
        if not self.parts or not {*self.parts} <= CODES.keys():
            raise ValueError(f"parts must be some of {get_args(Part)}, got {list(self.parts)}")
        self.refusal, self.keep, self.prefixed = refusal, keep, prefixed
        super().__init__(
            sources,
            rows_per_step,
            micro_batch_rows,
            eval_batch_rows,
            max_length,
            max_eval_rows,
            on_bad_row,
            tokenizer,
            cache_dir,
            seed,
            duplicates,
            held_out,
            template,
            template_date,
            rendered,
            micro_batch_tokens,
        )

    @property
    def refusal_id(self) -> int:
        """The first token of ``refusal`` at the start of a response."""
        renderer = self._renderer()
        plain = self.rendered or self.tokenizer.chat_template is None
        asked = "Hello" if plain else (Message("user", "Hello"),)
        return renderer.response("refusal", "refusal", asked, renderer.prompt("refusal", asked), self.refusal)[0]

    def train_dataloader(self) -> StepLoader[SequenceBatch]:
        """Each item is the list of micro-batches of one optimizer step. Each epoch draws its own prefixes."""
        index = self.rows_of("train")
        plain = super().train_dataloader()
        ids, options = plain.row_ids, (plain.rows_per_step, plain.divide, plain.seed, plain.rank, plain.start)
        return _EpochLoader(ids, plain.pack, *options, of_epoch=lambda epoch: self._of_epoch(index, epoch))

    def responses(self, split: Split, fit: tuple[int, int] | None = None) -> Iterator[ResponseIds]:
        """Refuse: the targets of transition rows are no responses.

        Raises:
            ValueError: Always.
        """
        raise ValueError("model.token_weights weigh the tokens of responses, and DeRTa's rows have other targets")

    def state_dict(self) -> dict[str, Any]:
        """Values that must be equal in a resumed run."""
        known = super().state_dict()
        return {**known, "derta": self._drawn_by()} if known else known

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that a resumed run has the same data and draws alike.

        Raises:
            ValueError: As in ``SftData``, and if ``refusal``, ``keep`` or ``prefixed`` differ.
        """
        super().load_state_dict(state_dict)
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        if state_dict.get("derta") != self._drawn_by():
            raise ValueError(
                "the checkpoint was trained with another data.refusal, keep or prefixed; resume with the run's own, or "
                "start a new run from its weights"
            )

    def draws(self, index: Int64s, epoch: object) -> Draws:
        """What ``epoch`` draws for the rows at ``index``."""
        rows = self.tokenised
        prefix_R = np.zeros(len(index), np.int64)
        scored_R = scored_sizes(rows.response, rows.response_unscored, index).copy()
        for place, i in enumerate(map(int, index)):
            if rows.part[i] == PREFIX:
                prefix_R[place] = self._prefix(i, epoch)
            elif rows.part[i] == TRANSITION:
                scored_R[place] = int(self._scored(i, epoch).sum())
        return Draws(prefix_R, scored_R)

    def _drawn_by(self) -> int:
        return hash64("derta", self.refusal_id, self.keep, self.prefixed)

    def _prefix(self, i: int, epoch: object) -> int:
        """Tokens of the harmful response that stand before the safe one, uniform over all that fit."""
        rows, row_id = self.tokenised, int(self.tokenised.row_id[i])
        if uniform("derta-prefixed", self.seed, epoch, row_id) >= self.prefixed:
            return 0
        room = self.max_length - len(rows.prompt.at(i)) - len(rows.response.at(i))
        most = min(len(rows.harmful.at(i)), room)
        return int(uniform("derta-prefix", self.seed, epoch, row_id) * (most + 1))

    def _scored(self, i: int, epoch: object) -> npt.NDArray[np.bool_]:
        """[L] whether each position of a transition row is scored."""
        size = len(self.tokenised.response.at(i))
        draw_L = uniforms(size, "derta-keep", self.seed, epoch, int(self.tokenised.row_id[i])).numpy()
        kept_L: npt.NDArray[np.bool_] = draw_L < self.keep
        kept_L[np.argmin(draw_L)] = True
        return kept_L

    def _of_epoch(self, index: Int64s, epoch: object) -> tuple[Callable[[MicroBatch, Int64s], SequenceBatch], Divide]:
        """How an epoch packs and divides its steps."""
        draws = self.draws(index, epoch)
        rows = self.tokenised
        tokens_R = (rows.prompt.sizes + rows.response.sizes)[index] + draws.prefix_R
        return self._pack_with(index, lambda: draws, epoch), self.micro_batch.divide(tokens_R)

    def _packer(self, index: Int64s) -> Any:
        # drawn for the first batch: a loader is also made where only its length or its rows are asked for
        return self._pack_with(index, cache(lambda: self.draws(index, "evaluation")), "evaluation")

    def _pack_with(
        self, index: Int64s, drawn: Callable[[], Draws], epoch: object
    ) -> Callable[[MicroBatch, Int64s], SequenceBatch]:
        rows, refusal_id = self.tokenised, self.refusal_id

        def pack(micro: MicroBatch, step: Int64s) -> SequenceBatch:
            parts, draws = [], drawn()
            for place in map(int, micro.rows):
                i = int(index[place])
                before = np.concatenate([rows.prompt.at(i), rows.harmful.at(i)[: draws.prefix_R[place]]])
                parts.append((before, rows.response.at(i), rows.response_unscored.at(i)))
            sequences = pack_sequences(*zip(*parts, *[FILLER] * micro.fillers, strict=True))
            for number, i in enumerate(map(int, index[micro.rows])):
                if rows.part[i] == TRANSITION:
                    end = int(sequences.cu_seqlens[number + 1]) - 1
                    kept = torch.from_numpy(self._scored(i, epoch))
                    sequences.target[end - len(kept) : end] = torch.where(kept, refusal_id, IGNORE)
            tokens = int(draws.scored_R[step].sum())
            return batch_of(rows, index[micro.rows], micro.fillers, sequences, tokens)

        return pack

    def _tokens_of(self, index: Int64s) -> Int64s:
        """The largest number of tokens that each row at ``index`` can have in an epoch."""
        rows = self.tokenised
        own = rows.prompt.sizes + rows.response.sizes
        most: Int64s = np.maximum(own, np.minimum(own + rows.harmful.sizes, self.max_length))[index]
        return most

    def _tokenise(self, tokeniser: Tokeniser, *, progress: bool) -> tuple[TokenisedRows, dict[str, Any], list[str]]:
        found, report, lines = super()._tokenise(tokeniser, progress=progress)
        assert isinstance(found, TokenisedRefusals)
        counts = {part: int((found.part == code).sum()) for part, code in CODES.items()}
        token = str(self.tokenizer.decode([self.refusal_id]))
        told = ", ".join(f"{count:,} {part}" for part, count in counts.items())
        lines = [*lines, f"rows of DeRTa: {told}; refusal token {token!r} (id {self.refusal_id})"]
        return found, {**report, **{f"derta_{part}": count for part, count in counts.items()}}, lines

    def _ids(self, tokeniser: Tokeniser, rows: Any, splits: Any, *, progress: bool) -> TokenisedRows:
        return tokeniser.refusals(rows, splits, [CODES[part] for part in self.parts], progress=progress)

    def _key(self, row: SftRow) -> int:
        return text_id(row.prompt, row.response, row.harmful) if isinstance(row, HarmfulRow) else super()._key(row)

    def _options(self) -> dict[str, object]:
        return {**super()._options(), "parts": ",".join(sorted(self.parts))}


class _EpochLoader(StepLoader[SequenceBatch]):
    """A training loader that packs each epoch in its own way."""

    def __init__(self, *args: Any, of_epoch: Callable[[int], tuple[Any, Divide]]) -> None:
        super().__init__(*args)
        self.of_epoch = of_epoch

    def __iter__(self) -> Iterator[list[SequenceBatch]]:
        self.pack, self.divide = self.of_epoch(self.start(len(self))[0])
        yield from super().__iter__()
