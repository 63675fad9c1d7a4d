"""Least squares of many problems: exact where the residuals are linear, and alone as in a batch."""

from __future__ import annotations

import pytest
import torch

from astrozoo.errors import InputError
from astrozoo.infer.least_squares import least_squares
from astrozoo.types import Status

F64 = torch.float64
X = torch.linspace(0, 1, 30, dtype=F64)


def decay(theta, y):
    return (y - theta[0] * torch.exp(-theta[1].exp() * X)) / 0.1


def curves(count):
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(count, 2, generator=generator, dtype=F64) + torch.tensor([1.0, 0.5], dtype=F64)
    clean = truth[:, :1] * torch.exp(-truth[:, 1:].exp() * X)
    return truth, clean + 0.1 * torch.randn(clean.shape, generator=generator, dtype=F64)


def test_a_linear_problem_is_solved_exactly():
    generator = torch.Generator().manual_seed(0)
    design = torch.randn(30, 3, generator=generator, dtype=F64)
    y = torch.randn(4, 30, generator=generator, dtype=F64)
    fit = least_squares(lambda theta, y: design @ theta - y, torch.zeros(4, 3, dtype=F64), (y,))
    expected = torch.linalg.lstsq(design, y.T).solution.T
    torch.testing.assert_close(fit.parameters, expected)
    torch.testing.assert_close(fit.chi2, (y - expected @ design.T).square().sum(1))
    torch.testing.assert_close(fit.covariance[2], torch.linalg.inv(design.T @ design))
    assert set(fit.statuses) == {Status.CONVERGED}


def test_a_problem_is_fitted_as_if_it_were_alone():
    truth, y = curves(70)
    start = torch.ones(70, 2, dtype=F64)
    fit = least_squares(decay, start, (y,))
    assert set(fit.statuses) == {Status.CONVERGED}
    score = (fit.parameters - truth) / fit.covariance.diagonal(dim1=1, dim2=2).sqrt()
    assert 0.8 < float(score.square().mean()) < 1.25
    for i in (0, 69):
        alone = least_squares(decay, start[i : i + 1], (y[i : i + 1],))
        torch.testing.assert_close(alone.parameters[0], fit.parameters[i], rtol=1e-6, atol=1e-6)


def test_a_parameter_that_changes_nothing_has_no_covariance():
    _, y = curves(2)
    fit = least_squares(lambda theta, y: decay(theta[:2], y), torch.ones(2, 3, dtype=F64), (y,))
    assert fit.covariance.isnan().all()


def test_bad_input_is_refused():
    _, y = curves(3)
    with pytest.raises(InputError, match="problems, parameters"):
        least_squares(decay, torch.ones(2, dtype=F64), (y,))
    with pytest.raises(InputError, match="a leading axis of 2 problems"):
        least_squares(decay, torch.ones(2, 2, dtype=F64), (y,))
