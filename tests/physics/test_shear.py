from __future__ import annotations

import math

import pytest
import torch

from astrozoo.physics import fourier
from astrozoo.physics.shear import aperture_mass, kaiser_squires, peaks, reduced_shear, shear_of, smoothed

F64 = torch.float64
SHAPES = [(32, 32), (31, 45), (24, 50)]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def grid(shape):
    y, x = (torch.arange(n, dtype=F64) for n in shape)
    return torch.meshgrid(y, x, indexing="ij")


def isothermal(n, core=3.0):
    """The convergence of a cored mass in the middle, without its mean."""
    y, x = grid((n, n))
    r2 = (x - n // 2) ** 2 + (y - n // 2) ** 2
    kappa = 1 / (1 + r2 / core**2) ** 2
    return kappa - kappa.mean()


def test_a_wave_along_x_is_gamma_1_and_one_along_the_diagonal_is_gamma_2():
    y, x = grid((32, 32))
    for phase, expected in ((x, (1, 0)), (y, (-1, 0)), (x + y, (0, 1)), (x - y, (0, -1))):
        kappa = torch.cos(2 * math.pi * 3 * phase / 32)
        torch.testing.assert_close(
            shear_of(kappa), torch.stack([f * kappa for f in expected]), atol=1e-12, rtol=0
        )


def test_shear_around_a_mass_is_tangential_and_has_its_analytic_size():
    n, core = 256, 3.0
    shear = shear_of(isothermal(n, core))
    y, x = grid((n, n))
    x, y = x - n // 2, y - n // 2
    r2 = x**2 + y**2
    cos, sin = (x**2 - y**2) / r2.clamp_min(1), 2 * x * y / r2.clamp_min(1)
    tangential, cross = -(shear[0] * cos + shear[1] * sin), shear[0] * sin - shear[1] * cos
    near = (r2 > 25) & (r2 < 400)
    # gamma_t = mean kappa inside - kappa, for kappa = (1 + r2/core2)^-2
    u = 1 + r2 / core**2
    torch.testing.assert_close(tangential[near], (1 / u - 1 / u**2)[near], atol=2e-3, rtol=0.02)
    assert cross[near].abs().max() < 1e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_the_round_trip_is_exact_but_for_the_mean_and_the_highest_frequencies(shape):
    kappa = noise(*shape)
    once, b = kaiser_squires(shear_of(kappa))
    assert b.abs().max() < 1e-13
    ky, kx = fourier.frequencies(shape, kappa)
    kept = ((kx**2 + ky**2 > 0) & (ky.abs() < 0.5) & (kx < 0.5)).to(F64)
    torch.testing.assert_close(once, fourier.filtered(kappa, kept), atol=1e-13, rtol=0)
    again, _ = kaiser_squires(shear_of(once))
    torch.testing.assert_close(again, once, atol=1e-13, rtol=0)


def test_shear_turned_by_45_degrees_is_pure_b():
    shear = shear_of(noise(30, 36))
    e, b = kaiser_squires(shear)
    turned_e, turned_b = kaiser_squires(torch.stack((-shear[1], shear[0])))
    assert turned_e.abs().max() < 1e-13
    torch.testing.assert_close(turned_b, e, atol=1e-13, rtol=0)
    assert b.abs().max() < 1e-13


@pytest.mark.parametrize("shape", SHAPES)
def test_the_filters_are_each_others_adjoints_and_derivatives(shape):
    x, y = noise(*shape, seed=1), noise(2, *shape, seed=2)
    assert torch.allclose((shear_of(x) * y).sum(), (x * kaiser_squires(y)[0]).sum(), rtol=1e-12)
    slope = torch.func.grad(lambda k: (shear_of(k) * y).sum())(x)
    torch.testing.assert_close(slope, kaiser_squires(y)[0], atol=1e-13, rtol=0)
    batched = torch.func.vmap(torch.func.grad(lambda k: shear_of(k).square().sum() / 2))(
        torch.stack((x, 2 * x))
    )
    torch.testing.assert_close(batched[1], 2 * batched[0], atol=1e-12, rtol=0)


def test_reduced_shear():
    kappa = torch.tensor([[0.5, 0.0]], dtype=F64)
    shear = torch.full((2, 1, 2), 0.1, dtype=F64)
    torch.testing.assert_close(reduced_shear(shear, kappa)[0], torch.tensor([[0.2, 0.1]], dtype=F64))


def test_smoothing_keeps_the_mean_and_ignores_pixels_without_weight():
    field = noise(40, 40)
    assert torch.allclose(smoothed(field, 2.0).mean(), field.mean())
    assert smoothed(field, 2.0).std() == pytest.approx(
        float(field.std()) / (2 * 2.0 * math.sqrt(math.pi)), rel=0.15
    )
    weight = torch.ones(40, 40, dtype=F64)
    weight[10:20] = 0
    constant = torch.where(weight > 0, 3.0, 1e6)
    torch.testing.assert_close(
        smoothed(constant.to(F64), 1.5, weight)[25:35], torch.full((10, 40), 3.0, dtype=F64)
    )
    assert (
        smoothed(field, 1.0, torch.zeros_like(weight).index_fill(0, torch.tensor([0]), 1.0))[20] == 0
    ).all()


def test_aperture_mass_is_the_compensated_mean_of_the_convergence():
    n, radius = 128, 12.0
    kappa = isothermal(n)
    shear = shear_of(kappa)
    mask, sd = torch.ones(n, n, dtype=torch.bool), torch.full((2, n, n), 0.3, dtype=F64)
    mass, ratio = aperture_mass(shear, radius, sd, mask)
    y, x = grid((n, n))
    s = ((x - n // 2) ** 2 + (y - n // 2) ** 2) / radius**2
    u = 9 / (math.pi * radius**2) * (1 - s) * (1 / 3 - s) * (s < 1)
    assert float(mass[n // 2, n // 2]) == pytest.approx(float((u * kappa).sum()), rel=0.03)
    found = peaks(ratio, 0.5 * float(ratio.max()))
    assert (int(found.y[0]), int(found.x[0])) == (n // 2, n // 2)


def test_the_signal_to_noise_of_noise_has_unit_variance_with_a_mask_and_uneven_noise():
    n = 96
    sd = torch.linspace(0.1, 0.6, n, dtype=F64).expand(2, n, n).clone()
    mask = torch.ones(n, n, dtype=torch.bool)
    mask[:, 40:60] = False
    ratios = [aperture_mass(sd * noise(2, n, n, seed=s), 5.0, sd, mask)[1] for s in range(12)]
    assert float(torch.stack(ratios)[:, :, :30].std()) == pytest.approx(1, abs=0.05)
    assert (ratios[0][:, 46:54] == 0).all()


def test_peaks_are_sorted_and_inside_the_mask():
    field = torch.zeros(9, 9, dtype=F64)
    field[2, 3], field[6, 6], field[0, 8] = 5.0, 7.0, 3.0
    found = peaks(field, 1.0)
    assert found.height.tolist() == [7.0, 5.0, 3.0]
    assert found.x.tolist() == [6, 3, 8]
    mask = torch.ones(9, 9, dtype=torch.bool)
    mask[6, 6] = False
    assert peaks(field, 4.0, mask).y.tolist() == [2]
