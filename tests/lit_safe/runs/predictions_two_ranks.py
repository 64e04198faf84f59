"""Run by ``test_predictions.py``: two gloo ranks predict the held-out pairs together."""

import sys
from pathlib import Path

import torch

from lit_safe.runs.prediction_file import PredictionFile
from tests.lit_safe.pair_world import Fruit, aligned, pairs, trainer
from tests.lit_safe.runs.test_predictions import moved

if __name__ == "__main__":
    torch.set_num_threads(1)
    run = trainer(Path(sys.argv[1]), devices=2, strategy="ddp", callbacks=[PredictionFile()])
    run.predict(moved(aligned()), pairs(Fruit(60), eval_batch_pairs=3))
