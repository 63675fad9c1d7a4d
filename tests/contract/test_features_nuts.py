"""The table of Pyro's features under nuts: see :mod:`check_feature`."""

from __future__ import annotations

from check_feature import right_or_refused, table

NUTS = ("nuts",)


@table(*NUTS)
def test_a_feature_is_right_or_refused(feature, method):
    right_or_refused(feature, method)
