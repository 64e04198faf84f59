"""OR-Bench: harmless requests that look harmful, and harmful ones, in ten categories. Cui et al. 2024."""

from typing import Literal, get_args

from data.sources.suite import Suite, check_option

Part = Literal["or-bench-80k", "or-bench-hard-1k", "or-bench-toxic"]


class ORBench(Suite):
    """``bench-llm/or-bench`` on the hub, or one of its CSV files (columns prompt, category).

    Language models wrote and filtered the prompts. A few of the harmless ones are therefore harmful.

    Args:
        path: Hub id, or the file of ``part``.
        part: ``or-bench-hard-1k`` (1,319 harmless requests that several models refuse), ``or-bench-80k`` (harmless) or
            ``or-bench-toxic`` (655 harmful ones). It is the hub's configuration.
        split: Hub: the split to read.
        revision: Hub: branch, tag or commit.

    Raises:
        ValueError: If ``part`` is unknown.
    """

    licence = "CC-BY-4.0"

    def __init__(
        self,
        path: str = "bench-llm/or-bench",
        part: Part = "or-bench-hard-1k",
        split: str = "train",
        revision: str | None = None,
    ) -> None:
        check_option("part", part, get_args(Part))
        super().__init__(path, split, revision, part)
        self.part = part
        self.harmful = part == "or-bench-toxic"

    def options(self) -> dict[str, str]:
        return {"part": self.part}
