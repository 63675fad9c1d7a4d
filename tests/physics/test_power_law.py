from __future__ import annotations

import numpy as np
import pytest
import torch

from astrozoo.errors import InputError
from astrozoo.physics.fourier import filtered
from astrozoo.physics.power_law import PowerLaw, fit_power_law, windowed_power


def field(law: PowerLaw, size: int, seed: int) -> np.ndarray:
    """The middle quarter of a periodic field, which is not periodic."""
    white = torch.randn(
        2 * size, 2 * size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return filtered(white, law.modes((2 * size, 2 * size), white).sqrt())[:size, :size].numpy()


def test_the_power_law_of_fields_with_noise_is_recovered():
    law, noise = PowerLaw(100.0, 3.5, 0.1), 0.5
    mask = np.ones((64, 60), bool)
    mask[20:30, 40:50] = False
    fits = []
    for seed in range(8):
        image = field(law, 64, seed)[:, :60]
        image = image + noise * np.random.default_rng(seed).standard_normal(image.shape)
        fits.append(fit_power_law(image, np.full(image.shape, noise), mask))
    k = torch.tensor([0.08, 0.16, 0.3])
    ratios = np.stack([(fit.at(k) / law.at(k)).log().numpy() for fit in fits])
    error = ratios.std(0, ddof=1) / np.sqrt(len(fits))
    assert (np.abs(ratios.mean(0)) < 4 * error).all()
    assert (ratios.std(0) < 0.4).all()


def test_the_power_of_noise_is_flat_and_as_stated():
    noise = 1 + np.linspace(0, 1, 64)[:, None] * np.ones(64)
    powers = []
    for seed in range(20):
        image = noise * np.random.default_rng(seed).standard_normal(noise.shape)
        _, power, modes, level = windowed_power(image, noise, np.ones(noise.shape, bool))
        powers.append(power / level)
    mean = np.mean(powers, 0)
    scatter = np.sqrt(1 / (modes * 20))  # of the mean of exponential variables
    assert np.abs((mean - 1) / scatter).max() < 4.5
    law = fit_power_law(image, noise, np.ones(noise.shape, bool))
    assert law.at(torch.tensor(0.2)) < 0.2 * level


def test_a_fixed_slope_is_kept_and_checked():
    image = field(PowerLaw(1.0, 3.0, 0.1), 32, 0)
    arrays = image, np.full(image.shape, 0.1), np.ones(image.shape, bool)
    assert fit_power_law(*arrays, slope=2.5).slope == 2.5
    for slope in (0.0, 9.0, float("nan")):
        with pytest.raises(InputError, match="slope"):
            fit_power_law(*arrays, slope=slope)
