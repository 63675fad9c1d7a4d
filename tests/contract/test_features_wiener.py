"""The table of Pyro's features under wiener: right for quadratic log densities, and others are refused."""

from __future__ import annotations

import pytest
from check_feature import FEATURES, right_or_refused, run

from astrozoo.errors import InputError

WIENER = ("wiener",)
QUADRATIC = {
    "real", "masked prior", "log-normal", "logit-normal", "ordered", "joint normal", "low-rank normal",
    "to_event", "latent point",
    "event of no elements", "single precision", "transformed likelihood", "obs_mask", "obs partly None",
    "data that depend on data", "factor", "scale", "mask", "condition", "reparam", "deterministic",
    "a name with a dot", "control flow on numbers", "sequential plate", "plates with dims",
    "numbers among tensors",
}  # fmt: skip
"""Features whose log density is quadratic in unconstrained space."""
EXACT = {"only discrete", "bounded integer", "one-hot"}
"""Features without continuous latents, which every method gives exact draws of."""


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_a_feature_is_right_or_refused(feature):
    if feature.reason("wiener") is not None or feature.name in QUADRATIC | EXACT:
        right_or_refused(feature, "wiener")
        return
    with pytest.raises(
        InputError, match=r"model for wiener: got (discrete sites|a log density that is not quadratic)"
    ):
        run(feature, "wiener")
