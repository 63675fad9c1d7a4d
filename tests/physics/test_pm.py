from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from astrozoo.errors import InputError
from astrozoo.physics.cosmology import growth, make_cosmology
from astrozoo.physics.matter_power import linear_power
from astrozoo.physics.modes import (
    box_modes,
    cross_power,
    field_of,
    make_shells,
    mesh_power,
)
from astrozoo.physics.painting import cloud, paint, read
from astrozoo.physics.pm import (
    Particles,
    checked_displacement,
    checked_mesh,
    checked_times,
    evolve,
    force_kernels,
    lpt,
    mesh_force,
    particles_at_start,
    positions,
    schedule,
    wave_numbers,
)
from astrozoo.physics.pm_adjoint import evolve_reversible

F64 = torch.float64
COSMOLOGY = make_cosmology(omega_m=0.3111)


def noise(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def smooth(n, seed=0, width=1.5):
    """A random field without power on the scale of a cell."""
    waves = wave_numbers((n, n, n), torch.zeros((), dtype=F64))
    square = sum(k**2 for k in waves)
    field = torch.fft.rfftn(noise(n, n, n, seed=seed)) * torch.exp(-square * width**2 / 2)
    field[0, 0, 0] = 0
    field = torch.fft.irfftn(field, s=(n, n, n))
    return field / field.std()


def times(first, last, steps):
    return torch.linspace(first, last, steps + 1, dtype=F64)


def force_on(n, dtype=F64):
    return partial(mesh_force, kernels=force_kernels((n, n, n), torch.zeros((), dtype=dtype)))


# Painting and reading


def test_particles_are_painted_on_the_cells_around_them():
    displacement = torch.zeros(3, 4, 4, 4, dtype=F64)
    displacement[:, 3, 0, 1] = torch.tensor([0.25, -0.5, 8.0], dtype=F64)
    mesh = paint(cloud(displacement))
    expected = torch.ones(4, 4, 4, dtype=F64)
    expected[3, 0, 1] = 0
    for x, share_x in ((3, 0.75), (0, 0.25)):
        for y in (0, 3):
            expected[x, y, 1] += share_x * 0.5  # eight cells along z are two turns
    torch.testing.assert_close(mesh, expected, atol=1e-14, rtol=0)


def test_painting_conserves_mass_and_is_the_adjoint_of_reading():
    particles = cloud(3 * noise(3, 6, 4, 8))
    field = noise(1, 6, 4, 8, seed=1)
    assert float(paint(particles).sum()) == pytest.approx(6 * 4 * 8)
    assert float((paint(particles) * field[0]).sum()) == pytest.approx(float(read(field, particles).sum()))


def test_reading_of_a_linear_field_is_exact():
    displacement = 0.9 * torch.rand(3, 8, 8, 8, generator=torch.Generator().manual_seed(0), dtype=F64)
    ramp = torch.arange(8, dtype=F64)[:, None, None].expand(8, 8, 8)[None]
    inside = read(ramp, cloud(displacement))[0, :-1]  # the last cell reads across the border
    torch.testing.assert_close(inside, (ramp[0] + displacement[0])[:-1])


# Perturbation theory


def test_lpt_of_crossed_waves_is_analytic():
    n, a, b = 16, 0.4, 0.7
    k = 2 * math.pi * 2 / n
    x, y = (k * torch.arange(n, dtype=F64).view(s).expand(n, n, n) for s in ((n, 1, 1), (1, n, 1)))
    first, second = lpt(a * torch.cos(x) + b * torch.cos(y))
    zero = torch.zeros_like(x)
    psi = torch.stack((-a / k * torch.sin(x), -b / k * torch.sin(y), zero))
    torch.testing.assert_close(first, psi, atol=1e-12, rtol=0)
    expected = torch.stack((torch.sin(x) * torch.cos(y), torch.cos(x) * torch.sin(y), zero))
    torch.testing.assert_close(second, a * b / (2 * k) * expected, atol=1e-12, rtol=0)


def pancake(n, steps):
    """Error of a plane wave at a = 1, half way to its collapse, over its largest displacement; its drift."""
    k = 2 * math.pi / n
    wave = 0.5 * torch.cos(k * torch.arange(n, dtype=F64)).view(n, 1, 1).expand(n, n, n).contiguous()
    first, second = lpt(wave)
    assert float(second.abs().max()) < 1e-12
    factors = schedule(times(0.1, 1.0, steps), COSMOLOGY)
    found = evolve(particles_at_start(wave, factors), factors, force_on(n)).displacement
    error = (found[0] - first[0]).abs()
    return float(error.max() / first[0].max()), float(found[1:].abs().max())


def test_a_pancake_moves_as_zeldovich_up_to_an_error_that_halves_with_the_mesh():
    coarse, drift = pancake(16, 5)
    fine, fine_drift = pancake(32, 5)
    assert max(drift, fine_drift) < 1e-12
    assert fine == pytest.approx(0.0623, abs=0.0005)  # measured by another code
    assert fine < 0.55 * coarse


def test_the_power_of_particles_is_that_of_linear_theory_at_early_times():
    n, box = 64, 512.0
    modes = box_modes((n, n, n), box)
    relative = mesh_power(linear_power(modes.k[1:], COSMOLOGY), modes)
    delta = field_of(noise(n, n, n), relative, modes)
    factors = schedule(times(0.1, 0.1, 0), COSMOLOGY)
    found = paint(cloud(positions(delta, factors, force_kernels((n, n, n), delta))))
    waves = wave_numbers((n, n, n), delta)
    window = math.prod(torch.sinc(k / (2 * math.pi)) ** 2 for k in waves)
    found = torch.fft.irfftn(torch.fft.rfftn(found) / window, s=(n, n, n))
    shells = make_shells(modes, n)
    of_found, of_delta = (cross_power(x, x, shells) * shells.size for x in (found, delta))
    for low, high in itertools.pairwise((0.012, 0.035, 0.065, 0.105, 0.15)):
        inside = (shells.k > low) & (shells.k < high)
        ratio = of_found[inside].sum() / of_delta[inside].sum() / factors.start[0] ** 2
        assert float(ratio) == pytest.approx(1, abs=0.01)


# Integration


def test_the_factors_of_a_schedule_are_those_of_fastpm():
    a = times(0.2, 1.0, 2)
    factors = schedule(a, COSMOLOGY)
    middle = (a[:-1] * a[1:]).sqrt()
    at, half = growth(a, COSMOLOGY), growth(middle, COSMOLOGY)

    def rate(g, time):
        dark = 1 - COSMOLOGY.omega_m
        return time**2 * (COSMOLOGY.omega_m / time**3 + dark).sqrt() * g.f1 * g.d1

    g_at, g_half = rate(at, a), rate(half, middle)
    torch.testing.assert_close(factors.drifts, (at.d1[1:] - at.d1[:-1]) / g_half)
    torch.testing.assert_close(factors.kicks[0], (g_half[0] - g_at[0]) / at.d1[0])
    torch.testing.assert_close(factors.kicks[-1], (g_at[2] - g_half[1]) / at.d1[2])
    torch.testing.assert_close(factors.kicks[1], (g_half[1] - g_half[0]) / at.d1[1])


def test_a_run_of_no_steps_is_lpt():
    delta = smooth(8)
    factors = schedule(times(0.5, 0.5, 0), COSMOLOGY)
    g = growth(torch.tensor([0.5]), COSMOLOGY)
    first, second = lpt(delta)
    found = positions(delta, factors, force_kernels((8, 8, 8), delta))
    torch.testing.assert_close(found, g.d1 * first + g.d2 * second)


def test_the_reversible_adjoint_is_the_gradient_of_autograd():
    n = 8
    start = Particles(noise(3, n, n, n), 0.3 * noise(3, n, n, n, seed=1))
    factors = schedule(times(0.2, 1.0, 4), COSMOLOGY)
    target, force = noise(n, n, n, seed=2), force_on(n)

    def misfit(run, particles, kicks, drifts):
        end = run(particles, factors._replace(kicks=kicks, drifts=drifts), force)
        return ((paint(cloud(end.displacement)) - target) ** 2).sum() + (end.momentum**3).sum()

    arguments = (start, factors.kicks, factors.drifts)
    by_autograd, by_adjoint = (
        torch.func.grad(partial(misfit, run), argnums=(0, 1, 2))(*arguments)
        for run in (evolve, evolve_reversible)
    )
    for exact, ours in zip(
        (*by_autograd[0], *by_autograd[1:]), (*by_adjoint[0], *by_adjoint[1:]), strict=True
    ):
        torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-10 * float(exact.abs().max()))


@pytest.mark.parametrize("run", [evolve, evolve_reversible])
def test_gradients_are_captured_under_vmap_and_equal_finite_differences(run):
    n = 4
    factors, force = schedule(times(0.3, 1.0, 2), COSMOLOGY), force_on(n)

    def loss(delta):
        end = run(particles_at_start(delta, factors), factors, force)
        return paint(cloud(end.displacement)).square().sum() + end.momentum.square().sum()

    deltas = 0.3 * noise(2, n, n, n)
    captured = make_fx(torch.func.vmap(torch.func.grad(loss)))(deltas)
    gradient = captured(deltas)
    direction = noise(n, n, n, seed=5)
    difference = (loss(deltas[1] + 1e-6 * direction) - loss(deltas[1] - 1e-6 * direction)) / 2e-6
    assert float((gradient[1] * direction).sum()) == pytest.approx(float(difference), rel=1e-6)


def test_single_precision_agrees_with_double():
    n = 16
    factors = schedule(times(0.1, 1.0, 3), COSMOLOGY)
    single, double = (
        positions(smooth(n).to(t), factors, force_kernels((n, n, n), torch.zeros((), dtype=t)))
        for t in (torch.float32, F64)
    )
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.to(F64), double, atol=2e-5, rtol=0)


# Bad input


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 7), (2, 8, 8)])
def test_meshes_with_odd_sides_are_refused(shape):
    with pytest.raises(InputError, match=r"mesh: .* expected three even sides of 4 cells or more"):
        checked_mesh(shape)


@pytest.mark.parametrize("a", [[0.5, 0.4], [0.0, 1.0], [0.5, 1.5], []])
def test_scale_factors_have_to_increase(a):
    with pytest.raises(InputError, match=r"scale factors: .* increasing ones above 0, up to 1"):
        checked_times(torch.tensor(a))


@pytest.mark.parametrize("value", [math.nan, 1e30, -9.0])
def test_particles_that_left_are_reported(value):
    displacement = torch.zeros(3, 8, 8, 8)
    displacement[1, 2, 3, 4] = value
    with pytest.raises(InputError, match="got 1 of 512 particles that are NaN or left the box"):
        checked_displacement(displacement)
