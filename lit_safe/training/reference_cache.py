"""Caches the reference's log-probs of all training responses, for one run or several."""

import hashlib
import itertools
import logging
import math
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from lightning.fabric.utilities import move_data_to_device

from lit_safe.execution.progress import progress
from lit_safe.execution.quiet import quiet
from lit_safe.execution.ranks import failing_together, gather, of_first_rank, rank_and_world
from lit_safe.protocols.pair import HasPair
from lit_safe.sequences import select_sequences
from lit_safe.types import PackedBatch, PackedSequences, Pair

log = logging.getLogger(__name__)


UNSAVED = 256  # new log-probs between two saves, at least


class ReferenceCache:
    """Maps a sequence (its tokens, and which of them are scored) to its log-prob under the reference.

    A response that occurs in several pairs is scored once. The cache is in host memory, about 150 bytes per response.
    """

    def __init__(self) -> None:
        self._known: dict[int, float] = {}

    def load(self, path: Path) -> None:
        """Load the log-probs that an earlier run stored, if there are any.

        Raises:
            ValueError: If the file is damaged. The message names it. The file is not recreated automatically, because
                a resumed run must use the log-probs that it was trained with, and other runs may use the file.
        """
        with failing_together():
            self._known = of_first_rank({**self._known, **_read(path)})
        if len(self):
            log.info("reference log-probs of %s responses found in %s", f"{len(self):,}", path)

    def save(self, path: Path) -> None:
        """Add new log-probs to the file, atomically, then use the file's content. All ranks must call this.

        Log-probs that are already in the file are kept and replace those scored here. Their rounding depends on the
        batch in which they were scored. A resumed run, and other runs that use the file, must get the same values.
        """
        with failing_together():
            if rank_and_world()[0] == 0:
                stored = _read(path)
                if self._known.keys() - stored.keys():
                    with _alone(path):
                        stored = _read(path)  # other runs may have written to it meanwhile
                        _write(path, {**self._known, **stored})
                self._known.update(stored)
            self._known = of_first_rank(self._known)

    def fill(self, module: HasPair, batches: Iterable[PackedBatch], path: Path | None = None) -> None:
        """Score all new sequences of ``batches``. All ranks must have equally many batches and pairs.

        With ``path``, the log-probs are saved there, also from time to time meanwhile. A process that is killed then
        loses at most a tenth of them, or ``UNSAVED`` if that is more.

        Raises:
            FloatingPointError: If a log-prob is not finite. The message names the pair.
        """
        saved = len(self)
        with quiet(module, seed=0) as device:
            for batch in progress(batches, "reference log-probs, batch"):
                keys = _keys(batch.sequences)
                new = {key: n for n, key in enumerate(keys) if key not in self._known}
                if new:
                    sequences = select_sequences(batch.sequences, torch.tensor(list(new.values())))
                    logp_N = module.pair.reference_logp(move_data_to_device(sequences, device)).cpu().double()
                    wrong = [
                        n for n, logp in zip(new.values(), logp_N.tolist(), strict=True) if not math.isfinite(logp)
                    ]
                    if wrong:
                        pair = int(batch.pair_id[wrong[0] // 2])
                        raise FloatingPointError(f"the reference's log-prob of a response of pair {pair} is not finite")
                    self._known.update(zip(new, logp_N.tolist(), strict=True))
                # to every rank, because later epochs distribute the pairs differently
                logp_N = torch.tensor([self._known[key] for key in keys], dtype=torch.float64)
                rows_N2 = gather(torch.stack([torch.tensor(keys), logp_N.view(torch.int64)], dim=1), device)
                self._known.update(
                    zip(rows_N2[:, 0].tolist(), rows_N2[:, 1].contiguous().view(torch.float64).tolist(), strict=True)
                )
                if path is not None and len(self) - saved >= max(UNSAVED, len(self) // 10):  # equal on all ranks
                    self.save(path)
                    saved = len(self)
        if path is not None:
            self.save(path)

    def attach(self, batch: PackedBatch) -> PackedBatch:
        """The batch with its reference log-probs, or unchanged if one of them is unknown.

        A filler pair has weight 0 and needs none: it gets 0. A rank without a pair of its own trains on such pairs.
        Reads the batch's ids on the host, so call it before the batch is moved to its device.
        """
        present_N = batch.present.repeat_interleave(2).tolist()
        known = [
            self._known.get(key, None if present else 0.0)
            for key, present in zip(_keys(batch.sequences), present_N, strict=True)
        ]
        if None in known:
            return batch
        logp_N = torch.tensor(known, dtype=torch.float32, device=batch.pair_id.device)
        return batch._replace(reference_logp=Pair(logp_N[0::2], logp_N[1::2]))

    def __len__(self) -> int:
        """Number of distinct responses in the cache."""
        return len(self._known)


def _read(path: Path) -> dict[int, float]:
    if not path.exists():
        return {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            key_n, logp_n, digest = stored["key"], stored["logp"], stored["sha256"]
        whole = bool(np.array_equal(digest, _digest(key_n, logp_n))) and bool(np.isfinite(logp_n).all())
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
        whole = False
    if not whole:
        raise ValueError(
            f"{path}: this file of reference log-probs is damaged or from an earlier version. Delete it; the next "
            "run scores the reference again"
        )
    return dict(zip(key_n.tolist(), logp_n.tolist(), strict=True))


def _write(path: Path, known: dict[int, float]) -> None:
    partial = path.with_name(f".{path.stem}-partial.npz")
    key_n, logp_n = np.array(list(known), np.int64), np.array(list(known.values()), np.float64)
    np.savez(partial, key=key_n, logp=logp_n, sha256=_digest(key_n, logp_n))
    os.replace(partial, path)


def _digest(key_n: npt.NDArray[np.int64], logp_n: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    content = hashlib.sha256(key_n.tobytes() + logp_n.tobytes())
    return np.frombuffer(content.digest(), np.uint8)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold an exclusive lock for the file. The lock of a process that ended is released automatically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.stem}.lock")):
        yield


def _keys(sequences: PackedSequences) -> list[int]:
    """[N] hashes of the tokens and targets of each sequence."""
    bounds = sequences.cu_seqlens.tolist()
    rows = torch.stack([sequences.input_ids, sequences.target], dim=1).cpu().numpy()
    return [
        int.from_bytes(hashlib.blake2b(rows[start:end].tobytes(), digest_size=8).digest(), "little", signed=True)
        for start, end in itertools.pairwise(bounds)
    ]
