from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp

from astrozoo.errors import InputError
from astrozoo.physics.cosmology import Cosmology, comoving_distance, growth, hubble, make_cosmology

MODELS = [
    {"omega_m": 0.3, "w0": -1.0, "wa": 0.0},
    {"omega_m": 0.3, "w0": -0.9, "wa": 0.0},
    {"omega_m": 0.3, "w0": -0.9, "wa": 0.1},
]
"""The flat cosmologies of the benchmark tables."""


def double(x):
    return torch.tensor(x, dtype=torch.float64)


def cosmology(**parameters):
    return make_cosmology(**{"omega_b": 0.05, "h": 0.7, "n_s": 0.96, "sigma8": 0.8, **parameters})


@pytest.fixture
def tables(data_root):
    folder = data_root / "cosmology"
    if not folder.is_dir():
        pytest.skip("no tables of cosmology among the survey data")
    return folder


def test_growth_has_its_golden_values():
    g = growth(torch.tensor([0.1, 0.5, 1.0]), make_cosmology(omega_m=0.3111))
    golden = {
        "d1": (g.d1, [0.1272474, 0.6080408, 1]),
        "f1": (g.f1, [0.9987942, 0.8748292, 0.5234145]),
        "d2 / d1^2": (g.d2 / g.d1**2, [-0.4285781, -0.4293109, -0.4321590]),
        "f2": (g.f2, [1.9976347, 1.7542823, 1.0614815]),
    }
    for values, expected in golden.values():
        np.testing.assert_allclose(values.numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("parameters", [*MODELS, {"omega_m": 0.15, "w0": -0.6, "wa": -0.3}])
def test_growth_solves_the_differential_equations(parameters):
    a = np.array([0.02, 0.1, 0.35, 0.7, 1.0])
    om, w0, wa = (parameters[k] for k in ("omega_m", "w0", "wa"))

    def slopes(x, y):
        scale = np.exp(x)
        dark = (1 - om) / om * scale ** (-3 * (w0 + wa)) * np.exp(-3 * wa * (1 - scale))
        matter = 1 / (1 + dark)
        h = -1.5 * (1 + (w0 + wa * (1 - scale)) * (1 - matter))
        d1, v1, d2, v2 = y
        second = 1.5 * matter * d2 - (2 + h) * v2 - 1.5 * matter * d1**2
        return [v1, 1.5 * matter * d1 - (2 + h) * v1, v2, second]

    a0 = 1e-5
    start = [a0, a0, -3 / 7 * a0**2, -6 / 7 * a0**2]
    solved = solve_ivp(slopes, (np.log(a0), 0), start, "DOP853", np.log(a), rtol=1e-12, atol=1e-18)
    d1, v1, d2, v2 = solved.y
    g = growth(torch.as_tensor(a), cosmology(**parameters))
    np.testing.assert_allclose(g.d1.numpy(), d1 / d1[-1], rtol=2e-7)
    np.testing.assert_allclose(g.f1.numpy(), v1 / d1, rtol=2e-7)
    np.testing.assert_allclose(g.d2.numpy(), d2 / d1[-1] ** 2, rtol=2e-7)
    np.testing.assert_allclose(g.f2.numpy(), v2 / d2, rtol=2e-7)
    assert float(1 / g.early) == pytest.approx(d1[-1], rel=2e-7)


def test_growth_and_distances_are_those_of_the_benchmark_tables(tables):
    z, *columns = np.loadtxt(tables / "ccl_benchmarks" / "growth_model1-5.txt", unpack=True)
    high, *early = np.loadtxt(tables / "ccl_benchmarks" / "growth_hiz_model1-3.txt", unpack=True)
    redshift, *distances = np.loadtxt(tables / "ccl_benchmarks" / "chi_model1-5.txt", unpack=True)
    for parameters, column, first, chi in zip(MODELS, columns, early, distances, strict=False):
        model = cosmology(**parameters)
        for at, expected in ((z, column), (high, first)):
            g = growth(torch.as_tensor(1 / (1 + at)), model)
            np.testing.assert_allclose((g.d1 / g.early).numpy(), expected, rtol=1e-6)
        found = comoving_distance(torch.as_tensor(1 / (1 + redshift)), model)
        np.testing.assert_allclose(found.numpy(), chi, rtol=1e-6)


def test_distances_are_the_integral_of_the_hubble_rate():
    model = cosmology(omega_m=0.25, w0=-0.8, wa=0.2)
    for a in (0.1, 0.5, 0.99):
        integral = quad(lambda x: 1 / (x**2 * float(hubble(double(x), model))), a, 1)[0]
        assert float(comoving_distance(double([a]), model)) == pytest.approx(2997.92458 * integral, rel=1e-10)


def test_growth_is_differentiable_in_the_parameters_and_maps_over_a_batch():
    a = torch.tensor([0.3, 0.9], dtype=torch.float64)
    base = cosmology(omega_m=0.3, w0=-0.9)

    def total(omega_m, w0):
        g = growth(a, base._replace(omega_m=omega_m, w0=w0))
        return (g.d1 + g.f1 + g.d2 + g.f2).sum()

    at = (torch.tensor(0.3, dtype=torch.float64), torch.tensor(-0.9, dtype=torch.float64))
    slopes = torch.func.grad(total, argnums=(0, 1))(*at)
    for i, slope in enumerate(slopes):
        step = [torch.tensor(1e-5 * (i == j), dtype=torch.float64) for j in (0, 1)]
        up, down = (total(*(x + sign * s for x, s in zip(at, step, strict=True))) for sign in (1, -1))
        assert float(slope) == pytest.approx(float((up - down) / 2e-5), rel=1e-7)
    many = torch.linspace(0.2, 0.4, 3, dtype=torch.float64)
    together = torch.func.vmap(lambda x: growth(a, base._replace(omega_m=x)))(many)
    alone = growth(a, base._replace(omega_m=many[1]))
    for ours, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(ours[1], expected)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"omega_m": 0.01}, "omega_m: got 0.01, expected more than omega_b"),
        ({"h": 67.7}, "units of 100 km/s/Mpc"),
        ({"w0": 0.5}, "w0 and w0 \\+ wa below -1/3"),
        ({"sigma8": float("nan")}, "sigma8: got nan, expected a number above 0"),
    ],
)
def test_parameters_that_no_universe_has_are_refused(parameters, message):
    with pytest.raises(InputError, match=message):
        make_cosmology(**parameters)
    assert isinstance(make_cosmology(), Cosmology)
