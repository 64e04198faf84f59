"""What ``--seed_everything`` means: a number, ``true`` for one that is drawn, ``false`` for none."""

import os
import secrets

DRAWN = "LIT_SAFE_DRAWN_SEED"
"""Environment variable by which the further ranks that Lightning starts learn the drawn number."""


class RunSeed:
    """The seed of all random draws of a run: order, labels, dropout, dual step, anchors, evaluations."""

    def __init__(self) -> None:
        self._drawn: int | None = None

    def __call__(self, typed: bool | int) -> int:
        """The number that ``typed`` stands for; the same one at each call.

        ``false`` leaves the libraries' own random states alone. Our draws are functions of a seed, which is 0 then.

        Raises:
            ValueError: For ``true`` if other programs start the ranks, as each rank would draw a number of its own.
        """
        if typed is False:
            return 0
        if typed is not True:
            return typed
        if self._drawn is None:
            self._drawn = _of_parent()
        if self._drawn is None:
            if max(int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "SLURM_NTASKS")) > 1:
                raise ValueError("--seed_everything true: every rank would draw a number of its own; type a number")
            self._drawn = secrets.randbelow(2**31)
            os.environ[DRAWN] = f"{os.getpid()} {self._drawn}"
        return self._drawn


def _of_parent() -> int | None:
    process, _, seed = os.environ.get(DRAWN, "").partition(" ")
    return int(seed) if process and int(process) != os.getpid() else None
