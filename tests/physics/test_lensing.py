"""Deflections against golden values, their own physics, and two independent codes."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from caustics import func

from astrozoo.physics import lensing

F64 = torch.float64
X = torch.tensor([1.0, -0.6, 0.3, -2.1], dtype=F64)
Y = torch.tensor([0.2, 0.9, -1.4, -0.5], dtype=F64)
CENTRE = torch.tensor([0.05, -0.03], dtype=F64)
GRID = [
    (r, q, phi, slope)
    for r in (0.5, 1.6)
    for q in (0.3, 0.7, 0.95)
    for phi in (0.4, 2.9)
    for slope in (1.6, 2.0, 2.4)
]


def f64(*values):
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=F64)


RADIUS, SLOPE, E = f64(1.3), f64(2.1), lensing.ellipticity_of(f64(0.7), f64(math.pi / 6))

# name -> (deflection, convergence), both of (x, y)
PROFILES = {
    "sis": (
        lambda x, y: lensing.sis(x, y, RADIUS, CENTRE),
        lambda x, y: lensing.sis_convergence(x, y, RADIUS, CENTRE),
    ),
    "sie": (
        lambda x, y: lensing.sie(x, y, RADIUS, E, CENTRE),
        lambda x, y: lensing.sie_convergence(x, y, RADIUS, E, CENTRE),
    ),
    "epl": (
        lambda x, y: lensing.epl(x, y, RADIUS, SLOPE, E, CENTRE),
        lambda x, y: lensing.epl_convergence(x, y, RADIUS, SLOPE, E, CENTRE),
    ),
    "nfw": (
        lambda x, y: lensing.nfw(x, y, f64(2.0), f64(0.8), CENTRE),
        lambda x, y: lensing.nfw_convergence(x, y, f64(2.0), f64(0.8), CENTRE),
    ),
    "shear": (lambda x, y: lensing.shear(x, y, f64(0.03, -0.05)), lambda x, y: torch.zeros_like(x)),
}


@pytest.mark.parametrize(
    ("name", "ax", "ay"),
    [
        (
            "sie",
            (1.211830119, -0.761309935, 0.329820234, -1.219287028),
            (0.200118407, 1.130783693, -1.310294395, -0.167744420),
        ),
        (
            "epl",
            (1.256089183798, -0.766347428544, 0.319324904769, -1.165029995042),
            (0.214040103572, 1.135336367966, -1.293313631560, -0.166742430170),
        ),
    ],
)
def test_golden_deflections(name, ax, ay):
    got = PROFILES[name][0](X, Y)
    # the values of the SIE are given to nine decimals
    atol = 5e-10 if name == "sie" else 0.0
    torch.testing.assert_close(got[0], f64(ax), rtol=1e-9, atol=atol)
    torch.testing.assert_close(got[1], f64(ay), rtol=1e-9, atol=atol)


def test_golden_convergence_and_nfw():
    kappa = PROFILES["epl"][1](X, Y)
    torch.testing.assert_close(kappa, f64(0.71717705, 0.43044796, 0.35427257, 0.29177199), rtol=0, atol=5e-9)
    r = f64(0.5, 1.0, 2.0, 4.0)
    alpha, zero = lensing.nfw(r, torch.zeros_like(r), f64(2.0), f64(0.8), f64(0.0, 0.0))
    torch.testing.assert_close(alpha, f64(0.53880788, 0.70077965, 0.8, 0.78813001), rtol=0, atol=5e-9)
    assert (zero == 0).all()


@pytest.mark.parametrize("radius", [0.5, 1.0, 1.999, 2.0, 2.001, 2.05, 4.0, 1e-3, 1e-5])
def test_nfw_is_accurate_at_its_scale_radius_and_near_its_centre(radius):
    import mpmath

    with mpmath.workdps(40):
        u = mpmath.mpf(radius) / 2
        root = mpmath.sqrt(1 - u**2) if u != 1 else mpmath.mpf(1)
        enclosed = mpmath.log(u / 2) + (mpmath.acosh(1 / u) / root if u != 1 else 1)
        exact = 0.8 * float(mpmath.re(enclosed) / u / (1 - mpmath.log(2)))
    got, _ = lensing.nfw(f64(radius), f64(0.0), f64(2.0), f64(0.8), f64(0.0, 0.0))
    assert float(got) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("name", PROFILES)
def test_half_the_divergence_is_the_convergence_and_there_is_no_curl(name):
    deflection, convergence = PROFILES[name]
    for x, y in zip(X, Y, strict=True):
        (xx, xy), (yx, yy) = torch.func.jacrev(deflection, argnums=(0, 1))(x, y)
        torch.testing.assert_close((xx + yy) / 2, convergence(x, y), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(xy, yx, rtol=1e-9, atol=1e-12)


def test_an_isothermal_power_law_is_the_closed_form_sie():
    for q in (0.5, 0.9):
        e = lensing.ellipticity_of(f64(q), f64(0.4))
        got = lensing.sie(X, Y, RADIUS, e, CENTRE, terms=34)
        want = closed_sie(X, Y, 1.3, q, 0.4)
        torch.testing.assert_close(torch.stack(got), torch.stack(want), rtol=1e-12, atol=1e-13)


def closed_sie(x, y, radius, q, phi):
    """Kormann et al. 1994, in the frame of the major axis."""
    c, s, f = math.cos(phi), math.sin(phi), math.sqrt(1 - q * q)
    u, v = c * (x - CENTRE[0]) + s * (y - CENTRE[1]), -s * (x - CENTRE[0]) + c * (y - CENTRE[1])
    psi = torch.sqrt(q * q * u * u + v * v)
    b = radius * math.sqrt(q) / f
    au, av = b * torch.atan(f * u / psi), b * torch.atanh(f * v / psi)
    return c * au - s * av, s * au + c * av


def test_a_round_lens_is_the_sphere_and_smooth_there():
    round_ = lensing.sie(X, Y, RADIUS, f64(0.0, 0.0), CENTRE)
    torch.testing.assert_close(round_, lensing.sis(X, Y, RADIUS, CENTRE), rtol=1e-14, atol=0)

    def outputs(e, slope):
        return torch.stack(lensing.epl(X, Y, RADIUS, slope, e, CENTRE))

    assert torch.autograd.gradcheck(outputs, (f64(0.0, 0.0).requires_grad_(), f64(2.1).requires_grad_()))
    assert torch.autograd.gradgradcheck(outputs, (f64(0.0, 0.0).requires_grad_(), f64(2.1).requires_grad_()))


def test_derivatives_in_every_parameter():
    def epl(x, y, radius, slope, e, centre):
        return torch.stack(lensing.epl(x, y, radius, slope, e, centre))

    inputs = [t.clone().requires_grad_() for t in (X, Y, RADIUS, SLOPE, E, CENTRE)]
    assert torch.autograd.gradcheck(epl, inputs)
    assert torch.autograd.gradgradcheck(epl, inputs)

    def nfw(x, y, radius, alpha, centre):
        return torch.stack(lensing.nfw(x, y, radius, alpha, centre))

    x = torch.cat((X, f64([2.05])))  # one at the scale radius
    y = torch.cat((Y, f64([-0.03])))
    inputs = [t.clone().requires_grad_() for t in (x, y, f64(2.0), f64(0.8), CENTRE)]
    assert torch.autograd.gradcheck(nfw, inputs)
    assert torch.autograd.gradgradcheck(nfw, inputs)


@pytest.mark.parametrize("name", ["sis", "sie", "epl", "nfw"])
def test_finite_at_the_centre(name):
    deflection, convergence = PROFILES[name]
    inputs = tuple(c.clone().requires_grad_() for c in CENTRE)
    out = torch.stack(deflection(*inputs))
    assert (out == 0).all()
    for component in out:
        for slope in torch.autograd.grad(component, inputs, retain_graph=True):
            assert slope.isfinite()
    assert convergence(*CENTRE).isfinite()


@pytest.mark.parametrize(("radius", "q", "phi", "slope"), GRID)
def test_caustics_agrees(radius, q, phi, slope):
    e = lensing.ellipticity_of(f64(q), f64(phi))
    got = lensing.epl(X, Y, f64(radius), f64(slope), e, CENTRE, terms=60)
    want = func.reduced_deflection_angle_epl(
        *CENTRE, f64(q), f64(phi), f64(radius), f64(slope - 1), X, Y, 200
    )
    torch.testing.assert_close(torch.stack(got), torch.stack(want), rtol=1e-9, atol=1e-12)
    kappa = func.convergence_epl(*CENTRE, f64(q), f64(phi), f64(radius), f64(slope - 1), X, Y)
    ours = lensing.epl_convergence(X, Y, f64(radius), f64(slope), e, CENTRE)
    torch.testing.assert_close(ours, kappa, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("radius", "q", "phi", "slope"), GRID)
def test_lenstronomy_agrees(radius, q, phi, slope):
    profiles = "lenstronomy.LensModel.Profiles"
    epl = importlib.import_module(f"{profiles}.epl").EPL()
    e = lensing.ellipticity_of(f64(q), f64(phi))
    got = lensing.epl(X, Y, f64(radius), f64(slope), e, CENTRE, terms=60)
    want = epl.derivatives(X.numpy(), Y.numpy(), radius, slope, *e.tolist(), *CENTRE.tolist())
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, torch.as_tensor(theirs), rtol=1e-9, atol=1e-12)


def test_lenstronomy_agrees_on_shear_sphere_and_nfw():
    lens_model = importlib.import_module("lenstronomy.LensModel.lens_model")
    centre = {"center_x": 0.05, "center_y": -0.03}
    cases = {
        "SIS": ({"theta_E": 1.3, **centre}, PROFILES["sis"][0]),
        "SHEAR": ({"gamma1": 0.03, "gamma2": -0.05}, PROFILES["shear"][0]),
        "NFW": ({"Rs": 2.0, "alpha_Rs": 0.8, **centre}, PROFILES["nfw"][0]),
    }
    for name, (settings, ours) in cases.items():
        want = lens_model.LensModel([name]).alpha(X.numpy(), Y.numpy(), [settings])
        for a, b in zip(ours(X, Y), want, strict=True):
            torch.testing.assert_close(a, torch.as_tensor(b), rtol=1e-9, atol=1e-12)


def test_halos_add_up_in_chunks():
    g = torch.Generator().manual_seed(0)
    radii, alphas = torch.rand(7, generator=g, dtype=F64) + 0.1, torch.rand(7, generator=g, dtype=F64)
    centres = torch.randn(7, 2, generator=g, dtype=F64)
    want = sum(
        torch.stack(lensing.nfw(X, Y, r, a, c)) for r, a, c in zip(radii, alphas, centres, strict=True)
    )
    for chunk in (None, 3):
        got = lensing.halos(lensing.nfw, X, Y, radii, alphas, centres, chunk=chunk)
        torch.testing.assert_close(torch.stack(got), want, rtol=1e-12, atol=1e-14)


def test_the_mass_of_an_nfw_halo_within_r200_is_its_mass():
    """alpha_Rs, from an integral of the density over a sphere, along another way than the code's."""
    from astropy import constants, units
    from astropy.cosmology import FlatLambdaCDM

    cosmology = FlatLambdaCDM(H0=70, Om0=0.3)
    mass, c = 1e10, 12.0
    r_s, alpha = lensing.nfw_of_mass(f64(mass), f64(c), 0.4, 1.8)
    d_l, d_s = (cosmology.angular_diameter_distance(z) for z in (0.4, 1.8))
    d_ls = (cosmology.comoving_distance(1.8) - cosmology.comoving_distance(0.4)) / 2.8
    r200 = (float(r_s) * c * units.arcsec).to_value("rad") * d_l
    density = mass * units.Msun / (4 / 3 * math.pi * r200**3)
    assert (density / cosmology.critical_density(0.4)).to_value("") == pytest.approx(200, rel=1e-9)
    # Einstein's angle of the projected mass within r_s, ln(1/2) + 1 of m(c)
    projected = mass * (1 - math.log(2)) / (math.log1p(c) - c / (1 + c)) * units.Msun
    angle = 4 * constants.G * projected / constants.c**2 / ((float(r_s) * units.arcsec).to_value("rad") * d_l)
    reduced = (angle.to_value("") * units.rad).to_value("arcsec") * float(d_ls / d_s)
    assert float(alpha) == pytest.approx(reduced, rel=1e-9)


def test_planes_at_one_redshift_are_one_plane():
    planes = [PROFILES["sie"][0], PROFILES["nfw"][0]]
    scaling = lensing.plane_scaling((0.5, 0.5), 2.0)
    got = lensing.trace(X, Y, planes, scaling)
    for i, axis in enumerate((X, Y)):
        want = axis - sum(plane(X, Y)[i] for plane in planes)
        torch.testing.assert_close(got[i], want, rtol=1e-12, atol=1e-14)


def test_two_planes_against_a_ray_drawn_by_hand():
    """Transverse comoving positions of one ray: straight lines, bent at each plane."""
    z, z_s = (0.3, 0.9), 2.0
    planes = [PROFILES["sie"][0], PROFILES["sis"][0]]
    got = lensing.trace(X, Y, planes, lensing.plane_scaling(z, z_s))
    chi = [lensing._distance(0, r) * (1 + r) for r in (*z, z_s)]
    # slope of the ray in comoving space, and its position at each plane
    theta = torch.stack((X, Y))
    slope, position = theta, theta * chi[0]
    for i in (0, 1):
        seen = position / chi[i]
        reduced = torch.stack(planes[i](*seen))
        slope = slope - reduced * chi[2] / (chi[2] - chi[i])
        position = position + slope * (chi[i + 1] - chi[i])
    torch.testing.assert_close(torch.stack(got), position / chi[2], rtol=1e-12, atol=1e-13)


def test_vmap_and_capture_give_the_same():
    from torch.fx.experimental.proxy_tensor import make_fx

    def f(p):
        ax, ay = lensing.epl(X, Y, p[0], p[1], p[2:4], p[4:6])
        return (ax * ay).sum()

    p = torch.stack([f64(1.3, 2.1, 0.1, 0.05, 0.05, -0.03), f64(1.1, 1.9, -0.1, 0.2, 0.0, 0.1)])
    batched = torch.vmap(torch.func.grad(f))
    graph = make_fx(batched)(p)
    each = torch.stack([torch.func.grad(f)(row) for row in p])
    torch.testing.assert_close(batched(p), each, rtol=1e-12, atol=0)
    torch.testing.assert_close(graph(p), each, rtol=1e-12, atol=0)
