"""Predicted times of the head beside the measured ones, at the rates that this device reached."""

from typing import Any

import torch

from models.gpu.timing import Ceilings
from ops.sequence_logratio.bench_cases import SHAPES
from ops.sequence_logratio.cards import Card, card_of
from ops.sequence_logratio.roofline import predict

Row = dict[str, Any]


def beside(rows: list[Row], device: str, ceiling: Ceilings | None) -> list[Row]:
    """The benchmark's rows with ``predicted_ms``: of the backend ``fused`` on a known card, otherwise None."""
    card = None
    if device == "cuda" and ceiling is not None:
        facts = torch.cuda.get_device_properties(0)
        card = card_of(facts.name, facts.multi_processor_count)
    return [{**row, "predicted_ms": predicted_ms(row, card, ceiling)} for row in rows]


def predicted_ms(row: Row, card: Card | None, ceiling: Ceilings | None) -> float | None:
    """The prediction for one row of the benchmark."""
    if card is None or ceiling is None or row["provider"] != "fused":
        return None
    measured = card._replace(products=ceiling.matmul / card.peak, copies=ceiling.copy / card.memory)
    return predict(measured, row["mode"], *SHAPES[row["shape"]][:3]).predicted
