"""The measured error of a judge stands beside the shares that it produces."""

from lit_safe.constraint.certificate.scorers import scorer_facts
from lit_safe.scorer_card import Quality, ScorerCard
from models.scorers.compliance import ComplianceJudge
from models.scorers.refusal import RefusalJudge


def test_the_known_error_stands_beside_what_a_judge_says() -> None:
    (line,) = scorer_facts(RefusalJudge()).quality
    assert line == (
        "refusal: agrees with people on 0.917 [0.891, 0.939] of 723 held-out responses to 109 prompts "
        "(kappa 0.83, finds 0.88 of 302 positives, false alarms 0.06 of 421 negatives)"
    )
    (told,) = scorer_facts(ComplianceJudge()).quality
    assert told.endswith("(kappa 0.83, finds 0.94 of 421 positives, false alarms 0.12 of 302 negatives)")
    assert scorer_facts(RefusalJudge(opening=100)).quality == (), "nothing was measured for another opening"


def test_ranking_and_agreement_are_two_sentences() -> None:
    class Carded:
        def card(self) -> ScorerCard:
            return ScorerCard("c", {}, (), {"unsafe": Quality(0.8, responses=9, prompts=3, accuracy=0.7)})

    assert scorer_facts(Carded()).quality == (
        "unsafe: AUC 0.800 against people's labels of 9 held-out responses to 3 prompts",
        "unsafe: agrees with people on 0.700 of 9 held-out responses to 3 prompts",
    )
