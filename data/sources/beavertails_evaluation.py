"""BeaverTails-Evaluation: 700 harmful questions, 50 in each of 14 categories. Ji et al. 2023, arXiv:2307.04657."""

from data.sources.suite import Suite


class BeaverTailsEvaluation(Suite):
    """``PKU-Alignment/BeaverTails-Evaluation`` on the hub, or a file of it (columns prompt, category).

    The other arguments are those of ``Suite``.
    """

    licence = "CC-BY-NC-4.0"

    def __init__(
        self,
        path: str = "PKU-Alignment/BeaverTails-Evaluation",
        split: str = "test",
        revision: str | None = None,
        config: str | None = None,
    ) -> None:
        super().__init__(path, split, revision, config)
