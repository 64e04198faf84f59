"""Stores the hidden states below the layers that train, for one run or several (``LastLayers(cache_trunk=True)``).

A state depends on the frozen weights, on the tokens up to its own and on the type of products, and on nothing else. The
folder's name is a hash of the weights and types, and a piece's key a hash of the tokens. A prompt is stored once.

Letters: N sequences, T tokens, D hidden width.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import shutil
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from lit_safe.execution.progress import progress
from lit_safe.execution.quiet import quiet
from lit_safe.execution.ranks import failing_together, gather
from lit_safe.precision import compute_dtype
from lit_safe.protocols.pair import HasTrunk
from lit_safe.sequences import select_sequences
from lit_safe.training.trunk_file import TrunkFile, TrunkWriter
from lit_safe.types import IGNORE, PackedBatch, PackedSequences, SequenceBatch, TrunkStorage

log = logging.getLogger(__name__)

GIB = 2**30


class WithTrunk(Protocol):
    """A module whose pair ``HasTrunk``."""

    @property
    def pair(self) -> HasTrunk:
        """The pair."""


class Piece(NamedTuple):
    """A prompt, or a response after its prompt: the hash of all tokens up to its end, and its place in the batch."""

    key: int
    start: int
    end: int
    sequence: int


class TrunkCache:
    """Maps a sequence's tokens to their trunk states on disk.

    Args:
        storage: The folder, the type and the largest size.
    """

    def __init__(self, storage: TrunkStorage) -> None:
        self.storage = storage
        self._files: dict[int, TrunkFile] = {}

    def fill(self, module: WithTrunk, batches: Callable[[], Iterable[PackedBatch | SequenceBatch]]) -> None:
        """Compute and store the states of all sequences of ``batches()`` that the folder lacks.

        All ranks must call this and read the same folder. Each stores the states of its own batches.

        Raises:
            ValueError: If the states need more than ``storage.max_gib``, or the disk has less space. Nothing is written
                then.
            FloatingPointError: If a state is not finite. The message names the pair or the row.
        """
        with quiet(module, seed=0) as device:
            folder = self._folder(module, device)
            self._load(folder)
            lengths, example = self._wanted(batches())
            like_D = torch.empty(0)
            if example is not None:
                like_D = module.pair.trunk_states(move_data_to_device(example, device))[0].cpu()
            if self.storage.bfloat16:
                like_D = like_D.bfloat16()
            self._check_size(folder, sum(lengths.values()), like_D, device)
            if lengths:
                name = hashlib.sha256(repr(list(lengths.items())).encode()).hexdigest()[:32]
                path = folder / f"{name}.npz"
                folder.mkdir(parents=True, exist_ok=True)
                with FileLock(folder / f".{name}.lock"):
                    if not path.exists():
                        with closing(TrunkWriter(path, lengths, len(like_D), like_D.dtype)) as writer:
                            _compute(module, writer, batches(), device)
                            writer.finish()
        with failing_together():  # every rank's file is complete
            self._load(folder)

    def attach(self, sequences: PackedSequences) -> PackedSequences:
        """The sequences with their trunk states, on the CPU; unchanged if one of them is unknown.

        Raises:
            ValueError: If a file is damaged.
        """
        pieces = _pieces(sequences)
        if not all(piece.key in self._files for piece in pieces):
            return sequences
        first = self._files[pieces[0].key]
        state_TD = torch.empty(len(sequences.input_ids), first.width, dtype=first.dtype)
        for key, start, end, _ in pieces:
            self._files[key].read(key, state_TD[start:end])
        return sequences._replace(trunk=state_TD)

    def __len__(self) -> int:
        """Number of pieces (prompts and responses) whose states are known."""
        return len(self._files)

    def _folder(self, module: WithTrunk, device: torch.device) -> Path:
        rounded = "bfloat16" if self.storage.bfloat16 else "as computed"
        computed = f"{module.pair.trunk_digest()}, products in {compute_dtype(device)}, stored {rounded}"
        name = hashlib.sha256(computed.encode()).hexdigest()[:32]
        return Path(self.storage.folder).expanduser() / f"trunk-{name}"

    def _load(self, folder: Path) -> None:
        """Find all complete files of the folder."""
        for path in sorted(folder.glob("[!.]*.npz")):
            file = TrunkFile(path)
            self._files.update(dict.fromkeys(file.places, file))

    def _wanted(self, batches: Iterable[PackedBatch | SequenceBatch]) -> tuple[dict[int, int], PackedSequences | None]:
        """Lengths of the unknown pieces by key, in the batches' order, and a sequence that has one."""
        lengths: dict[int, int] = {}
        example = None
        for batch in batches:
            for piece in _pieces(batch.sequences):
                if piece.key not in self._files:
                    lengths.setdefault(piece.key, piece.end - piece.start)
                    example = example or select_sequences(batch.sequences, torch.tensor([0]))
        return lengths, example

    def _check_size(self, folder: Path, tokens: int, like_D: Tensor, device: torch.device) -> None:
        """Say how much the states need, and refuse it if it is too much. The bound covers the states of all ranks."""
        stored = sum(path.stat().st_size for path in folder.glob("[!.]*.bin"))
        parts_W = gather(torch.tensor([tokens * like_D.nbytes, tokens]), device).view(-1, 2)
        new, count = (int(part) for part in parts_W.sum(0))
        if not new:
            log.info("trunk states of %s pieces found in %s (%s)", f"{len(self):,}", folder, _size(stored))
            return
        need = f"trunk states of {count:,} tokens need {_size(new)} in {folder}"
        if new + stored > self.storage.max_gib * GIB:
            raise ValueError(
                f"{need}{f' besides {_size(stored)} there' if stored else ''}, and trunk_max_gib allows "
                f"{self.storage.max_gib:g} GiB: raise it, set trunk_dtype to bfloat16, train on fewer pairs, or set "
                "cache_trunk to false"
            )
        here = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        free = shutil.disk_usage(here).free
        if new > free:
            raise ValueError(f"{need}, and the disk has {_size(free)} left: set trunk_dir to a folder on another disk")
        log.info("%s; each is computed once, and later runs with these frozen weights read them", need)


def _compute(
    module: WithTrunk, writer: TrunkWriter, batches: Iterable[PackedBatch | SequenceBatch], device: torch.device
) -> None:
    """Write the states of all pieces that ``writer`` lacks."""
    missing = writer.missing()
    for batch in progress(batches, "trunk states, batch"):
        wanted = sorted({piece.sequence for piece in _pieces(batch.sequences) if piece.key in missing})
        if not wanted:
            continue
        sequences = select_sequences(batch.sequences, torch.tensor(wanted))
        state_TD = module.pair.trunk_states(move_data_to_device(sequences, device)).cpu()
        for key, start, end, number in _pieces(sequences):
            if key in missing:
                missing.discard(key)
                if not bool(state_TD[start:end].isfinite().all()):
                    raise FloatingPointError(f"the hidden states of {_name(batch, wanted[number])} are not finite")
                writer.write(key, state_TD[start:end])


def _name(batch: PackedBatch | SequenceBatch, number: int) -> str:
    """What a message calls a sequence of a batch."""
    if isinstance(batch, SequenceBatch):
        return f"row {int(batch.row_id[number])}"
    return f"a response of pair {int(batch.pair_id[number // 2])}"


def _pieces(sequences: PackedSequences) -> list[Piece]:
    """The prompt and the response of each sequence, in order. A prompt ends where the first token is scored."""
    bounds = sequences.cu_seqlens.tolist()
    ids_T, target_T = sequences.input_ids.cpu().numpy(), sequences.target.cpu().numpy()
    found = []
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
        scored = (target_T[start:end] != IGNORE).nonzero()[0]
        middle = start + int(scored[0]) + 1 if len(scored) else end
        found.append(Piece(_key(ids_T[start:middle], b"prompt"), start, middle, number))
        if middle < end:
            found.append(Piece(_key(ids_T[start:end], b"response"), middle, end, number))
    return found


def _key(ids_t: npt.NDArray[np.int64], part: bytes) -> int:
    found = hashlib.blake2b(ids_t.tobytes(), digest_size=8, person=part)
    return int.from_bytes(found.digest(), "little", signed=True)


def _size(count: int) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB / 100 else f"{count / 2**20:.1f} MiB"
