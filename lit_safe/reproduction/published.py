"""The figures that the two papers print, as far as they are known here. docs/papers.md has the same table."""

from typing import NamedTuple

C_DPO, SAFE_DPO = "Liu et al. 2024", "Kim et al. 2025"
TEXT, SECOND = "text", "second source"


class Published(NamedTuple):
    """One printed figure.

    Args:
        paper: The paper.
        place: Where it stands.
        method: As the paper calls it.
        measure: What was measured, with its unit.
        value: The figure.
        spread: Behind ±, over responses; None if the paper prints none.
        sure: How it was seen: an image or the text of the paper, or an account by others.
    """

    paper: str
    place: str
    method: str
    measure: str
    value: float
    spread: float | None
    sure: str

    @property
    def figure(self) -> str:
        """The figure as it is printed."""
        return f"{self.value:g}" if self.spread is None else f"{self.value:g} ± {self.spread:g}"


def _table_1() -> tuple[Published, ...]:
    """Reward and cost of responses to 2,000 prompts of BeaverTails, ± their spread over responses."""
    rows = {
        "SFT": (1.78, 7.07, 10.63, 19.72),
        "DPO": (6.16, 6.15, 12.45, 18.63),
        "Beaver-v1": (0.39, 6.01, -11.64, 10.14),
        "C-DPO λ = 1": (2.90, 5.79, -9.47, 12.41),
        "C-DPO λ = 0.4": (4.26, 5.59, -0.58, 16.70),
    }
    return tuple(
        Published(C_DPO, "table 1", method, measure, value, spread, TEXT)
        for method, (reward, reward_spread, cost, cost_spread) in rows.items()
        for measure, value, spread in (("reward", reward, reward_spread), ("cost", cost, cost_spread))
    )


def _figure_2() -> tuple[Published, ...]:
    """Scored by models, on the test split of PKU-SafeRLHF-30K. Helpfulness is 0 for SFT and 10 for DPO-HELPFUL."""
    rows = {
        "SFT": (0.0, 45.49, -0.77),
        "DPO-HELPFUL": (10.0, 37.59, -2.23),
        "DPO-HARMLESS": (0.52, 75.69, 3.14),
        "DPO-SAFEBETTER": (9.08, 49.75, -0.20),
        "SafeRLHF": (4.23, 88.97, 3.63),
        "SACPO": (2.80, 89.60, 4.34),
        "SafeDPO": (4.61, 96.87, 5.97),
    }
    names = ("helpfulness, 0 to 10", "harmless responses, %", "harmlessness")
    return tuple(
        Published(SAFE_DPO, "figure 2a, table 17", method, measure, value, None, SECOND)
        for method, values in rows.items()
        for measure, value in zip(names, values, strict=True)
    )


def _rest() -> tuple[Published, ...]:
    refusals, harmless = "refused of XSTest's 250 safe prompts, %", "harmless on XSTest's 200 unsafe prompts, %"
    xstest = (
        ("SFT", refusals, 0.4, SECOND),
        ("DPO-HELPFUL", refusals, 0.0, TEXT),
        ("DPO-HELPFUL", harmless, 14.5, TEXT),
        ("SafeRLHF", refusals, 3.2, SECOND),
        ("SafeRLHF", harmless, 84.5, SECOND),
        ("SACPO", refusals, 2.4, SECOND),
        ("SACPO", harmless, 86.0, SECOND),
        ("SafeDPO", refusals, 12.4, TEXT),
        ("SafeDPO", harmless, 100.0, TEXT),
    )
    networks = (("SafeRLHF", 6.0), ("SafeDPO", 2.0))
    seconds = (("SafeRLHF", 35200.0), ("SafeDPO", 1388.0))
    return (
        *(Published(SAFE_DPO, "table 3", method, name, value, None, sure) for method, name, value, sure in xstest),
        *(Published(SAFE_DPO, "table 14", method, "networks", value, None, SECOND) for method, value in networks),
        *(
            Published(SAFE_DPO, "table 15", method, "seconds of training", value, None, SECOND)
            for method, value in seconds
        ),
    )


PUBLISHED: tuple[Published, ...] = (*_table_1(), *_figure_2(), *_rest())


def published_table() -> list[str]:
    """All of them as a table in Markdown."""
    head = "| paper | place | method | measure | figure | how sure |"
    rows = (
        f"| {one.paper} | {one.place} | {one.method} | {one.measure} | {one.figure} | {one.sure} |" for one in PUBLISHED
    )
    return [head, "|---" * 6 + "|", *rows]
