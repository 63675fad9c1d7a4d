"""The table of Pyro's features is whole. It is run by several files, so that several processes share it."""

from __future__ import annotations

import test_features_annealed
import test_features_hmc
import test_features_nutpie
import test_features_nuts
import test_features_vi
import test_features_wiener
import torch
from check_feature import FEATURES, OPTIONS

from astrozoo import registry


def test_the_table_is_large_enough():
    assert len({feature.name for feature in FEATURES}) == len(FEATURES) >= 50
    assert torch.get_default_dtype() is torch.float32  # no model has left its dtype behind


def test_every_method_runs_the_table():
    run = (
        *test_features_vi.VI,
        *test_features_hmc.HMC,
        *test_features_annealed.ANNEALED,
        *test_features_nuts.NUTS,
        *test_features_nutpie.NUTPIE,
        *test_features_wiener.WIENER,
    )
    assert sorted(run) == sorted(OPTIONS) == sorted(registry.METHODS)
