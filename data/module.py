"""Preference data as a LightningDataModule: training steps, held-out pairs and prompts from any sources."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch

from data.asked import asked
from data.micro_batches import MicroBatch, MicroBatchLimit, MicroBatchSize, RowTokens
from data.pack import annotation, pack_pairs
from data.preparation import Order, Prepared, prepared
from data.render import TODAY
from data.rendered import check_sizes
from data.schema import Annotator, PromptSource, Source
from data.split import Split, placed, split_key
from data.steps import EvalLoader, StepLoader, ordered
from data.texts import TextPair, text_pairs
from data.tokenised import TokenisedData
from data.tokeniser import OnBadRow, Tokeniser
from data.tokens import AUTHORS, SPLITS, Int64s, TokenisedPairs
from lit_safe.types import Annotation, Need, PackedBatch, Prompt, ResponsesFrom


class PreferenceData(TokenisedData[TokenisedPairs, Source]):
    """Preference pairs from any number of sources, split by prompt into train, val, dual and certify.

    Training reads ``train``; ``validate`` and ``test`` both read ``val``; the multiplier's steps read ``dual``; only
    certificates read ``certify``. The rows of an optimizer step depend on the seed, the epoch and the pairs' texts.
    They do not depend on micro-batches, on ranks or on where a run was stopped.

    Args:
        sources: Datasets of pairs.
        annotator: Gives responses their rewards and costs.
        order: Which response is chosen. ``helpful``: the more helpful one. ``safer``: the less harmful one.
            ``safe_better``: the more helpful one, and pairs in which it is unsafe are dropped. ``helpful_or_safer``:
            the more helpful one, or the less harmful one where no label says which is more helpful.
        pairs_per_step: Pairs of one optimizer step over all micro-batches and ranks.
        micro_batch_tokens: Maximum number of tokens, with padding, in one forward and backward pass on one rank; a pair
            that has more is computed alone. Pairs of similar length are computed together. Null takes a number that
            suits the device and its memory. It has no effect on which pairs a step has.
        micro_batch_pairs: Maximum number of pairs in a pass. Without ``micro_batch_tokens`` it is the only limit.
        eval_batch_pairs: Pairs of one forward pass without gradients on one rank.
        max_length: Maximum number of tokens of prompt and response together. The response is kept; the prompt is cut
            from its start.
        contradictions: Whether to keep or drop pairs that appear in both orders or contain a text labelled both safe
            and unsafe.
        duplicates: ``drop`` keeps the first of the rows that hold the same pair, in either order. ``keep`` keeps all of
            them; use it for samples whose frequencies are to be learned.
        max_pairs_per_prompt: Maximum number of pairs per prompt, chosen by hash; null keeps all.
        max_eval_pairs: Maximum number of pairs of the val split to evaluate, chosen by hash; null takes all.
        on_bad_row: ``error`` stops at an unusable row and names it; ``skip`` counts it in the report.
        tokenizer: Name or folder of a tokenizer; null takes the model's.
        template: Chat template that replaces the tokenizer's own: safe_rlhf, human_assistant, or a .jinja file; null
            takes the tokenizer's.
        template_date: The date that a chat template prints as today's date, whatever day the run takes place.
        rendered: true: prompts are plain text that a chat template has already produced, and special tokens in it are
            read as special tokens. false: special tokens in a prompt are read as quoted text.
        cache_dir: Folder for tokenised rows between runs; null stores none.
        seed: Seed of the order of rows, of the draws of ``labels: sampled`` and of training.
        prompt_sources: Datasets of prompts alone. If any are named, the prompts of val, dual and certify that a policy
            answers are theirs, in place of the pairs'. Those of the pairs' train split are left out.
        held_out: false puts every prompt into every split, for a world whose prompts are the whole population. Then no
            prompt is held out: certificates and measures of generalisation are meaningless, and the report says so.
    """

    kind = TokenisedPairs

    def __init__(
        self,
        sources: list[Source],
        annotator: Annotator,
        order: Order = "helpful",
        pairs_per_step: int = 32,
        micro_batch_pairs: int | None = None,
        eval_batch_pairs: int = 8,
        max_length: int = 512,
        contradictions: Literal["keep", "drop"] = "keep",
        duplicates: Literal["drop", "keep"] = "drop",
        max_pairs_per_prompt: int | None = None,
        max_eval_pairs: int | None = None,
        on_bad_row: OnBadRow = "error",
        tokenizer: str | None = None,
        cache_dir: str | None = None,
        seed: int = 0,
        held_out: bool = True,
        template: str | None = None,
        template_date: str = TODAY.isoformat(),
        rendered: bool = False,
        micro_batch_tokens: int | None = None,
        prompt_sources: list[PromptSource] | None = None,
    ) -> None:
        limits = {"micro_batch_pairs": micro_batch_pairs, "micro_batch_tokens": micro_batch_tokens}
        check_sizes(pairs_per_step=pairs_per_step, eval_batch_pairs=eval_batch_pairs, **limits)
        limit = MicroBatchLimit(micro_batch_pairs, micro_batch_tokens)
        rendering = (template, template_date, rendered, limit)
        super().__init__(sources, max_length, on_bad_row, tokenizer, cache_dir, seed, held_out, *rendering)
        self.annotator, self.order = annotator, order
        self.pairs_per_step = pairs_per_step
        self.eval_batch_pairs, self.max_eval_pairs = eval_batch_pairs, max_eval_pairs
        self.contradictions, self.max_pairs_per_prompt = contradictions, max_pairs_per_prompt
        self.duplicates = duplicates
        self.prompt_sources = list(prompt_sources or [])
        if self.prompt_sources and not held_out:
            raise ValueError("prompt_sources with held_out: false: name prompts, or hold none out")
        self._asked: dict[Split, list[Prompt]] | None = None
        self._train: Int64s | None = None  # the rows of the train split that ``select`` kept

    @property
    def constraints(self) -> tuple[str, ...]:
        """Names of the C cost constraints."""
        return self.annotator.constraints

    @property
    def responses_from(self) -> set[ResponsesFrom]:
        """Who wrote the responses of the dual split."""
        return {AUTHORS[code] for code in self.tokenised.responses_from[self.rows_of("dual")]}

    def require(self, needs: Sequence[Need]) -> None:
        """Check that every pair has the labels that an objective needs.

        Raises:
            ValueError: A label is missing. The message names the row and the column.
        """
        pairs = self.tokenised
        values = {"reward": pairs.reward[..., None], "cost": pairs.cost, "flags": pairs.cost}
        for need in needs:
            missing = np.argwhere(np.isnan(values[need]))
            if len(missing):
                row, side, column = (int(i) for i in missing[0])
                label = "reward" if need == "reward" else f"cost {self.constraints[column]!r}"
                count = len(np.unique(missing[:, 0]))
                raise ValueError(
                    f"row {pairs.name[row]}, column {('chosen', 'rejected')[side]} {label}: not known, and the "
                    f"objective needs {need!r}; it is missing in {count:,} of {len(pairs.name):,} pairs. Choose an "
                    "annotator or sources that have it"
                )

    def select(self, keeps: Callable[[Annotation], torch.Tensor]) -> None:
        """Train only on the pairs whose labels ``keeps`` accepts ([P] bool of P pairs); the others are in no step.

        Only the train split changes. Evaluation, prompts and cost estimates still use every pair.

        Raises:
            ValueError: No training pair is left.
        """
        train = self.rows_of("train")
        kept = train[keeps(annotation(self.tokenised, train)).numpy()]
        if not len(kept):
            raise ValueError(
                f"the objective leaves out all {len(train):,} training pairs by their labels (SafeDPO: both responses "
                f"unsafe), so nothing would train; chosen/rejected of all pairs: {self._strata()}. Name sources with "
                "safe responses, or check the annotator's threshold"
            )
        self._train = kept

    def prompts(self, split: Split) -> list[Prompt]:
        """Every prompt of a split once: those of ``prompt_sources`` if there are any, except for ``train``.

        Raises:
            ValueError: The split has no prompt.
            BadRow: A prompt is unusable, with ``on_bad_row="error"``.
        """
        if not self.prompt_sources or split == "train":
            return super().prompts(split)
        if self._asked is None:
            self._asked = self._ask_sources()
        if not self._asked[split]:
            raise ValueError(f"prompt_sources have no prompt in the {split} split: name more of them")
        return self._asked[split]

    def _ask_sources(self) -> dict[Split, list[Prompt]]:
        table = self.tokenised.prompts
        keys = {split_key(text): SPLITS[code] for text, code in zip(table.text, table.split, strict=True)}
        found: dict[Split, list[Prompt]] = {split: [] for split in SPLITS}
        exact = {int(i): SPLITS[code] for i, code in zip(table.prompt_id, table.split, strict=True)}
        for row, split in asked(self.prompt_sources, keys, self.on_bad_row == "skip", exact):
            found[split].append(self.to_answer(row.id, row.prompt))
        ids = {split: np.array([p.prompt_id for p in prompts], np.int64) for split, prompts in found.items()}
        return {split: [prompts[i] for i in ordered(ids[split], "prompts")] for split, prompts in found.items()}

    def pairs(self, split: Split) -> list[TextPair]:
        """The pairs of one split as texts, read again from the sources. It needs no tokenizer and cuts nothing.

        Raises:
            BadRow: At the first unusable row, with ``on_bad_row="error"``.
        """
        return text_pairs(list(self._prepared()), self.sources, split if self.held_out else None)

    def train_dataloader(self) -> StepLoader[PackedBatch]:
        """Each item is the list of micro-batches of one optimizer step."""
        index = self._training_rows()

        def pack(micro: MicroBatch, step: Int64s) -> PackedBatch:
            return pack_pairs(self.tokenised, index[micro.rows], micro.fillers, len(step), self.seed)

        ids, divide = self.tokenised.pair_id[index], self.micro_batch.divide(self._tokens_of(index))
        return StepLoader(ids, pack, self.pairs_per_step, divide, self.seed, self.rank, self.position)

    def val_dataloader(self) -> EvalLoader[PackedBatch]:
        """Batches of the val split."""
        return self.batches_of("val", self.max_eval_pairs)

    def test_dataloader(self) -> EvalLoader[PackedBatch]:
        """Batches of the val split; only certificates read ``certify``."""
        return self.val_dataloader()

    def predict_dataloader(self) -> EvalLoader[PackedBatch]:
        """Batches of the val split."""
        return self.val_dataloader()

    def dual_pairs(self) -> Iterable[PackedBatch]:
        """This rank's batches of the dual split. Filler rows do not count, so sums over ranks count each pair once."""
        return self.batches_of("dual")

    def batches_of(self, split: Split, most: int | None = None) -> EvalLoader[PackedBatch]:
        """Batches of ``most`` pairs of a split, chosen by hash; None takes all. For ``train``: the pairs that train."""
        index = self._training_rows() if split == "train" else self.rows_of(split)
        return self._batches(index[np.sort(ordered(self.tokenised.pair_id[index], "evaluation")[:most])])

    def batches_of_steps(self, steps: int, each: int) -> tuple[EvalLoader[PackedBatch], float]:
        """Batches of the pairs that a run's first ``steps`` steps use, and how often they use one on average.

        Args:
            steps: Number of steps from the run's beginning.
            each: Steps of an epoch; the trainer may have limited them.
        """
        used, together = self.train_dataloader().rows_used(steps, each)
        return self._batches(self._training_rows()[used]), together / max(1, len(used))

    def _batches(self, index: Int64s) -> EvalLoader[PackedBatch]:
        def pack(micro: MicroBatch, together: Int64s) -> PackedBatch:
            return pack_pairs(self.tokenised, index[micro.rows], micro.fillers, len(together), self.seed)

        ids = self.tokenised.pair_id[index]
        return EvalLoader(ids, pack, self.eval_batch_pairs, self.rank, self._tokens_of(index).padded)

    def _tokens_of(self, index: Int64s) -> RowTokens:
        """Tokens of each pair at ``index``. Padding makes both responses as long as the longer one."""
        pairs = self.tokenised
        prompt, chosen, rejected = (side.sizes[index] for side in (pairs.prompt, pairs.chosen, pairs.rejected))
        return RowTokens(2 * (prompt + np.maximum(chosen, rejected)), prompt + chosen + rejected)

    def _training_rows(self) -> Int64s:
        return self.rows_of("train") if self._train is None else self._train

    def _strata(self) -> str:
        strata = self.report["preparation"]["strata"]
        return ", ".join(f"{name} {count:,}" for name, count in strata.items() if count)

    @property
    def largest_micro_batch(self) -> MicroBatchSize:
        """An upper bound on one training forward pass.

        With ``micro_batch_pairs`` every pair is assumed as long as the longest.

        Raises:
            ValueError: No row was kept.
        """
        pairs = self.tokenised
        if not len(pairs.name):
            raise self._empty("train")
        scored = 2 * np.maximum(pairs.chosen.sizes, pairs.rejected.sizes)
        return self.micro_batch.largest(self._tokens_of(np.arange(len(scored))), scored, self.pairs_per_step)

    def _tokenise(self, tokeniser: Tokeniser, *, progress: bool) -> tuple[TokenisedPairs, dict[str, Any], list[str]]:
        rows = self._prepared()
        pairs = tokeniser.pairs(rows, rows.splits(placed(self.sources)), progress=progress)
        return pairs, rows.report.to_dict(), rows.report.lines()

    def _prepared(self) -> Prepared:
        return prepared(
            self.sources,
            self.annotator,
            self.order,
            self.on_bad_row,
            self.contradictions,
            self.max_pairs_per_prompt,
            evaluation=True,  # prompts of evaluation-only sources are put into val or where they say
            duplicates=self.duplicates,
        )

    def _options(self) -> dict[str, object]:
        return {
            "annotator": self.annotator,
            "order": self.order,
            "contradictions": self.contradictions,
            "duplicates": self.duplicates,
            "max_pairs_per_prompt": self.max_pairs_per_prompt,
        }
