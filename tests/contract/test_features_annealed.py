"""The table of Pyro's features under annealed: see :mod:`check_feature`."""

from __future__ import annotations

import pytest
from check_feature import right_or_refused, table

ANNEALED = ("annealed",)


@pytest.mark.slow  # its last stage is hmc, and the levels above 0 only move the starts
@table(*ANNEALED)
def test_a_feature_is_right_or_refused(feature, method):
    right_or_refused(feature, method)
