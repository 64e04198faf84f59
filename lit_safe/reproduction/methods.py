"""The methods of both papers: how they are called, and what each needs."""

from typing import NamedTuple


class Method(NamedTuple):
    """A method.

    Args:
        title: As the papers call it.
        networks: Networks that are held while it trains, and those that score its data once.
        labels: What people or models must have labelled.
        offset: SafeDPO's Δ, if the method has one.
    """

    title: str
    networks: str
    labels: str
    offset: float | None = None


ORDER, SAFER, FLAGS = "the more helpful response", "the less harmful response", "a safety flag of each response"
OFFSETS = (0, 2, 5, 10, 20)
"""Δ of the SafeDPO paper's figure of the offset."""

METHODS: dict[str, Method] = {
    "sft": Method("SFT", "1", "responses"),
    "dpo_helpful": Method("DPO-HELPFUL", "2", ORDER),
    "dpo_harmless": Method("DPO-HARMLESS", "2", SAFER),
    "dpo_safebetter": Method("DPO-SAFEBETTER", "2", f"{ORDER}, {FLAGS}"),
    "dpo_helpful_offset": Method("DPO-HELPFUL + Δ", "2", f"{ORDER}, {FLAGS}"),
    "dpo_harmless_offset": Method("DPO-HARMLESS + Δ", "2", f"{SAFER}, {FLAGS}"),
    "dpo_safebetter_offset": Method("DPO-SAFEBETTER + Δ", "2", f"{ORDER}, {FLAGS}"),
    **{f"safe_dpo_{d}": Method(f"SafeDPO, Δ = {d}", "2", f"{ORDER}, {FLAGS}", float(d)) for d in OFFSETS},
    "safe_dpo": Method("SafeDPO", "2", f"{ORDER}, {FLAGS}"),
    "c_dpo_1": Method("C-DPO λ = 1", "2, and 2 that score the pairs once", "a reward and a cost of each response"),
    "c_dpo_0_4": Method("C-DPO λ = 0.4", "2, and 2 that score the pairs once", "a reward and a cost of each response"),
    "c_dpo": Method("C-DPO, dual steps", "2, and those that score pairs and samples", "rewards, costs, a limit"),
    "sacpo": Method("SACPO", "2, in each of two stages", f"{ORDER}, {SAFER}"),
    "p_sacpo": Method("P-SACPO", "2, in each of two stages", f"{ORDER}, {SAFER}"),
    "mocan": Method("MoCAN", "2, and 2 that score pairs and samples once", "a reward and a cost of each response"),
    "pecan": Method("PeCAN", "2, three times", f"{ORDER}, {SAFER}"),
}
"""The methods by the name of their stage or run folder. The main SafeDPO of a scale is ``safe_dpo``."""


def title(name: str) -> str:
    """The name of a method for people; a run of another name keeps it."""
    return METHODS[name].title if name in METHODS else name
