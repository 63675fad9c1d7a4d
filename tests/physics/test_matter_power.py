"""Linear power, halos and Limber's convergence against tables of CCL and independent integrals."""

from __future__ import annotations

import json
from importlib.resources import files

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import spherical_jn

from astrozoo.errors import InputError
from astrozoo.physics.cosmology import HUBBLE_DISTANCE, comoving_distance, growth, make_cosmology
from astrozoo.physics.matter_power import (
    Matter,
    concentration,
    convergence_power,
    halo_bias,
    halo_waves,
    lensing_weights,
    linear_power,
    mass_function,
)


@pytest.fixture
def tables(data_root):
    folder = data_root / "cosmology" / "ccl_benchmarks"
    if not folder.is_dir():
        pytest.skip("no tables of cosmology among the survey data")
    return folder


@pytest.fixture
def cosmology():
    return make_cosmology(omega_m=0.3, omega_b=0.05, h=0.7, n_s=0.96, sigma8=0.8)


def test_linear_power_is_that_of_ccl(tables, cosmology):
    k, expected = np.loadtxt(tables / "model1_pk_eh.txt").T
    np.testing.assert_allclose(linear_power(torch.as_tensor(k), cosmology).numpy(), expected, rtol=1.2e-3)


def test_the_mass_function_is_that_of_ccl(tables, cosmology):
    """Masses of the table are in Msun, and its numbers per Mpc^3 and decade."""
    mass, *columns = np.loadtxt(tables / "hmf_tinker08.txt").T
    h, matter = 0.7, Matter.of(cosmology)
    for redshift, expected in zip((0.0, 0.5, 1.0), columns, strict=True):
        found = mass_function(torch.as_tensor(mass * h), redshift, cosmology, matter).numpy()
        np.testing.assert_allclose(found * h**3 * np.log(10), expected, rtol=6e-3)


def test_variances_are_those_of_the_power(cosmology):
    matter = Matter.of(cosmology)
    mass = 4 / 3 * np.pi * 8.0**3 * matter.mean
    sigma, slope = matter.sigma(mass[None])
    assert float(sigma) == pytest.approx(0.8, rel=1e-6)
    wider, _ = matter.sigma(mass[None] * 1.001)
    assert float(slope) == pytest.approx(-float((wider / sigma).log()) / np.log(1.001), rel=1e-3)
    assert linear_power(torch.tensor([0.1]), cosmology._replace(sigma8=torch.tensor(1.6))) == pytest.approx(
        4 * float(linear_power(torch.tensor([0.1]), cosmology)), rel=1e-6
    )


def test_matter_in_halos_has_the_bias_of_all_matter(cosmology):
    """The mean bias by mass is 1 if the matter that the mass function lacks is in the smallest halos."""
    matter, mass = Matter.of(cosmology), torch.logspace(7, 16, 300, dtype=torch.float64)
    share = mass_function(mass, 0.0, cosmology, matter) * mass / matter.mean
    bias = halo_bias(mass, 0.0, cosmology, matter)
    total = torch.trapezoid(share, mass.log())
    assert 0.6 < float(total) < 1
    mean = torch.trapezoid(share * bias, mass.log()) + (1 - total) * bias[0]
    assert float(mean) == pytest.approx(1, abs=0.05)
    assert (bias[mass > 1e11].diff() > 0).all()


def test_waves_of_a_halo_are_the_transform_of_its_profile(cosmology):
    mass, z, k = 1e14, 0.4, np.array([1e-3, 0.5, 5.0, 40.0])
    c = float(concentration(torch.tensor([mass]), z))
    radius = (3 * mass / (4 * np.pi * 200 * 2.77536627e11 * 0.3)) ** (1 / 3)

    def integral(k):
        def profile(x):
            return x / (1 + x) ** 2 * spherical_jn(0, k * radius / c * x)

        return quad(profile, 0, c, limit=400)[0]

    expected = [integral(one) / integral(0.0) for one in k]
    np.testing.assert_allclose(halo_waves(k, mass, z, cosmology), expected, rtol=1e-5, atol=1e-8)


def test_limber_is_its_double_integral(cosmology):
    """Sources at two redshifts of narrow width, against the integral for a plane of sources."""
    z = np.linspace(0.002, 1.2, 1200)
    sources = np.exp(-(((z - 1) / 0.01) ** 2) / 2)
    lensing = lensing_weights(z, sources, cosmology)

    def power(k, redshift):
        d1 = float(growth(torch.tensor([1 / (1 + redshift)]), cosmology).d1)
        return linear_power(torch.as_tensor(k), cosmology).numpy() * d1**2

    found = convergence_power(np.array([300.0]), lensing, power)

    def distance(z):
        return float(comoving_distance(torch.tensor([1 / (1 + z)]), cosmology))

    plane = np.linspace(0.004, 0.999, 400)
    d, end = np.array([distance(x) for x in plane]), distance(1.0)
    weight = 1.5 * 0.3 / HUBBLE_DISTANCE**2 * (1 + plane) * (end - d) / end
    matter = np.array([power(np.array([300.5 / x]), y)[0] for x, y in zip(d, plane, strict=True)])
    assert found[0] == pytest.approx(np.trapezoid(weight**2 * matter, d), rel=5e-3)


def test_the_shipped_spectrum_is_linear_on_large_scales():
    """Below a multipole of 100, non-linear growth changes the convergence by less than 10 %."""
    content = json.loads((files("astrozoo.models") / "mass_map_spectrum.json").read_text())
    settings = content["settings"]["cosmology"]
    h = settings["H0"] / 100
    baryons, matter = settings["ombh2"] / h**2, (settings["ombh2"] + settings["omch2"]) / h**2
    cosmology = make_cosmology(omega_m=matter, omega_b=baryons, h=h, n_s=settings["ns"], sigma8=0.8159)
    z = np.linspace(0.005, 5, 150)
    lensing = lensing_weights(z, z**2 * np.exp(-((z / 0.66) ** 1.2)), cosmology)
    d1 = growth(torch.as_tensor(1 / (1 + z)), cosmology).d1.numpy()

    def power(k, redshift):
        return linear_power(torch.as_tensor(k), cosmology).numpy() * np.interp(redshift, z, d1) ** 2

    ell = np.array([20.0, 50.0, 100.0])
    expected = np.exp(np.interp(np.log(ell), np.log(content["ell"]), np.log(content["power"])))
    np.testing.assert_allclose(convergence_power(ell, lensing, power), expected, rtol=0.1)


def test_bad_sources_are_refused(cosmology):
    with pytest.raises(InputError, match="redshift"):
        lensing_weights(np.array([0.5, 0.4]), np.ones(2), cosmology)
    with pytest.raises(InputError, match="sources"):
        lensing_weights(np.array([0.4, 0.5]), np.zeros(2), cosmology)
