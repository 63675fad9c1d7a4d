from __future__ import annotations

import numpy as np
import pytest
import torch

from astrozoo.errors import InputError
from astrozoo.physics.cosmology import make_cosmology
from astrozoo.physics.matter_power import linear_power
from astrozoo.physics.modes import (
    box_modes,
    cross_power,
    field_of,
    make_shells,
    mesh_power,
    tabulated_power,
)

F64 = torch.float64


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


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
