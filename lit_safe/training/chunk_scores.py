"""A guardrail's probability that a response is safe so far, for each of its tokens: the weights of STAR-DSS.

Letters: T positions, L tokens of a response, K chunks of it, C costs of a guardrail.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lit_safe.errors.message import SettingError
from lit_safe.execution.progress import progress
from lit_safe.execution.quiet import quiet
from lit_safe.execution.ranks import merge, of_first_rank, rank_and_world
from lit_safe.execution.row_store import RowStore
from lit_safe.hashing import hash64
from lit_safe.rollouts.scoring import check_scores, name_of, place, score
from lit_safe.rollouts.text_scores import Digested
from lit_safe.scorer_card import check_scorer
from lit_safe.types import IGNORE, CostFunction, ResponseIds, SequenceBatch

log = logging.getLogger(__name__)

Probability: TypeAlias = Literal["sigmoid", "unsafe_probability", "flag"]

Decode: TypeAlias = Callable[[Sequence[int]], str]

FLUSH = 256  # responses between two writes


class Prefixes(NamedTuple):
    """The texts whose scores a response needs."""

    key: int  # a hash of the texts
    row_id: int
    name: str
    prompt: str
    texts: tuple[str, ...]  # [K]: the response up to the end of each chunk


class ChunkScores:
    """Weighs each token of a response by V, the probability that the response is safe up to the end of its chunk.

        V_k = sigmoid(-score(prompt, tokens 1 .. min(k M, L)))     Peng et al. 2025, arXiv:2505.17196 (second-hand)

    Responses are cut on the policy's tokens, and each prefix is decoded for the guardrail. A prefix that ends within a
    character is scored without that character. Each response is scored once, before the first step, and ranks share
    the work. Scores are stored in pieces, so that a killed run continues. The texts, and therefore the policy's
    tokenizer and the chunk size, decide whether a stored score is found, and so does the guardrail's digest.

    Args:
        guardrail: A cost function; > 0 is unsafe. With several costs, the largest counts.
        chunk: M, tokens of a chunk. Null takes the whole response as one chunk: static shaping, one V per row.
        probability: V from a score s: ``sigmoid`` is 1 / (1 + exp(s)), for a score in log-odds; ``unsafe_probability``
            is 1 - s, for a score that is a probability; ``flag`` is 1 for s <= 0 and 0 above.
        batch_texts: Texts of one call of the guardrail.
        cache_dir: Folder that keeps scores for several runs; null takes ``chunk_scores`` in the run folder. Scores of a
            guardrail without a method ``digest`` are not stored.

    Raises:
        ValueError: If a size is below 1 or ``probability`` is unknown.
    """

    def __init__(
        self,
        guardrail: CostFunction,
        chunk: int | None = 5,
        probability: Probability = "sigmoid",
        batch_texts: int = 64,
        cache_dir: str | None = None,
    ) -> None:
        for name, value in (("chunk", chunk), ("batch_texts", batch_texts)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if probability not in get_args(Probability):
            raise ValueError(f"probability must be one of {get_args(Probability)}, got {probability!r}")
        self.guardrail, self.chunk, self.probability = guardrail, chunk, probability
        self.batch_texts, self.cache_dir = batch_texts, cache_dir
        self._known: dict[int, Tensor] = {}  # row id -> V [K]
        self._prepared_for: Any = None  # the trainer's command

    def prepare(self, module: Any) -> None:
        """Score the responses that the trainer's command reads, once. All ranks must call this.

        Raises:
            SettingError: If the data module has no ``responses``.
            ValueError: If the guardrail's card shows that it is unusable, or a score is not finite or no probability.
                The message names the row.
        """
        trainer = module.trainer
        command = trainer.state.fn
        if command == self._prepared_for:
            return
        data = trainer.datamodule
        if not hasattr(data, "responses"):
            raise SettingError(
                f"model.token_weights scores the responses of data.sft.SftData; {type(data).__name__} has none"
            )
        check_scorer(self.guardrail)
        rows: dict[int, ResponseIds] = {}
        if command == TrainerFn.FITTING:
            bounds = int(trainer.estimated_stepping_batches), max(1, int(trainer.num_training_batches))
            rows |= {row.row_id: row for row in data.responses("train", bounds)}
        if command != TrainerFn.FITTING or trainer.limit_val_batches != 0:
            rows |= {row.row_id: row for row in data.responses("val")}
        new = [row for row in rows.values() if row.row_id not in self._known]
        if of_first_rank(len(new)):
            place(self.guardrail, module.device)
            root = Path(trainer.default_root_dir)
            own = None if root.resolve() == Path.cwd() else root / "chunk_scores"
            folder = own if self.cache_dir is None else Path(self.cache_dir).expanduser()
            self.fill(new, data.decode, folder, module.device)
        self._prepared_for = command

    def fill(
        self,
        rows: Sequence[ResponseIds],
        decode: Decode,
        folder: Path | None,
        device: torch.device | None = None,
    ) -> None:
        """Score ``rows``, the same on each rank, except those whose scores ``folder`` has.

        Args:
            rows: The responses.
            decode: From ids to text.
            folder: Where scores are kept, or None.
            device: Where ranks exchange scores; None is the CPU.

        Raises:
            ValueError: As in ``prepare``.
        """
        wanted = [self.prefixes(row, decode) for row in rows]
        store = self._store(folder)
        with quiet(self.guardrail, hash64("chunk-scores")):
            stored = {} if store is None else store.read()
            score_of = of_first_rank({one.key: stored[one.key] for one in wanted if one.key in stored})
            distinct = {one.key: one for one in wanted if one.key not in score_of}
            # responses of as many chunks stand together: a stored piece has rows of one length
            todo = sorted(distinct.values(), key=lambda one: (-len(one.texts), one.key))
            rank, world = rank_and_world()
            mine = todo[rank::world]
            width = max((len(one.texts) for one in todo), default=0)
            table = torch.zeros(len(todo), width, dtype=torch.float64)
            for number, (one, score_K) in enumerate(zip(mine, self._scores(mine), strict=True)):
                table[rank + number * world, : len(score_K)] = score_K
                if store is not None:
                    store.add([one.key], score_K.numpy()[None])
                    after = mine[number + 1] if number + 1 < len(mine) else None
                    if store.pending >= FLUSH or after is None or len(after.texts) != len(one.texts):
                        store.flush(rank)
            table = merge(table, device or torch.device("cpu"))
            score_of |= {one.key: table[place, : len(one.texts)].numpy() for place, one in enumerate(todo)}
        for one in wanted:
            self._known[one.row_id] = self._weights(one, torch.as_tensor(score_of[one.key]))
        if todo:
            log.info("token weights: %s responses scored by %s", f"{len(todo):,}", name_of(self.guardrail))

    def attach(self, batch: SequenceBatch) -> SequenceBatch:
        """The batch, on the host, with ``token_weight`` [T]. Positions outside of responses and filler rows get 1.

        Raises:
            ValueError: If a row was not scored. The message names it.
        """
        target_T, bounds = batch.sequences.target, batch.sequences.cu_seqlens.tolist()
        weight_T = torch.ones(len(target_T))
        rows = zip(batch.row_id.tolist(), batch.present.tolist(), itertools.pairwise(bounds), strict=True)
        for row_id, present, (start, end) in rows:
            if not present:
                continue
            if row_id not in self._known:
                raise ValueError(
                    f"the guardrail scored {len(self._known)} responses before training, and not row {row_id}"
                )
            scored = (target_T[start:end] != IGNORE).nonzero()[:, 0]
            if not len(scored):
                continue
            first = start + int(scored[0])  # predicts the response's first token; the last position predicts nothing
            v_K = self._known[row_id]
            place_L = torch.arange(end - 1 - first)
            weight_T[first : end - 1] = v_K[0] if self.chunk is None else v_K[place_L // self.chunk]
        return batch._replace(token_weight=weight_T)

    def prefixes(self, row: ResponseIds, decode: Decode) -> Prefixes:
        """The response up to the end of each chunk, as text."""
        size = len(row.ids) if self.chunk is None else self.chunk
        ends = [*range(size, len(row.ids), size), len(row.ids)] if row.ids else [0]
        texts = [decode(row.ids[:end]) for end in ends]
        # a prefix may end within a character, which is decoded as U+FFFD
        texts[:-1] = [text.rstrip("\ufffd") for text in texts[:-1]]
        return Prefixes(hash64("chunks", row.prompt, *texts), row.row_id, row.name, row.prompt, tuple(texts))

    def _scores(self, rows: Sequence[Prefixes]) -> Iterable[Tensor]:
        """[K] scores of the prefixes of each row, the largest of C costs."""
        batches = list(_grouped(rows, self.batch_texts))
        for some in progress(batches, "chunk scores, batch"):
            flat = [(row, text) for row in some for text in row.texts]
            found = [
                self._checked(flat[start : start + self.batch_texts]) for start in range(0, len(flat), self.batch_texts)
            ]
            yield from torch.cat(found).split([len(row.texts) for row in some])

    def _checked(self, some: Sequence[tuple[Prefixes, str]]) -> Tensor:
        found = score(self.guardrail, [row.prompt for row, _ in some], [text for _, text in some])
        check_scores(
            self.guardrail, found, [f"row {row.name}, beginning of {len(text)} characters" for row, text in some]
        )
        return found if found.ndim == 1 else found.amax(1)

    def _weights(self, row: Prefixes, score_K: Tensor) -> Tensor:
        """[K] V, fp32."""
        if self.probability == "sigmoid":
            return torch.sigmoid(-score_K).float()
        if self.probability == "flag":
            return (score_K <= 0).float()
        wrong = score_K[(score_K < 0) | (score_K > 1)]
        if len(wrong):
            raise ValueError(
                f"the cost function {name_of(self.guardrail)} gave {wrong[0]:.4g} for row {row.name}, which is no "
                "probability: set probability to sigmoid or flag"
            )
        return (1 - score_K).float()

    def _store(self, folder: Path | None) -> RowStore | None:
        if folder is None or not isinstance(self.guardrail, Digested):
            return None
        name = hashlib.sha256(self.guardrail.digest().encode()).hexdigest()[:16]
        return RowStore(folder / f"chunks-{name}", np.float64)


def _grouped(rows: Sequence[Prefixes], texts: int) -> Iterable[list[Prefixes]]:
    """Consecutive rows with at most ``texts`` texts together, or one row that has more."""
    some: list[Prefixes] = []
    for row in rows:
        if some and sum(len(one.texts) for one in some) + len(row.texts) > texts:
            yield some
            some = []
        some.append(row)
    if some:
        yield some
