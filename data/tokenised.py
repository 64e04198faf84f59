"""The common part of preference data and fine-tuning data: rows, cache, split and rank."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

from data.cache import Cache, named_inputs
from data.limits import check_readable
from data.micro_batches import MicroBatchLimit, MicroBatchSize, Rank
from data.render import TODAY
from data.rendered import Rendered
from data.schema import PromptSource, SftSource, Source
from data.split import Split, split_key
from data.steps import StepLoader, ordered, position
from data.tokeniser import OnBadRow, Tokeniser
from data.tokens import SPLITS, Int64s, Tokenised, from_arrays, to_arrays
from lit_safe.phases import phase
from lit_safe.types import Prompt

AnySource = TypeVar("AnySource", bound="Source | SftSource")


class TokenisedData(Rendered, ABC, Generic[Tokenised, AnySource]):
    """Reads rows once, tokenises them, splits them by prompt, and reports what was kept and dropped."""

    kind: type[Tokenised]

    def __init__(
        self,
        sources: Sequence[AnySource],
        max_length: int,
        on_bad_row: OnBadRow,
        tokenizer: str | None,
        cache_dir: str | None,
        seed: int,
        held_out: bool = True,
        template: str | None = None,
        template_date: str = TODAY.isoformat(),
        rendered: bool = False,
        micro_batch: MicroBatchLimit | None = None,
    ) -> None:
        super().__init__(max_length, tokenizer, template, template_date, rendered)
        if not sources:
            raise ValueError("sources: name at least one")
        if not held_out and any(getattr(source, "evaluation_only", False) for source in sources):
            raise ValueError("held_out: false would train on a source that is for evaluation only")
        self.sources: list[AnySource] = list(sources)
        self.prompt_sources: list[PromptSource] = []
        self.on_bad_row, self.seed = on_bad_row, seed
        self.held_out = held_out
        self.micro_batch = micro_batch or MicroBatchLimit()
        self.cache = None if cache_dir is None else Cache(cache_dir)
        self._tokenised: Tokenised | None = None
        self._facts: dict[str, Any] = {}
        self._told = self._readable = False
        self._tokens_hash: int | None = None

    @abstractmethod
    def _tokenise(self, tokeniser: Tokeniser, *, progress: bool) -> tuple[Tokenised, dict[str, Any], list[str]]:
        """Rows as ids, with the report as JSON values and as lines."""

    @abstractmethod
    def _options(self) -> dict[str, object]:
        """Other options that decide the rows, by name."""

    @abstractmethod
    def train_dataloader(self) -> StepLoader[Any]:
        """Each item is the list of micro-batches of one optimizer step."""

    def state_dict(self) -> dict[str, Any]:
        """Values that must be equal in a resumed run, for every checkpoint."""
        if self._tokenised is None:
            return {}
        known = {**self.train_dataloader().state_dict(), "tokens": self._tokens()}
        return {**known, **self.micro_batch.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that a resumed run has the same data as the run that wrote the checkpoint.

        Lightning restores a loader's own state only inside an epoch. This also covers checkpoints between two epochs.
        A micro-batch keeps the size that was chosen for the first run, so that sums round alike.

        Raises:
            ValueError: Rows, their tokens, the seed or the step size differ.
        """
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        self.train_dataloader().load_state_dict(state_dict)
        self.micro_batch.load_state_dict(state_dict)
        if state_dict.get("tokens") != self._tokens():
            raise ValueError(
                "the checkpoint was trained on the same rows in other tokens: tokenizer, chat template, template_date, "
                "rendered or max_length changed; resume with the run's own, or start a new run from its weights"
            )

    def _tokens(self) -> int:
        """A hash of the token ids of all rows."""
        if self._tokens_hash is None:
            arrays, _ = to_arrays(self.tokenised)
            digest = hashlib.sha256()
            for name in sorted(arrays):
                if name.endswith((".values", ".offsets")):
                    digest.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
            self._tokens_hash = int.from_bytes(digest.digest()[:7], "big")
        return self._tokens_hash

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Let the module complete a batch on the host. Lightning calls this hook on the data module only."""
        complete = getattr(self.trainer.lightning_module, "complete", None) if self.trainer else None
        with phase("data"):
            return batch if complete is None else complete(batch)

    def prepare_data(self) -> None:
        """Fill the cache. It runs on one process per machine; the others only read the cache."""
        if self.cache is not None and self._tokenised is None:
            self._load()

    def setup(self, stage: str | None = None) -> None:
        """Read, tokenise and split, once; report what was kept and dropped."""
        if self._tokenised is None:
            self._load()
        if not self._told:
            self._told = True
            fitting = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
            for line in self.report_lines if not fitting else ():  # a run that begins says it in short (`Announce`)
                rank_zero_info(f"data: {line}")
            for warning in self._facts["warnings"]:
                rank_zero_warn(f"data: {warning}")

    @property
    def tokenised(self) -> Tokenised:
        """Every row as ids; available after ``setup``."""
        if self._tokenised is None:
            raise RuntimeError("the data are not available before setup()")
        return self._tokenised

    @property
    def report(self) -> dict[str, Any]:
        """What was kept and dropped: ``preparation``, ``tokenisation``, counts by split, and ``held_out``.

        ``splits`` counts rows and ``prompts`` counts prompts. Both count them in every split with ``held_out: false``.
        """
        tokenised = self.tokenised
        counted = {"splits": tokenised.split, "prompts": tokenised.prompts.split}
        counts = {n: {s: len(self._members(codes, s)) for s in SPLITS} for n, codes in counted.items()}
        return {**self._facts["report"], **counts, "held_out": self.held_out}

    @property
    def report_lines(self) -> list[str]:
        """The report as a few lines of text."""
        splits = self.report["splits"]
        by_split = "by split: " + ", ".join(f"{name} {count:,}" for name, count in splits.items())
        warning = "every split is the whole data (held_out: false): nothing here is held out, and nothing is certified"
        return [*self._facts["lines"], *([] if self.held_out else [warning]), by_split]

    @property
    def licences(self) -> dict[str, str]:
        """The licence of each source, by its name; sources with the same name have their licences joined."""
        found: dict[str, list[str]] = {}
        for source in [*self.sources, *self.prompt_sources]:
            named = found.setdefault(source.describe().get("name", type(source).__name__), [])
            named += [] if source.licence in named else [source.licence]
        return {name: "; ".join(licences) for name, licences in found.items()}

    @property
    @abstractmethod
    def largest_micro_batch(self) -> MicroBatchSize:
        """An upper bound on one training forward pass."""

    def prompts(self, split: Split) -> list[Prompt]:
        """Every prompt of a split once, in an order that depends only on the prompts.

        Raises:
            ValueError: The split has no prompt.
        """
        table = self.tokenised.prompts
        members = self._members(table.split, split)
        if not len(members):
            raise self._empty(split)
        order = members[ordered(table.prompt_id[members], "prompts")]
        return [Prompt(int(table.prompt_id[i]), tuple(table.ids.at(i).tolist()), table.text[i]) for i in order]

    def trained_on(self, texts: Sequence[str]) -> list[bool]:
        """Whether each of these prompts, or a near-duplicate of it, is in the train split."""
        table = self.tokenised.prompts
        train = {split_key(table.text[i]) for i in self._members(table.split, "train")}
        return [split_key(text) in train for text in texts]

    @property
    def rank(self) -> Rank:
        """This process's rank among those that share the rows."""
        return Rank() if self.trainer is None else Rank(self.trainer.global_rank, self.trainer.world_size)

    def position(self, steps: int) -> tuple[int, int]:
        """(epoch, step within it) of training; the start if nothing trains."""
        return (0, 0) if self.trainer is None else position(self.trainer, steps)

    def rows_of(self, split: Split) -> Int64s:
        """Indices of a split's rows.

        Raises:
            ValueError: The split is empty, or the connected model is loaded and cannot read the rows.
        """
        self._check_model()
        index = self._members(self.tokenised.split, split)
        if not len(index):
            raise self._empty(split)
        return index

    def _check_model(self) -> None:
        """Refuse rows that the model cannot read, once it is loaded and before it reads one."""
        limits = getattr(self._model, "limits", lambda: None)()
        if limits is None or self._readable:
            return
        check_readable(self.tokenised, limits.positions, limits.vocabulary, len(self.tokenizer))
        self._readable = True

    def _members(self, codes: npt.NDArray[np.int8], split: Split) -> Int64s:
        """Indices of the rows or prompts with these ``codes`` in a split; all of them with ``held_out: false``."""
        return np.flatnonzero(codes == SPLITS.index(split)) if self.held_out else np.arange(len(codes))

    def _empty(self, split: Split) -> ValueError:
        kept, *details = self.report_lines
        return ValueError(
            f"the {split} split has no rows: {kept}. "
            "Prompts are split by hash, so a split of few prompts may be empty. Name more sources; or set "
            "data.init_args.held_out: false to put every prompt into every split (nothing is held out then), or "
            f"trainer.limit_val_batches: 0 to run without validation. {'; '.join(line.strip() for line in details)}"
        )

    def _load(self) -> None:
        if self.cache is None:
            self._tokenised, self._facts = self._read()
            return
        options = {"max_length": self.max_length, "on_bad_row": self.on_bad_row, **self._options()}
        options |= {"template_date": self.today.isoformat(), "rendered": self.rendered}
        inputs = named_inputs(self.sources, self.tokenizer, rows=self.kind.__name__, **options)
        stored = self.cache.read(inputs)
        if stored is None:
            self._tokenised, self._facts = self._read()
            arrays, texts = to_arrays(self._tokenised)
            self.cache.write(inputs, arrays, {**self._facts, "texts": texts})
        else:
            arrays, facts = stored
            self._facts = facts
            self._tokenised = from_arrays(self.kind, arrays, facts.pop("texts"))

    def _read(self) -> tuple[Tokenised, dict[str, Any]]:
        tokeniser = Tokeniser(self._renderer(), self.max_length, self.on_bad_row)
        tokenised, preparation, lines = self._tokenise(tokeniser, progress=getattr(rank_zero_only, "rank", 0) == 0)
        report = {"preparation": preparation, "tokenisation": tokeniser.report.to_dict()}
        facts = {"report": report, "lines": [*lines, *tokeniser.report.lines()], "warnings": tokeniser.report.warnings}
        return tokenised, json.loads(json.dumps(facts))  # the same types as from the cache
