from __future__ import annotations

import numpy as np
import pytest
import torch

from astrozoo.errors import InputError
from astrozoo.physics.cosmology import make_cosmology
from astrozoo.physics.linear_power import (
    box_modes,
    cross_power,
    field_of,
    linear_power,
    make_shells,
    mesh_power,
    tabulated_power,
)

F64 = torch.float64


@pytest.fixture
def tables(data_root):
    folder = data_root / "cosmology"
    if not folder.is_dir():
        pytest.skip("no tables of cosmology among the survey data")
    return folder


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_the_power_is_that_of_the_benchmark_tables(tables):
    k, power = np.loadtxt(tables / "ccl_benchmarks" / "model1_pk_eh.txt", unpack=True)
    model = make_cosmology(omega_m=0.3, omega_b=0.05, h=0.7, n_s=0.96, sigma8=0.8)
    ours = linear_power(torch.as_tensor(k), model).numpy()
    np.testing.assert_allclose(ours, power, rtol=2e-3)  # of another CMB temperature
    k, power = np.loadtxt(tables / "flowpm_Planck15_a1p00.txt", unpack=True)
    chosen = (k > 1e-3) & (k < 3)
    planck = make_cosmology(omega_m=0.3089, omega_b=0.0486, h=0.6774, n_s=0.9667, sigma8=0.8158)
    ours = linear_power(torch.as_tensor(k[chosen]), planck).numpy()
    np.testing.assert_allclose(
        ours, power[chosen], rtol=8e-3
    )  # the table does not give its density of matter


def test_the_power_is_differentiable_in_the_parameters():
    k = torch.logspace(-2, 0, 5, dtype=F64)
    base = make_cosmology()

    def total(omega_m, sigma8):
        return linear_power(k, base._replace(omega_m=omega_m, sigma8=sigma8)).log().sum()

    at = (base.omega_m, base.sigma8)
    slope, of_sigma8 = torch.func.grad(total, argnums=(0, 1))(*at)
    difference = (total(at[0] + 1e-5, at[1]) - total(at[0] - 1e-5, at[1])) / 2e-5
    assert float(slope) == pytest.approx(float(difference), rel=1e-6)
    assert float(of_sigma8) == pytest.approx(5 * 2 / float(base.sigma8))


def test_fields_have_the_power_of_the_spectrum():
    shape, box = (16, 16, 16), 200.0
    modes = box_modes(shape, box)
    theory = linear_power(modes.k[1:], make_cosmology())
    relative = mesh_power(theory, modes)
    fields = field_of(noise(40, *shape), relative, modes)
    shells = make_shells(modes, 16)
    assert float(shells.size.sum()) < 16**3
    power = cross_power(fields, fields, shells).mean(0)
    one = torch.zeros(len(shells.k) + 1, dtype=F64)
    one.index_add_(0, shells.which.flatten(), (shells.weight * relative[modes.which]).flatten())
    expected = one[:-1] / shells.size
    error = (2 / (40 * shells.size)).sqrt()
    assert float(((power / expected - 1) / error).abs().max()) < 4
    assert float(fields.mean((1, 2, 3)).abs().max()) < 1e-12


def test_a_wave_is_in_its_shell():
    modes = box_modes((8, 8, 8), 80.0)
    shells = make_shells(modes, 8)
    wave = torch.cos(2 * torch.pi * 2 * torch.arange(8, dtype=F64) / 8).view(1, 8, 1).expand(8, 8, 8)
    power = cross_power(wave, wave, shells) * shells.size
    assert float(power[1]) == pytest.approx(8**3 / 2)
    assert float(power.sum()) == pytest.approx(8**3 / 2)
    assert float(shells.k[0]) == pytest.approx(2 * np.pi / 80 * (6 + 12 * 2**0.5 + 8 * 3**0.5) / 26, rel=0.2)


@pytest.mark.parametrize(
    ("k", "power", "message"),
    [
        ([0.01, 0.1], [1.0, 1.0], "wave numbers 0.01 to 0.1 h/Mpc, expected those of the box"),
        ([0.1, 0.01], [1.0, 1.0], "do not increase"),
        ([0.001, 10.0], [1.0, -1.0], "a power that is not positive"),
    ],
)
def test_bad_spectra_are_refused(k, power, message):
    modes = box_modes((8, 8, 8), 100.0)
    with pytest.raises(InputError, match=message):
        tabulated_power(modes.k[1:], (np.array(k), np.array(power)))
