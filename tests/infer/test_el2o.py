from __future__ import annotations

import numpy as np
import pytest
import torch
from backends import el2o
from problems import banana, gaussian, gaussians, poisson_gamma

import astrozoo
from astrozoo.errors import InputError
from astrozoo.guides.auto import full_rank, low_rank, mean_field
from astrozoo.infer.el2o import _Shape, match
from astrozoo.types import Status

F64 = torch.float64
QUIET = {"compile": "never", "progress": False}


def test_full_rank_is_exact_on_a_gaussian_at_once():
    problem, mean, covariance = gaussian(4)
    result = el2o(problem, full_rank, **QUIET)
    assert result.status is Status.CONVERGED
    np.testing.assert_allclose(result.location[0], mean, atol=1e-8)
    np.testing.assert_allclose(result.covariance[0], covariance, atol=1e-8)
    assert result.stats["el2o"][0] < 1e-16
    assert abs(result.stats["log_evidence"][0]) < 1e-8  # the density is normalised
    assert np.abs(result.sample_stats["log_ratio"]).max() < 1e-8


def test_mean_field_has_the_inverse_of_the_precision_s_diagonal():
    problem, mean, covariance = gaussian(4)
    result = el2o(problem, mean_field, **QUIET)
    assert result.status is Status.CONVERGED
    np.testing.assert_allclose(result.location[0], mean, atol=1e-8)
    expected = 1 / torch.linalg.inv(covariance).diagonal()
    np.testing.assert_allclose(np.diag(result.covariance[0]), expected, rtol=1e-6)
    assert result.stats["el2o"][0] > 0.1


def test_the_least_squares_are_those_of_numpy():
    generator = torch.Generator().manual_seed(0)
    d, m = 3, 5
    y, value, gradient = (
        torch.randn(*s, generator=generator, dtype=F64) for s in ((m, d), (1, m), (1, m, d))
    )
    hessian = torch.randn(1, m, d, d, generator=generator, dtype=F64)
    hessian = hessian + hessian.mT
    c, b, A = match(_Shape(y, value, gradient, hessian), diagonal=False)

    rows, right = [], []
    basis = torch.eye(1 + d + d * d, dtype=F64)
    for i in range(m):
        columns = []
        for unit in basis:
            c1, b1, A1 = unit[0], unit[1 : 1 + d], unit[1 + d :].reshape(d, d)
            A1 = (A1 + A1.T) / 2
            parts = ((c1 + b1 @ y[i] - y[i] @ A1 @ y[i] / 2)[None], b1 - A1 @ y[i], -A1.flatten())
            columns.append(torch.cat(parts))
        rows.append(torch.stack(columns, 1))
        right.append(torch.cat((value[0, i : i + 1], gradient[0, i], hessian[0, i].flatten())))
    found, *_ = np.linalg.lstsq(torch.cat(rows).numpy(), torch.cat(right).numpy(), rcond=None)
    np.testing.assert_allclose(c[0], found[0], atol=1e-8)
    np.testing.assert_allclose(b[0], found[1 : 1 + d], atol=1e-8)
    expected = found[1 + d :].reshape(d, d)
    np.testing.assert_allclose(A[0], (expected + expected.T) / 2, atol=1e-8)


def test_the_evidence_of_a_near_gaussian_posterior():
    """Gamma(3, 2) prior, Poisson counts: the evidence is a ratio of gamma functions."""
    problem, posterior = poisson_gamma()
    counts, a, b = problem.args[0], posterior.concentration, posterior.rate
    exact = a.lgamma() - a * b.log() - torch.tensor(3.0, dtype=F64).lgamma() + 3 * np.log(2)
    exact = float(exact - (counts + 1).lgamma().sum())
    result = el2o(problem, full_rank, **QUIET)
    assert result.status is Status.CONVERGED
    # ELBO <= ln Z; and while small, the EL2O value is twice the gap.
    assert result.stats["el2o"][0] < 0.02
    assert result.stats["log_evidence"][0] == pytest.approx(exact, abs=0.02)


def test_batched_rows_equal_the_same_rows_alone_and_a_run_resumes(tmp_path):
    problem, _, _ = gaussians(3)
    together = el2o(problem, mean_field, draws=10, **QUIET)
    alone = type(problem)(problem.model, tuple(a[1:2] for a in problem.args), name="gaussians", batch=1)
    row = el2o(alone, mean_field, draws=10, **QUIET)
    np.testing.assert_allclose(row.location[0], together.location[1], rtol=1e-8)
    assert together.sample_stats["log_ratio"].shape == (1, 10, 3)

    curved, options = banana(), {"draws": 10, **QUIET}
    whole = el2o(curved, full_rank, budget=6, **options)
    el2o(curved, full_rank, budget=2, checkpoint=tmp_path / "c.npz", **options)
    rest = el2o(curved, full_rank, budget=6, checkpoint=tmp_path / "c.npz", **options)
    np.testing.assert_array_equal(rest.location, whole.location)


def test_bad_input_is_told_before_any_work():
    problem, _, _ = gaussian(6)
    with pytest.raises(InputError, match="guide: got low_rank, expected 'full_rank' or 'mean_field'"):
        el2o(problem, low_rank, **QUIET)
    with pytest.raises(InputError, match="at least 12"):
        astrozoo.infer(problem, "el2o", "mean_field", particles=8, **QUIET)
