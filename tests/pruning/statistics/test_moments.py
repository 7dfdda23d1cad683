"""Moments of two parts are those of the whole."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning.statistics.moments import Moments


@given(
    samples=st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=40), cut=st.integers(1)
)
def test_merged_moments_do_not_depend_on_how_the_samples_were_split(samples: list[float], cut: int):
    column = torch.tensor(samples).unsqueeze(1)
    cut = 1 + cut % (len(samples) - 1)
    merged = Moments.of(column[:cut]).merge(Moments.of(column[cut:]))
    assert merged.count == len(samples)
    torch.testing.assert_close(merged.mean_C, column.double().mean(0))
    torch.testing.assert_close(merged.variance_C, column.double().var(0), rtol=1e-9, atol=1e-6)
