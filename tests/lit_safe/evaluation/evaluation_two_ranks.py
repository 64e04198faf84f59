"""One rank of two that evaluate together: python evaluation_two_ranks.py <rank> <file to meet at> <out>."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from lit_safe.evaluation.evaluate import evaluate
from tests.lit_safe.dual_world import TableCost, all_pairs
from tests.lit_safe.held_out_world import PAIRS, HeldOut, module, take


class Half(HeldOut):
    """Every second batch; the last one of rank 1 holds rows that are not there alone."""

    def val_dataloader(self):
        starts = list(range(0, PAIRS + 14, 7))[dist.get_rank() :: 2]
        return DataLoader([take(all_pairs(), start, start + 7) for start in starts], batch_size=None)


if __name__ == "__main__":
    rank, meeting, out = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=2)
    found = evaluate(module(), Half(), cost=TableCost(), prompts=3, batch_size=1)
    torch.save(found.state_dict(), f"{out}.{rank}")
    dist.destroy_process_group()
