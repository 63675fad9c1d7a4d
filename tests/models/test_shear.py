import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

import astrozoo
from astrozoo.errors import InputError
from astrozoo.models.shear import GalaxyDraws, Population, log_likelihood, problem, simulate


def _draws(n: int, k: int) -> GalaxyDraws:
    random = torch.Generator().manual_seed(0)
    values = torch.randn(n, k, 5, generator=random, dtype=torch.float64)
    return GalaxyDraws(0.5 * values[..., :2], values[..., 2], values[..., 3], values[..., 4])


def test_likelihood_is_the_mean_over_draws_of_the_sheared_population() -> None:
    draws = _draws(3, 5)
    numbers = (0.4, 0.1, 0.7, -0.5, 0.3, 0.2)
    population = Population(*(torch.tensor(value, dtype=torch.float64) for value in numbers))
    g = 0.1 - 0.05j
    eta = draws.eta[..., 0].numpy() + 1j * draws.eta[..., 1].numpy()

    def intrinsic(seen: np.ndarray) -> np.ndarray:
        e = np.tanh(abs(seen) / 2) * seen / abs(seen)
        e = (e - g) / (1 - np.conj(g) * e)
        return 2 * np.arctanh(abs(e)) * e / abs(e)

    step = 1e-5
    along, across = (intrinsic(eta + d) - intrinsic(eta - d) for d in (step, 1j * step))
    jacobian = abs((along.conj() * across).imag) / (2 * step) ** 2
    flux, radius = draws.log_flux.numpy(), draws.log_radius.numpy()
    density = norm(0, 0.4).pdf(intrinsic(eta).real) * norm(0, 0.4).pdf(intrinsic(eta).imag) * jacobian
    density *= norm(0.1, 0.7).pdf(flux) * norm(-0.5 + 0.2 * (flux - 0.1), 0.3).pdf(radius)
    expected = np.log((density * np.exp(draws.log_weight.numpy())).mean(1))
    shear = torch.tensor([g.real, g.imag], dtype=torch.float64)
    np.testing.assert_allclose(log_likelihood(draws, shear, population).numpy(), expected, rtol=1e-5)


def test_the_shear_of_simulated_galaxies_is_recovered() -> None:
    data, truth = simulate(3, galaxies=200)
    result = astrozoo.infer(problem(data), "laplace", compile="never", draws=50, progress=False)
    assert result.status.ok
    for name, value in truth.items():
        draws = result.draws[name][0]
        z = (draws.mean(0) - value.numpy()) / draws.std(0)
        assert np.abs(z).max() < 4, name


def test_the_prior_of_the_shear_is_a_setting() -> None:
    tight = problem(simulate(3)[0], shear_sd=1e-4)
    result = astrozoo.infer(tight, "laplace", compile="never", draws=10, progress=False)
    assert np.abs(result.draws["shear"]).max() < 1e-3


def test_bad_draws() -> None:
    draws = _draws(3, 5)
    with pytest.raises(InputError, match="2 galaxies or more"):
        problem(GalaxyDraws(*(part[:1] for part in draws)))
    with pytest.raises(InputError, match="not finite"):
        problem(draws._replace(log_weight=draws.log_weight * math.nan))
