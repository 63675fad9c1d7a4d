"""Light profiles against their definition, numerical integrals and an independent code."""

from __future__ import annotations

import importlib
import math

import pytest
import torch

from astrozoo.physics import lensing, light

F64 = torch.float64


def f64(*values):
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=F64)


X, Y = f64(0.3, -1.1, 0.8, 0.07), f64(0.5, 0.2, -0.9, -0.02)
CENTRE = f64(0.05, -0.02)


@pytest.mark.parametrize(
    ("index", "error"), [(0.5, 0.011), (1.0, 2.1e-3), (2.5, 3e-4), (4.0, 3e-4), (6.0, 3e-4)]
)
def test_half_the_light_is_inside_the_effective_radius(index, error):
    """Within what the docstring says of the approximation of b_n; by the trapezium rule in ln r."""
    s = torch.linspace(-25, math.log(60.0) * max(1.0, index / 2), 200_001, dtype=F64)
    r = s.exp()
    zero = torch.zeros_like(r)
    profile = light.sersic(r, zero, f64(1.0), f64(1.0), f64(index), f64(0.0, 0.0), f64(0.0, 0.0))
    each = profile * r * r
    total, inside = torch.trapezoid(each, s), torch.trapezoid(each[r <= 1], s[r <= 1])
    assert float(inside / total) == pytest.approx(0.5, abs=error)
    at_radius = light.sersic(f64(1.0), f64(0.0), f64(7.0), f64(1.0), f64(index), f64(0.0, 0.0), f64(0.0, 0.0))
    assert float(at_radius) == pytest.approx(7.0, rel=1e-12)


def test_the_elliptical_radius_is_that_of_the_rotated_axes():
    q, phi = 0.6, 0.7
    e = lensing.ellipticity_of(f64(q), f64(phi))
    u, v = math.cos(phi) * X + math.sin(phi) * Y, -math.sin(phi) * X + math.cos(phi) * Y
    torch.testing.assert_close(
        lensing.elliptical_square(X, Y, e), q * u * u + v * v / q, rtol=1e-13, atol=1e-15
    )


@pytest.mark.parametrize("index", [0.7, 1.5, 4.0])
@pytest.mark.parametrize("q", [0.4, 0.9])
def test_lenstronomy_agrees(index, q):
    module = importlib.import_module("lenstronomy.LightModel.Profiles.sersic")
    e = lensing.ellipticity_of(f64(q), f64(0.7))
    got = light.sersic(X, Y, f64(3.0), f64(0.8), f64(index), e, CENTRE)
    theirs = module.SersicElliptic(sersic_major_axis=False)
    want = theirs.function(
        X.numpy(), Y.numpy(), amp=3.0, R_sersic=0.8, n_sersic=index, e1=float(e[0]), e2=float(e[1]),
        center_x=0.05, center_y=-0.02,
    )  # fmt: skip
    # with the same approximation of b_n; its centre is cut at 1e-5 arcsec, away from these points
    torch.testing.assert_close(got, torch.as_tensor(want), rtol=1e-9, atol=0)


def test_derivatives_and_the_centre():
    def profile(amplitude, radius, index, e, centre):
        return light.sersic(X, Y, amplitude, radius, index, e, centre)

    inputs = [t.requires_grad_() for t in (f64(3.0), f64(0.8), f64(2.5), f64(0.0, 0.0), CENTRE.clone())]
    inputs[4] = f64(0.01, 0.03).requires_grad_()
    assert torch.autograd.gradcheck(profile, inputs)
    assert torch.autograd.gradgradcheck(profile, inputs)
    centred = f64(0.3, 0.5).requires_grad_()
    value = light.sersic(X[0], Y[0], f64(3.0), f64(0.8), f64(4.0), f64(0.1, 0.0), centred)
    # b_n - b_n (1e-10 / 0.8)^(1/4): within 3e-2 of the peak
    assert value.item() == pytest.approx(3 * math.exp(light.sersic_b(4.0)), rel=0.03)
    (slope,) = torch.autograd.grad(value, centred)
    assert slope.isfinite().all()


def test_several_profiles_add_up():
    parameters = (
        f64(3.0, 1.0), f64(0.8, 0.2), f64(2.5, 1.0),
        torch.tensor([[0.1, 0.0], [0.0, 0.2]], dtype=F64), torch.tensor([[0.0, 0.0], [0.5, 0.1]], dtype=F64),
    )  # fmt: skip
    want = sum(light.sersic(X, Y, *(p[i] for p in parameters)) for i in (0, 1))
    torch.testing.assert_close(light.sersics(X, Y, *parameters), want, rtol=1e-14, atol=0)


def test_interpolation_is_exact_on_planes_and_at_pixels_and_dark_outside():
    scale, centre = 0.1, f64(0.2, -0.1)
    row, column = torch.meshgrid(torch.arange(9, dtype=F64), torch.arange(11, dtype=F64), indexing="ij")
    x, y = (column - 5) * scale + 0.2, (row - 4) * scale - 0.1
    plane = 2 + 3 * x - 1.5 * y
    at = (f64(0.23, 0.61, -0.29), f64(-0.17, 0.19, -0.41))
    got = light.interpolate(*at, plane, scale, centre)
    torch.testing.assert_close(got, 2 + 3 * at[0] - 1.5 * at[1], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(light.interpolate(x, y, plane, scale, centre), plane, rtol=1e-12, atol=1e-13)
    outside = light.interpolate(f64(0.2, 5.0, -50.0), f64(3.0, -0.1, 0.0), plane, scale, centre)
    assert (outside == 0).all()
    nan, far = float("nan"), float("inf")
    nowhere = light.interpolate(f64(nan, 0.2, far), f64(0.0, -0.1, 0.0), plane, scale, centre)
    torch.testing.assert_close(nowhere, f64(nan, plane[4, 5], 0.0), equal_nan=True)


def test_interpolation_differentiates_in_image_and_position():
    image = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=F64).requires_grad_()
    x, y = f64(0.03, -0.11).requires_grad_(), f64(0.07, 0.02).requires_grad_()
    centre = f64(0.01, 0.0).requires_grad_()

    def f(x, y, image, centre):
        return light.interpolate(x, y, image, 0.1, centre)

    assert torch.autograd.gradcheck(f, (x, y, image, centre))
    batched = torch.vmap(light.interpolate, in_dims=(None, None, 0, None, None))
    stack = torch.stack((image, 2 * image)).detach()
    torch.testing.assert_close(batched(x, y, stack, 0.1, centre)[1], 2 * f(x, y, image, centre))
