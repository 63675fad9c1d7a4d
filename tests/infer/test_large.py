"""Problems of 1e4 latents and more: nothing allocates a matrix over them, and answers are exact."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import astrozoo
from astrozoo.errors import InputError
from astrozoo.types import DENSE_COVARIANCE, Problem, load

F64 = torch.float64
SIDE = 60
"""Pixels of an axis of a square test image: 3,600 latents, of which a matrix takes 104 MB."""
QUIET = {"progress": False, "compile": "never"}


class NoMatrix(TorchDispatchMode):
    """Fails where an operation returns a tensor as large as a matrix over the latents."""

    def __init__(self, dim):
        super().__init__()
        self.most = dim**2

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor):
                assert x.untyped_storage().nbytes() < 8 * self.most, f"{func} returns {tuple(x.shape)}"
        return out


def pixels_model(data, noise):
    x = pyro.sample("x", dist.Normal(torch.zeros_like(data), 1.0).to_event(2))
    pyro.sample("y", dist.Normal(x, noise).to_event(2), obs=data)


def pixels(side=SIDE, seed=0):
    """Independent pixels under noise that varies: the posterior is a mean field."""
    generator = torch.Generator().manual_seed(seed)
    noise = 0.3 + torch.rand(side, side, generator=generator, dtype=F64)
    data = torch.randn(side, side, generator=generator, dtype=F64) * (1 + noise**2).sqrt()
    precision = 1 + noise**-2
    mean = data / noise**2 / precision
    return Problem(pixels_model, (data, noise), name="pixels"), mean.numpy(), precision.numpy() ** -0.5


def z_scores(result, mean, sd):
    """Of the draws' means and SDs, in standard errors of independent draws."""
    x = result.draws["x"].reshape(-1, *mean.shape)
    n = len(x)
    return (x.mean(0) - mean) / sd * math.sqrt(n), (x.std(0, ddof=1) / sd - 1) * math.sqrt(2 * n)


def largest(count):
    """What the largest of so many standard normal z-scores stays below, but for one case in 10,000."""
    return -torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(5e-5 / count, dtype=F64)).item()


def test_a_mean_field_keeps_variances_and_no_matrix(tmp_path):
    problem = pixels()[0]
    with NoMatrix(SIDE**2):
        result = astrozoo.infer(problem, "svi", draws=100, budget=100, **QUIET)
    assert result.covariance is None
    assert result.variance.shape == (1, SIDE**2)
    assert result.guide_parameters.shape == (1, 2 * SIDE**2)
    back = load(result.save(tmp_path / "r.nc"))
    np.testing.assert_array_equal(back.variance, result.variance)
    np.testing.assert_array_equal(back.guide_parameters, result.guide_parameters)


@pytest.mark.parametrize("method", ["svi", "trust_region"])
def test_a_mean_field_of_many_pixels_is_exact(method):
    problem, mean, sd = pixels()
    with NoMatrix(SIDE**2):
        result = astrozoo.infer(problem, method, draws=400, **QUIET)
    assert result.status.ok
    np.testing.assert_allclose(result.location[0], mean.ravel(), atol=0.02)
    np.testing.assert_allclose(result.variance[0] ** 0.5, sd.ravel(), rtol=0.02)
    for z in z_scores(result, mean, sd):
        assert np.abs(z).max() < largest(mean.size) + 1


@pytest.mark.parametrize(
    ("method", "options", "reason"),
    [
        ("el2o", {}, f"at most {DENSE_COVARIANCE}"),
        ("trust_region", {"covariance": "linear_response", "mode": "fixed"}, "covariance='guide'"),
        ("svi", {"guide": "full_rank"}, "mean_field or low_rank"),
        ("svi", {"guide": "iaf"}, "mean_field or low_rank"),
    ],
)
def test_what_needs_a_matrix_is_refused_before_work(method, options, reason):
    problem, _, _ = pixels()
    with NoMatrix(SIDE**2), pytest.raises(InputError, match=reason):
        astrozoo.infer(problem, method, **options, **QUIET)
