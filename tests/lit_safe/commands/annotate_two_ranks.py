"""Run by ``test_annotate_kept.py``: one of two processes of a launcher that annotate together."""

import json
import sys
from pathlib import Path

import torch

from lit_safe.commands.annotate import annotate
from tests.lit_safe.commands.test_annotate_kept import Both
from tests.lit_safe.pair_world import pairs

if __name__ == "__main__":
    torch.set_num_threads(1)
    out, asked = sys.argv[1:]
    scorer = Both()
    annotate(pairs(), scorer=scorer, out=out, batch_pairs=3)
    Path(asked).write_text(json.dumps(scorer.asked), encoding="utf-8")
