import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_safe.statistics.ranking import clustered_auc


def test_a_hand_worked_auc():
    # positives 3, 1; negatives 2, 1: pairs 3>2, 3>1, 1<2, 1=1 give 1 + 1 + 0 + 1/2 of 4
    assert clustered_auc([3, 1, 2, 1], [True, True, False, False], [0, 1, 2, 3]).mean == 2.5 / 4


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_the_auc_counts_pairs_and_mirrors(samples):
    score, positive = (np.array(column) for column in zip(*samples, strict=True))
    estimate = clustered_auc(score, positive, np.arange(len(score)))
    above = [(s > t) + (s == t) / 2 for s, t in itertools.product(score[positive], score[~positive])]
    if not above:
        assert math.isnan(estimate.mean)
        return
    assert estimate.mean == pytest.approx(np.mean(above))
    mirrored = clustered_auc(-score, positive, np.arange(len(score)))
    assert mirrored.mean == pytest.approx(1 - estimate.mean)
    assert mirrored.stderr == pytest.approx(estimate.stderr)


def test_repeating_every_sample_in_its_cluster_changes_neither_auc_nor_error():
    rng = np.random.default_rng(0)
    positive = rng.random(60) < 0.5
    score, cluster = rng.normal(size=60) + positive, np.arange(60) // 3
    once = clustered_auc(score, positive, cluster)
    thrice = clustered_auc(np.repeat(score, 3), np.repeat(positive, 3), np.repeat(cluster, 3))
    assert thrice.mean == pytest.approx(once.mean)
    assert thrice.stderr == pytest.approx(once.stderr)


def test_the_error_is_the_spread_over_worlds_of_clusters():
    rng = np.random.default_rng(1)

    def world():
        prompt = np.repeat(rng.normal(size=80), 4)  # what a prompt's four responses share
        positive = rng.random(320) < 0.5
        return clustered_auc(prompt + rng.normal(size=320) + positive, positive, np.repeat(np.arange(80), 4))

    worlds = [world() for _ in range(300)]
    spread = np.std([w.mean for w in worlds])
    assert np.mean([w.stderr for w in worlds]) == pytest.approx(spread, rel=0.1)


def test_one_cluster_has_no_error_and_a_nan_score_no_rank():
    assert math.isnan(clustered_auc([1, 2], [True, False], [7, 7]).stderr)
    with pytest.raises(ValueError, match="NaN"):
        clustered_auc([1, math.nan], [True, False], [7, 8])
    with pytest.raises(ValueError, match="shapes"):
        clustered_auc([1, 2], [True], [7, 8])
