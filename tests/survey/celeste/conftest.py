"""A fitted field made by hand: draws around the truth of a simulated one, so that no fit is needed."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import Table
from scipy.ndimage import gaussian_filter

from astrozoo.data.images import Field
from astrozoo.data.simulate import simulate_field
from astrozoo.models.celeste import load_prior
from astrozoo.survey.celeste.fit import FieldFit

_BANDS = "ugriz"
_DRAWS = 400


@pytest.fixture(scope="session")
def fake_fit() -> tuple[FieldFit, Table]:
    """A fit and the truth. Draws are about the truth: 1 % in flux, 10 and 20 mas in position, .1 in shapes.

    Source 0 is a star in exactly three quarters of its draws; every other is of its true type in all.
    Source 1 is a galaxy at an angle of 179 degrees. Source 2 is at an edge; 3 is badly fitted.
    """
    images, truth = simulate_field(n_sources=8, seed=3, shape=(96, 96), r_range=(16, 20), min_separation=12)
    truth["is_star"][0], truth["is_star"][1] = True, False
    for name, value in (("dev_fraction", 0.3), ("radius", 1.5), ("axis_ratio", 0.5), ("angle", 179.0)):
        truth[name][1] = value
        truth[name][0] = np.nan
    return _fit_around(images, truth, np.random.default_rng(3)), truth


def _fit_around(images: Field, truth: Table, rng: np.random.Generator) -> FieldFit:
    n = len(truth)
    flux = np.stack([np.asarray(truth[f"flux_{b}"], float) for b in _BANDS], -1)
    star = np.repeat(np.asarray(truth["is_star"], float)[:, None], _DRAWS, 1)
    star[0] = np.arange(_DRAWS) % 4 > 0

    def about(centre: np.ndarray, sd: float) -> np.ndarray:
        return centre[:, None] + sd * rng.standard_normal((n, _DRAWS, *centre.shape[1:]))

    def shape(name: str, missing: float) -> np.ndarray:
        return np.nan_to_num(np.asarray(truth[name], float), nan=missing)

    eta = -np.log(shape("axis_ratio", 0.7))[:, None]
    twice = 2 * np.deg2rad(shape("angle", 40.0))[:, None]
    fraction = np.clip(shape("dev_fraction", 0.5), 1e-3, 1 - 1e-3)
    shapes = {
        "log_radius": about(np.log(shape("radius", 1.0)), 0.1),
        "ellipticity": about(np.concatenate((eta * np.cos(twice), eta * np.sin(twice)), -1), 0.1),
        "dev_logit": about(np.log(fraction / (1 - fraction)), 0.1),
    }
    for values in shapes.values():
        values[star > 0.5] = np.nan
    offset = rng.standard_normal((n, _DRAWS, 2)) * (0.010, 0.020)
    draws = {
        "is_star": star,
        "offset": offset,
        "log_flux": about(np.log(flux[:, 2]), 0.01),
        "colour": about(np.diff(np.log(flux), axis=-1), 0.01),
        **shapes,
    }
    model = [image.sky + gaussian_filter(image.counts - image.sky, 1.0) for image in images]
    found = Table({name: np.asarray(truth[name], float) for name in ("ra", "dec", "x", "y")})
    found["a"] = 2.0
    for name in ("saturated", "edge", "blended"):
        found[name] = np.zeros(n, bool)
    found["edge"][2] = True
    k_hat = np.full(n, 0.2)
    k_hat[3] = 0.9
    converged = np.ones(n, bool)
    converged[3] = False
    return FieldFit(
        field=images,
        detections=found,
        prior=load_prior(),
        draws=draws,
        model=model,
        p_star=star.mean(1),
        k_hat=k_hat,
        r_hat=np.full(n, np.nan),
        ess=np.full(n, np.nan),
        converged=converged,
        chi2=np.ones((n, len(images.bands))),
        n_pixels=np.full(n, 289),
        half=np.full(n, 8),
        flags={
            name: np.zeros(n, bool)
            for name in ("outgrows_patch", "maybe_double", "poor_profile", "unmodelled_light")
        },
        left_over=found[:0],
        stats={"seconds": {"detect": 0.1, "fit": 1.0, "draw": 0.2}, "sweeps": 3},
    )
