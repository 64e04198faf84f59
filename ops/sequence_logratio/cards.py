"""Rates of some GPUs, for predictions. Datasheet figures are leads: ``make gpu`` measures a card's own."""

from typing import NamedTuple

LOAD_BYTES_PER_CYCLE = 5120  # of the L2, read by all multiprocessors: A100 whitepaper, p. 21; assumed for Hopper too


class Card(NamedTuple):
    """One GPU.

    Example:
        >>> round(CARDS["A100"].clock / 1e9, 2)
        1.41
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    operations_per_cycle: int  # dense bf16, of one multiprocessor
    peak: float  # dense bf16 operations per second: the datasheet's, half of its rate with sparsity
    products: float  # share of the peak that a large library product reaches
    memory: float  # bytes per second: the datasheet's
    copies: float  # share of ``memory`` that a large copy reaches, bytes read and written
    l2: int  # bytes

    @property
    def clock(self) -> float:
        """Cycles per second at which the peak holds."""
        return self.peak / self.multiprocessors / self.operations_per_cycle

    @property
    def matmul(self) -> float:
        """Operations per second of a large library product."""
        return self.peak * self.products

    @property
    def copy(self) -> float:
        """Bytes per second of a large copy."""
        return self.memory * self.copies

    @property
    def load(self) -> float:
        """Bytes per second from the L2 to all multiprocessors."""
        return LOAD_BYTES_PER_CYCLE * self.clock


CARDS = {
    # NVIDIA's datasheet of the SXM5 part. Shares: one H200, PyTorch 2.11, random data: 769 to 798 TFLOP/s of an
    # 8192 x 8192 x 8192 product, and 4.3 TB/s of a copy of 8.6 GB (2026-10-28 and 2026-11-04)
    "H200": Card("H200", (9, 0), 132, 4096, 989.4e12, 0.797, 4.8e12, 0.9, 50 * 10**6),
    # datasheet of the SXM5 part with 80 GB; the shares are assumed to be those of the H200, which has the same chip
    "H100": Card("H100", (9, 0), 132, 4096, 989.4e12, 0.797, 3.35e12, 0.9, 50 * 10**6),
    # datasheet of the SXM4 part with 80 GB; the shares are assumed
    "A100": Card("A100", (8, 0), 108, 2048, 312e12, 0.8, 2.039e12, 0.9, 40 * 10**6),
}


def card_of(name: str, multiprocessors: int) -> Card | None:
    """The card with this device name and number of multiprocessors, or None.

    Parts that share a name differ in that number.

    Example:
        >>> card_of("NVIDIA H100 80GB HBM3", 132) is CARDS["H100"], card_of("NVIDIA H100 PCIe", 114)
        (True, None)
    """
    fits = (card for card in CARDS.values() if card.name in name and card.multiprocessors == multiprocessors)
    return next(fits, None)
