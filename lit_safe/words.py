"""Numbers as a person reads them on a screen."""

import math
from collections.abc import Sequence

MOST = 8  # decimals at most


def told_apart(values: Sequence[float], decimals: int = 2) -> list[str]:
    """Numbers with so many decimals that those which differ read differently; n/a for what is not finite."""
    known = {value for value in values if math.isfinite(value)}
    while decimals < MOST and len({f"{value:.{decimals}f}" for value in known}) < len(known):
        decimals += 1
    return [positive_zero(f"{value:.{decimals}f}") if math.isfinite(value) else "n/a" for value in values]


def positive_zero(text: str) -> str:
    """The same number, without the sign of a zero."""
    return text if float(text) else text.lstrip("-")


def interval(mean: float, low: float, high: float, decimals: int = 2) -> str:
    """``mean [low, high]``; the mean alone where it has no error."""
    if low == mean == high:
        return told_apart([mean], decimals)[0]
    middle, *ends = told_apart([mean, low, high], decimals)
    return f"{middle} [{', '.join(ends)}]"


def large(count: int) -> str:
    """A count of parameters: billions, millions, or as it is."""
    if count >= 1e9:
        return f"{count / 1e9:.2f} B"
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count:,}"


def gib(size: float) -> str:
    """An estimate of bytes, in GiB."""
    return f"about {size / 2**30:.2f} GiB" if size >= 0.005 * 2**30 else "less than 0.01 GiB"


def duration(seconds: float) -> str:
    """Hours and minutes, minutes and seconds, or seconds."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{seconds:.0f} s"


def rows(title: str, entries: Sequence[tuple[str, str]]) -> list[str]:
    """A title and a line for each entry that has a text, its name in a column of its own."""
    return [title, *(f"  {name:<11} {text}" for name, text in entries if text)]
