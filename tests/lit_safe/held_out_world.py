"""The world of ``dual_world`` with a val split: what evaluations and reports are tested on."""

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lit_safe.objectives import DPO
from lit_safe.training.module import PreferenceAlignment
from lit_safe.types import Annotation, ModelFacts, PackedBatch, Pair, Prompt
from tests.lit_safe.dual_world import K, P, Table, Toy, all_pairs

PAIRS = P * K * (K - 1) // 2


class HeldOut(Toy):
    """All pairs in batches of seven, the last one filled up with rows that are not there."""

    def val_dataloader(self):
        batches = [take(all_pairs(self.costs_PKC), start, start + 7) for start in range(0, PAIRS, 7)]
        return DataLoader(batches, batch_size=None)

    def prompts(self, split):
        return [Prompt(p, (p,), f"prompt {p}") for p in range(P)] if split == "val" else []

    seed = 0
    report_lines = ("40 of 41 rows kept as pairs of 4 prompts, order 'helpful'",)

    @property
    def report(self):
        source = {"name": "a table", "licence": "none needed", "responses_from": ["reference"], "read": 41, "kept": 40}
        swaps = {"keep": 4, "swap": 24, "drop": 12}
        preparation = {"sources": [source], "safe_dpo": swaps, "unsafe_share": {"harm": 0.4, "any": None}}
        return {"preparation": preparation, "splits": {"train": PAIRS, "val": PAIRS}, "tokenisation": {"kept": PAIRS}}


class NamedTable(Table):
    """A table that says what it is."""

    def facts(self):
        return ModelFacts("a table of logits", "its first logits", P * K, P * K, "float32", "reference", "none needed")


def take(batch: PackedBatch, start: int, end: int) -> PackedBatch:
    """Rows of a batch; beyond its end, copies of row 0 with absurd labels that are not present."""
    index = torch.arange(start, end)
    present = index < len(batch.pair_id)
    index = torch.where(present, index, 0)
    sides = torch.stack([2 * index, 2 * index + 1], dim=1).flatten()

    def pick(side: Tensor) -> Tensor:
        value = side[index].clone()
        value[~present] = 999
        return value

    return PackedBatch(
        batch.sequences._replace(
            input_ids=batch.sequences.input_ids.view(-1, 2)[sides].flatten(),
            target=batch.sequences.target.view(-1, 2)[sides].flatten(),
            position=torch.tensor([0, 1]).repeat(len(sides)),
            cu_seqlens=torch.arange(0, 2 * len(sides) + 1, 2, dtype=torch.int32),
        ),
        Annotation(*(Pair(*map(pick, pair)) for pair in batch.label[:2])),
        batch.pair_id[index],
        batch.prompt_id[index],
        Pair(*(side[index] for side in batch.response_length)),
        present,
        batch.pairs_in_step,
    )


def module(policy_PK: Tensor | None = None) -> PreferenceAlignment:
    """A module whose policy has these log-probs, or is still the reference."""
    table = NamedTable()
    if policy_PK is not None:
        table.logit_PK.data.copy_(policy_PK)
    return PreferenceAlignment(table, DPO(), optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.05))
