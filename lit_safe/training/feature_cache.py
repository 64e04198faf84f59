"""Hidden states of a frozen trunk, computed once for each sequence.

Letters: N sequences, D hidden width.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from lit_safe.execution.progress import progress
from lit_safe.execution.quiet import quiet
from lit_safe.execution.ranks import gather, rank_and_world
from lit_safe.execution.row_store import RowStore
from lit_safe.sequences import select_sequences
from lit_safe.types import PackedBatch, PackedSequences

Features = Callable[[PackedSequences], Tensor]
"""Computes [N, D] hidden states of the last tokens."""

FLUSH = 1024  # new sequences between two writes


class FeatureCache:
    """Maps the tokens of a sequence to the hidden state of its last token, in host memory: 4 D bytes each.

    Args:
        store: Folder that keeps them for later runs, or None.
    """

    def __init__(self, store: RowStore | None = None) -> None:
        self._store = store
        self._known: dict[int, Tensor] = {}

    def load(self) -> None:
        """Read what earlier runs stored."""
        if self._store is not None:
            self._known.update({key: torch.from_numpy(row) for key, row in self._store.read().items()})

    def fill(self, module: Any, batches: Iterable[PackedBatch], features: Features) -> list[int]:
        """Compute the hidden states of all new sequences of ``batches`` and exchange them between ranks.

        All ranks must have equally many batches and pairs.

        Returns:
            The keys of all sequences without fillers, sorted, each once; equal on all ranks.

        Raises:
            FloatingPointError: If a hidden state is not finite. The message names the pair.
        """
        seen: set[int] = set()
        with quiet(module, seed=0) as device:
            for batch in progress(batches, "hidden states, batch"):
                keys = keys_of(batch.sequences)
                self._compute(keys, batch, lambda part: features(move_data_to_device(part, device)).cpu())
                # to every rank, because later epochs distribute the pairs differently
                row_N = torch.stack([torch.tensor(keys), batch.present.repeat_interleave(2).long()], dim=1)
                row_N, hidden_ND = gather(row_N, device), gather(self._rows(keys), device)
                self._known.update(zip(row_N[:, 0].tolist(), hidden_ND, strict=True))
                seen |= {key for key, present in row_N.tolist() if present}
            self._flush()
        return sorted(seen)

    def of(self, batch: PackedBatch, features: Features) -> Tensor:
        """[N, D] hidden states of a batch on the host. Those that are unknown are computed now and kept."""
        keys = keys_of(batch.sequences)
        self._compute(keys, batch, features)
        return self._rows(keys)

    def rows(self, keys: Iterable[int]) -> Tensor:
        """[n, D] hidden states by key."""
        return torch.stack([self._known[key] for key in keys])

    def __len__(self) -> int:
        """Number of distinct sequences in the cache."""
        return len(self._known)

    def _rows(self, keys: list[int]) -> Tensor:
        return self.rows(keys)

    def _compute(self, keys: list[int], batch: PackedBatch, features: Features) -> None:
        new = {key: n for n, key in enumerate(keys) if key not in self._known}
        if not new:
            return
        hidden_nD = features(select_sequences(batch.sequences, torch.tensor(list(new.values())))).float().cpu()
        wrong = (~hidden_nD.isfinite().all(-1)).nonzero()[:, 0].tolist()
        if wrong:
            pair = int(batch.pair_id[list(new.values())[wrong[0]] // 2])
            raise FloatingPointError(f"the hidden state of a response of pair {pair} is not finite")
        self._known.update(zip(new, hidden_nD, strict=True))
        if self._store is not None:
            self._store.add(new, hidden_nD.numpy())
            if self._store.pending >= FLUSH:
                self._flush()

    def _flush(self) -> None:
        if self._store is not None:
            self._store.flush(rank_and_world()[0])


def keys_of(sequences: PackedSequences) -> list[int]:
    """[N] hashes of the tokens of each sequence."""
    ids = sequences.input_ids.cpu().numpy()
    return [
        int.from_bytes(hashlib.blake2b(ids[start:end].tobytes(), digest_size=8).digest(), "little", signed=True)
        for start, end in itertools.pairwise(sequences.cu_seqlens.tolist())
    ]


def store_at(folder: str | None, digest: str) -> RowStore | None:
    """The store of a trunk's hidden states below ``folder``; None without a folder."""
    if folder is None:
        return None
    name = hashlib.sha256(digest.encode()).hexdigest()[:16]
    return RowStore(Path(folder).expanduser() / f"features-{name}", np.float32)
