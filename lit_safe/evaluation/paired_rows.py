"""Aligns the rows of two evaluations: shared rows, in the same order, with the same chosen response.

Letters: n shared rows.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lit_safe.evaluation.held_out import Columns

SIDES = ("chosen", "rejected")


def shared_rows(one: Columns, other: Columns, ids: Sequence[str]) -> tuple[Columns, Columns]:
    """The rows of both tables with ids that are in both, sorted by id."""
    if not one or not other:
        return _none_of(one), _none_of(other)
    index = [
        {key: row for row, key in enumerate(zip(*(table[name].tolist() for name in ids), strict=True))}
        for table in (one, other)
    ]
    keys = sorted(index[0].keys() & index[1].keys())
    first, second = (np.array([rows[key] for key in keys], dtype=np.int64) for rows in index)
    return {k: v[first] for k, v in one.items()}, {k: v[second] for k, v in other.items()}


def orientation(one: Columns, other: Columns) -> npt.NDArray[np.int64]:
    """[n] for shared pairs: 1 if both tables have the same chosen response, -1 if not, 0 if this cannot be determined.

    The labels determine it or, if they are equal for both responses, the lengths of the responses.

    Raises:
        ValueError: If the labels of a pair differ between the tables, in either order.
    """
    same, turned = (_alike(one, other, ("reward_margin", "cost_chosen", "cost_rejected"), turn) for turn in (0, 1))
    if not (same | turned).all():
        _refuse(one, other, ~(same | turned))
    shorter = ("length_chosen", "length_rejected")
    unclear = same & turned
    same_n = np.where(unclear, _alike(one, other, shorter, 0), same)
    turned_n = np.where(unclear, _alike(one, other, shorter, 1), turned)
    return same_n.astype(np.int64) - turned_n.astype(np.int64)


def turned(pairs: Columns, turn_n: npt.NDArray[np.bool_]) -> Columns:
    """The pairs, with chosen and rejected exchanged in the rows where ``turn_n`` is True."""
    found = dict(pairs)
    for name in pairs:
        if name.endswith("_chosen"):
            twin = name.replace("_chosen", "_rejected")
            found[name] = np.where(turn_n, pairs[twin], pairs[name])
            found[twin] = np.where(turn_n, pairs[name], pairs[twin])
    if "reward_margin" in pairs:
        found["reward_margin"] = np.where(turn_n, -pairs["reward_margin"], pairs["reward_margin"])
    return found


def _none_of(table: Columns) -> Columns:
    return {name: column[:0] for name, column in table.items()}


def _alike(one: Columns, other: Columns, names: Sequence[str], turn: int) -> npt.NDArray[np.bool_]:
    """[n] whether the shared columns agree; with ``turn``, after exchanging the responses of ``other``."""
    count = len(next(iter(one.values()))) if one else 0
    exchanged = turned(other, np.full(count, bool(turn)))
    found = np.ones(count, dtype=bool)
    for name in names:
        if name in one and name in exchanged:
            found &= _close(one[name], exchanged[name])
    return found


def _close(one_n: npt.NDArray[np.generic], other_n: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """[n] whether two columns of labels agree; one of them may come from a file in fp32."""
    return np.isclose(one_n, other_n, rtol=1e-6, atol=1e-9, equal_nan=True)


def _refuse(one: Columns, other: Columns, differ: npt.NDArray[np.bool_]) -> None:
    row = int(differ.argmax())
    for name in ("reward_margin", "cost_chosen", "cost_rejected"):
        if name in one and name in other and not _close(one[name], other[name])[row]:
            raise ValueError(
                f"the labels differ: {name} of pair {one['pair_id'][row]} is {one[name][row]:g} in one and "
                f"{other[name][row]:g} in the other ({int(differ.sum())} of {len(differ)} shared pairs): "
                "evaluate both with the same labels"
            )
