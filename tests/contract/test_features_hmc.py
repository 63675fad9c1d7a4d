"""The table of Pyro's features under hmc, mclmc and auto: see :mod:`check_feature`."""

from __future__ import annotations

from check_feature import right_or_refused, table

HMC = ("hmc", "mclmc", "auto")


@table(*HMC)
def test_a_feature_is_right_or_refused(feature, method):
    right_or_refused(feature, method)
