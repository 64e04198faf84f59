"""The smallest fit: a line on two batches, which logs a row each step."""

from collections.abc import Iterator

import torch
from lightning import LightningModule
from torch import Tensor


class Batches:
    def __iter__(self) -> Iterator[Tensor]:
        return iter([torch.ones(2, 1), torch.zeros(2, 1)])

    def __len__(self) -> int:
        return 2


BATCHES = Batches()


class Line(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.line = torch.nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        for logger in self.loggers:
            logger.log_metrics({"train/loss": 1.0}, step=self.global_step)
        return self.line(batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        for logger in self.loggers:
            logger.log_metrics({"eval/loss": 2.0}, step=self.global_step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)
