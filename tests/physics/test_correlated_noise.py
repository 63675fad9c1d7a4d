"""Likelihood of correlated noise against dense normal distributions."""

from __future__ import annotations

import pytest
import torch

from astrozoo.errors import InputError
from astrozoo.physics import correlated_noise
from astrozoo.physics.correlated_noise import log_density, toeplitz, whitening

F64 = torch.float64


def smooth_correlation(side: int = 9, width: float = 1.0) -> torch.Tensor:
    """Correlation of white noise that is smoothed by an elongated Gaussian, cut by a smooth window."""
    y, x = torch.meshgrid(*[torch.arange(side, dtype=F64) - side // 2] * 2, indexing="ij")
    return torch.exp(-(x**2 + 0.8 * y**2 + 0.5 * x * y) / 2 / width**2)


@pytest.mark.parametrize("shape", [(12, 12), (9, 14), (3, 5)])
def test_the_density_is_that_of_a_dense_normal(shape):
    g = torch.Generator().manual_seed(0)
    residual = torch.randn(3, *shape, generator=g, dtype=F64)
    sd = 0.5 + torch.rand(shape, generator=g, dtype=F64)
    white = whitening(smooth_correlation(), shape)
    assert white.exact
    flat_sd = sd.flatten()
    covariance = flat_sd[:, None] * toeplitz(smooth_correlation(), shape) * flat_sd
    dense = torch.distributions.MultivariateNormal(torch.zeros_like(flat_sd), covariance)
    got = log_density(residual, sd, white).sum((-2, -1))
    torch.testing.assert_close(got, dense.log_prob(residual.flatten(1)), rtol=1e-8, atol=1e-8)
    sign, log_determinant = torch.linalg.slogdet(toeplitz(smooth_correlation(), shape))
    assert sign == 1
    torch.testing.assert_close(white.log_determinant, log_determinant, rtol=1e-8, atol=1e-8)


def test_correlations_between_pixels_are_those_of_their_distance():
    correlation = smooth_correlation(5)
    matrix = toeplitz(correlation, (4, 6)).reshape(4, 6, 4, 6)
    assert matrix[1, 2, 2, 4] == correlation[2 + 1, 2 + 2]
    assert matrix[2, 4, 1, 2] == correlation[2 - 1, 2 - 2] == correlation[2 + 1, 2 + 2]
    assert matrix[0, 0, 3, 0] == 0  # beyond the largest lag
    assert matrix[0, 0, 0, 5] == 0  # noise does not wrap around


def test_without_correlation_pixels_are_independent():
    g = torch.Generator().manual_seed(1)
    residual = torch.randn(6, 7, generator=g, dtype=F64)
    sd = 0.5 + torch.rand(6, 7, generator=g, dtype=F64)
    normal = torch.distributions.Normal(torch.zeros_like(sd), sd)
    delta = torch.zeros(3, 3, dtype=F64)
    delta[1, 1] = 2.5
    for white in (None, whitening(delta, (6, 7))):
        torch.testing.assert_close(log_density(residual, sd, white), normal.log_prob(residual))


@pytest.mark.parametrize("exact", [True, False])
def test_whitened_noise_is_white_and_the_inverse_undoes_it(exact, monkeypatch):
    shape = (11, 12)
    if not exact:
        monkeypatch.setattr(correlated_noise, "EXACT_PIXELS", 10)
        with pytest.warns(UserWarning, match="approximate"):
            white = whitening(smooth_correlation(width=0.7), shape)
    else:
        white = whitening(smooth_correlation(width=0.7), shape)
    assert white.exact is exact
    assert ("exact" in white.label) is exact
    assert ("approximate" in white.label) is not exact
    g = torch.Generator().manual_seed(2)
    noise = white.inverse(torch.randn(4000, *shape, generator=g, dtype=F64))
    torch.testing.assert_close(white.inverse(white(noise)), noise)
    neighbours = (noise[:, 4, 5] * noise[:, 4, 6]).mean()
    assert abs(neighbours - smooth_correlation(width=0.7)[4, 5]) < 4 / 4000**0.5
    assert abs(noise.square().mean() - 1) < 0.02


def test_the_periodic_density_is_exact_for_periodic_noise(monkeypatch):
    monkeypatch.setattr(correlated_noise, "EXACT_PIXELS", 10)
    shape, correlation = (8, 9), smooth_correlation(7, 0.7)
    with pytest.warns(UserWarning, match="8x9"):
        white = whitening(correlation, shape)
    y, x = torch.arange(8), torch.arange(9)
    dy = (y[:, None] - y + 4) % 8 - 4
    dx = (x[:, None] - x + 4) % 9 - 4
    inside = (dy.abs() <= 3)[:, None, :, None] & (dx.abs() <= 3)[None, :, None, :]
    full = correlation[dy.clamp(-3, 3)[:, None, :, None] + 3, dx.clamp(-3, 3)[None, :, None, :] + 3]
    covariance = torch.where(inside, full, 0.0).reshape(72, 72)
    dense = torch.distributions.MultivariateNormal(torch.zeros(72, dtype=F64), covariance)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=F64)
    got = log_density(noise, torch.ones_like(noise), white).sum()
    torch.testing.assert_close(got, dense.log_prob(noise.flatten()), rtol=1e-10, atol=1e-10)


def test_it_can_be_vmapped_and_differentiated_twice():
    white = whitening(smooth_correlation(), (5, 6))
    residual = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(4), dtype=F64)

    def density(r):
        return log_density(r, torch.ones_like(r), white).sum()

    rows = torch.func.vmap(torch.func.grad(density))(residual)
    for row, r in zip(rows, residual, strict=True):
        torch.testing.assert_close(row, torch.func.grad(density)(r))
    hessian = torch.func.jacrev(torch.func.grad(density))(residual[0]).reshape(30, 30)
    inverse = torch.linalg.inv(toeplitz(smooth_correlation(), (5, 6)))
    torch.testing.assert_close(-hessian, inverse, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize(
    ("correlation", "message"),
    [
        (torch.ones(4, 5), "odd sides"),
        (torch.full((3, 3), float("nan")), "symmetric"),
        (torch.zeros(3, 3), "positive at lag 0"),
        (torch.tensor([[0.0, 0.0, 0.0], [0.5, 1.0, 0.1], [0.0, 0.0, 0.0]]), "asymmetry of 0.4"),
        (torch.tensor([[0.0, 0.0, 0.0], [0.9, 1.0, 0.9], [0.0, 0.0, 0.0]]), "positive definite"),
    ],
)
def test_a_function_that_no_noise_has_is_refused(correlation, message, monkeypatch):
    with pytest.raises(InputError, match=message):
        whitening(correlation, (6, 6))
    monkeypatch.setattr(correlated_noise, "EXACT_PIXELS", 10)
    if message == "positive definite":
        with pytest.warns(UserWarning, match="approximate"), pytest.raises(InputError, match=message):
            whitening(correlation, (6, 6))
