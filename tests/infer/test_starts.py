"""Starts that do not fit are refused with a clear message, and before any work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from backends import el2o, hmc, laplace, svi, trust_region
from problems import gaussian, gaussians
from pyro.infer.autoguide import AutoNormal

from astrozoo.density import log_density
from astrozoo.errors import InputError
from astrozoo.guides.auto import mean_field
from astrozoo.infer.starts import start_points
from astrozoo.types import Result, Status

QUIET = {"compile": "never", "progress": False}
BAD = {
    "a mapping": ({"z": np.zeros(3)}, r"a mapping of 'z', expected .*Problem\(start=...\)"),
    "an empty mapping": ({}, "a mapping of nothing"),
    "a NaN": ([0.0, np.nan, 0.0], "not finite"),
    "an infinity": (torch.tensor([0.0, torch.inf, 0.0]), "not finite"),
    "a number": (1.5, r"shape \(\), expected \[3\]"),
    "too short": (np.zeros(2), r"shape \(2,\), expected \[3\]"),
    "too long": (np.zeros((1, 4)), r"shape \(1, 4\), expected \[3\]"),
    "no rows": (np.zeros((0, 3)), r"shape \(0, 3\)"),
    "too many rows": (np.zeros((1000, 3)), r"shape \(1000, 3\)"),
    "names": (["a", "b", "c"], "a list"),
    "ragged": ([[0.0], [0.0, 1.0]], "a list"),
    "an object": (object(), "a object"),
    "complex": (np.zeros(3, complex), "torch.complex128"),
    "truth values": ([True, False, True], "torch.bool"),
    "another word": ("serach", "'serach', expected 'search'"),
    "a result without a location": (
        Result({}, Status.CONVERGED, 0, "m", "hmc"),
        "a Result of hmc without a location",
    ),
}


def _methods():
    guided = (el2o, svi, trust_region)
    return [hmc, laplace, *(lambda p, m=method, **o: m(p, "mean_field", **o) for method in guided)]


@pytest.mark.parametrize("kind", BAD)
def test_starts_that_do_not_fit_are_refused(kind):
    problem, _, _ = gaussian(3)
    start, message = BAD[kind]
    for method in _methods():
        with pytest.raises(InputError, match=f"start: got {message}|start: .*{message}"):
            method(problem, start=start, **QUIET)


def test_a_start_of_another_problem_is_refused_by_its_shape():
    other = laplace(gaussian(2)[0], **QUIET)
    batch = laplace(gaussians(2, 3)[0], **QUIET)
    for start in (other, batch):
        with pytest.raises(InputError, match=r"start: got shape .*expected \[3\]"):
            svi(gaussian(3)[0], mean_field, start=start, **QUIET)


def test_latents_for_a_guide_that_cannot_take_them_are_refused():
    problem, _, _ = gaussian(3)

    def guide(problem):
        return AutoNormal(problem.model)

    with pytest.raises(InputError, match="latents for the guide AutoNormal"):
        svi(problem, guide, start=np.zeros(3), **QUIET)


def test_a_list_keeps_double_precision():
    problem, _, _ = gaussian(2)
    target = log_density(problem, compile="never")
    points = start_points([0.1, -0.2], target, 1, 2)
    np.testing.assert_array_equal(points.numpy(), [[0.1, -0.2]])
