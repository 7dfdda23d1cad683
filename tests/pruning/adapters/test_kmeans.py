"""k-means: clusters that the eye would find, and none that is empty."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.adapters.kmeans import cluster, fewest, means

GROUPS = torch.tensor([[0.0, 0], [0, 1], [10, 0], [10, 1], [0, 10], [0, 11]])


def test_three_clouds_are_three_clusters():
    labels = cluster(GROUPS, 3, seed=0).labels_P.tolist()
    assert labels[0] == labels[1]
    assert labels[2] == labels[3]
    assert labels[4] == labels[5]
    assert len(set(labels)) == 3


def test_the_inertia_is_the_sum_of_squared_distances():
    assert cluster(GROUPS, 3, seed=0).inertia == 6 * 0.5**2


def test_a_centroid_is_the_mean_of_its_cluster():
    assert means(GROUPS[:4], torch.tensor([0, 0, 1, 1])).tolist() == [[0, 0.5], [10, 0.5]]


@settings(max_examples=40)
@given(points=st.integers(1, 12), k=st.integers(1, 15), distinct=st.integers(1, 3))
def test_no_cluster_is_ever_empty(points: int, k: int, distinct: int):
    values = (torch.arange(points) % distinct).float()[:, None]
    labels = cluster(values, k, seed=1).labels_P
    assert set(labels.tolist()) == set(range(min(k, points)))


def test_the_fewest_clusters_within_a_share_of_the_inertia_are_found():
    assert int(fewest(GROUPS, 0.01, seed=0).labels_P.max()) == 2  # 1.5 of 251.3 is left by three
    assert int(fewest(GROUPS, 0.999, seed=0).labels_P.max()) < 2


def test_the_same_seed_gives_the_same_clusters():
    points = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    first, again = cluster(points, 5, 3), cluster(points, 5, 3)
    assert torch.equal(first.labels_P, again.labels_P)
