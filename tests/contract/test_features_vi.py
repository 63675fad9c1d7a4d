"""The table of Pyro's features under optimisers and normals at a mode: see :mod:`check_feature`."""

from __future__ import annotations

from check_feature import right_or_refused, table

VI = ("svi", "trust_region", "laplace", "el2o")


@table(*VI)
def test_a_feature_is_right_or_refused(feature, method):
    right_or_refused(feature, method)
