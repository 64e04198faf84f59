"""The seed from ``--seed_everything``: a number, ``true`` for a random one, ``false`` for none."""

import os
import secrets
from collections.abc import Sequence

from lit_safe.errors.message import SettingError

DRAWN = "LIT_SAFE_DRAWN_SEED"
"""Environment variable that passes the random seed to the ranks that Lightning starts."""


class RunSeed:
    """The seed of all random draws of a run: order, labels, dropout, dual step, anchors, evaluations."""

    def __init__(self) -> None:
        self._drawn: int | None = None

    def __call__(self, typed: bool | int) -> int:
        """The seed for the value ``typed``. Every call returns the same seed.

        ``false`` does not seed the libraries' random states. The draws of this project always need a seed, which is 0
        then.

        Raises:
            ValueError: For ``true`` if another program starts the ranks, because each rank would draw its own seed.
        """
        if typed is False:
            return 0
        if typed is not True:
            return typed
        if self._drawn is None:
            self._drawn = _of_parent()
        if self._drawn is None:
            if max(int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "SLURM_NTASKS")) > 1:
                raise ValueError("--seed_everything true: every rank would draw its own number; type a number")
            self._drawn = secrets.randbelow(2**31)
            os.environ[DRAWN] = f"{os.getpid()} {self._drawn}"
        return self._drawn


def _of_parent() -> int | None:
    """The number of the first rank, if Lightning started this process as another rank.

    Other processes that inherit the variable, such as the runs that a notebook starts after its own, draw anew.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        return None
    process, _, seed = os.environ.get(DRAWN, "").partition(" ")
    return int(seed) if process and int(process) != os.getpid() else None


def refuse_another_seed(words: Sequence[str]) -> None:
    """Refuse an option that would be overwritten: ``seed_everything`` is the seed of the data too.

    Args:
        words: What was typed after the program's name.

    Raises:
        SettingError: If a word is ``--data.seed`` or ``--data.init_args.seed``.
    """
    for word in words:
        if word.partition("=")[0] in ("--data.seed", "--data.init_args.seed"):
            raise SettingError(f"{word.partition('=')[0]} has no effect: the seed of a run is --seed_everything")
