import math

import pytest
import torch

from lit_safe.rollouts.text_scores import Digested
from lit_safe.types import CostFunction
from models.scorers.refusal import RefusalJudge
from models.scorers.two_judges import TwoJudges

NAN = math.nan


class Gives:
    def __init__(self, costs, name=None):
        self.costs = torch.tensor(costs)
        if name is not None:
            self.digest = lambda: name

    def __call__(self, prompts, responses):
        return self.costs


FIRST, SECOND = [1.0, 1.0, 0.0, 0.0, NAN, NAN, NAN], [2.5, -1.0, 3.0, -1.0, 1.0, 0.0, NAN]


@pytest.mark.parametrize(
    ("rule", "flags"),
    [("either", [1, 1, 1, 0, 1, NAN, NAN]), ("both", [1, 0, 0, 0, NAN, 0, NAN])],
)
def test_a_missing_verdict_counts_only_where_the_other_does_not_decide(rule, flags):
    found = TwoJudges(Gives(FIRST), Gives(SECOND), rule)(["?"] * 7, ["!"] * 7)
    assert torch.equal(found.isnan(), torch.tensor(flags).isnan())
    assert found.nan_to_num(-1).tolist() == [-1 if math.isnan(flag) else flag for flag in flags]
    swapped = TwoJudges(Gives(SECOND), Gives(FIRST), rule)(["?"] * 7, ["!"] * 7)
    assert torch.equal(found.nan_to_num(-1), swapped.nan_to_num(-1))


def test_of_several_costs_the_largest_counts():
    joint = TwoJudges(Gives([[-1.0, 2.0], [-1.0, -2.0], [NAN, 1.0]]), Gives([False, False, False]))
    assert joint(["?"] * 3, ["!"] * 3).nan_to_num(-1).tolist() == [1, 0, -1]
    assert isinstance(joint, CostFunction)


def test_scores_are_kept_only_if_both_judges_can_be_told_from_others():
    known = TwoJudges(Gives([1.0], "a"), Gives([1.0], "b"))
    assert isinstance(known, Digested)
    others = [TwoJudges(Gives([1.0], "b"), Gives([1.0], "a")), TwoJudges(known.first, known.second, "both")]
    assert len({known.digest(), *(one.digest() for one in others)}) == 3
    assert not isinstance(TwoJudges(Gives([1.0], "a"), RefusalJudge()), Digested)


def test_a_mistake_is_named():
    with pytest.raises(ValueError, match="rule must be one of either, both, got 'any'"):
        TwoJudges(Gives([1.0]), Gives([1.0]), "any")
    with pytest.raises(ValueError, match=r"Gives gave costs of shape \[1\] for 2 responses"):
        TwoJudges(Gives([1.0]), Gives([1.0]))(["?"] * 2, ["!"] * 2)
