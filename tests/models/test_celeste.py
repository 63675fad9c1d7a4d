"""Celeste: the hand-written densities against the Pyro model, and the errors of the published code."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy.stats import multivariate_normal, poisson
from torch import Tensor

from astrozoo.data.images import Field
from astrozoo.density import log_density
from astrozoo.infer.maximise import maximise
from astrozoo.models.celeste import (
    Celeste,
    ColourPrior,
    Patch,
    galaxy_images,
    load_prior,
    log_band_flux,
    problem,
    simulate,
    star_images,
)
from astrozoo.models.celeste_density import TypedDensity
from astrozoo.survey.celeste.canvas import Canvas
from astrozoo.survey.partition import Sources

F64 = torch.float64
EXACT = {"rtol": 1e-10, "atol": 1e-10}
SHAPE_SITES = ("log_radius", "ellipticity", "dev_logit")
PRIOR = load_prior()


@pytest.fixture(scope="module")
def patches() -> Patch:
    """Two random patches of a source in four images, three bands: PSFs off centre, sheared pixels, holes."""
    g = torch.Generator().manual_seed(5)
    b, images, k, side = 2, 4, 3, 7

    def normal(*shape: int) -> Tensor:
        return torch.randn(b, *shape, generator=g, dtype=F64)

    grid = torch.arange(side, dtype=F64) - side // 2
    yy, xx = torch.meshgrid(grid, grid, indexing="ij")
    root = 0.3 * normal(images, k, 2, 2) + 1.2 * torch.eye(2, dtype=F64)
    covariance = root @ root.mT
    turn = torch.tensor([[-2.0, 0.4], [0.3, 2.2]], dtype=F64) + 0.1 * normal(images, 2, 2)
    counts = torch.poisson(400 + 100 * torch.rand(b, images, side**2, generator=g, dtype=F64), generator=g)
    return Patch(
        counts=counts,
        background=300 + 20 * torch.rand(b, images, side**2, generator=g, dtype=F64),
        mask=(torch.rand(b, images, side**2, generator=g) > 0.2).to(F64),
        pixels=torch.stack((xx.flatten(), yy.flatten())) + 0.4 * normal(images, 2, 1),
        calibration=600 + 50 * normal(images),
        band=torch.tensor([2, 0, 4, 2]).expand(b, images).clone(),
        jacobian=turn,
        psf_weights=torch.softmax(normal(images, k), -1),
        psf_means=0.3 * normal(images, k, 2),
        psf_covariances=covariance.flatten(-2)[..., [0, 1, 3]],
        anchor=0.2 * normal(1, 2),
    )


def one(patches: Patch, i: int) -> Patch:
    return Patch(*(t[i] for t in patches))


def vectors(star: bool) -> Tensor:
    bending = [0.1, -0.2] if star else [0.1, -0.2, 0.3, 0.4, -0.5, 0.7]
    first = torch.tensor([*bending, 1.5, 0.9, 0.6, 0.3, 0.2], dtype=F64)
    return torch.stack((first, 0.7 * first - 0.1))


def sites(u: Tensor, star: bool) -> dict[str, Tensor]:
    """The model's latents of one source; of a star, with shapes that are of no consequence."""
    n = 2 if star else 6
    shape = u.new_tensor([9.0, 0.2, 0.1, -3.0]) if star else u[2:6]
    values = {"offset": u[:2], "log_radius": shape[0], "ellipticity": shape[1:3], "dev_logit": shape[3]}
    values |= {"log_flux": u[n], "colour": u[n + 1 :], "is_star": u.new_tensor(float(star))}
    return {name: value[None] for name, value in values.items()}


def log_joint(patch: Patch, u: Tensor, star: bool) -> Tensor:
    """Pyro's, without the prior of a star's meaningless shape."""
    trace = poutine.trace(poutine.condition(Celeste(PRIOR), sites(u, star))).get_trace(patch)
    without = SHAPE_SITES if star else ()
    return trace.log_prob_sum(lambda name, site: name not in without)


def brute_force(patch: Patch, u: Tensor) -> float:
    """The log likelihood of a star by scipy, pixel by pixel."""
    centres = (patch.jacobian @ u[:2]).numpy()
    flux = log_band_flux(u[2], u[3:], PRIOR.reference).exp().numpy()
    total = 0.0
    for i in range(len(patch.counts)):
        covariances = patch.psf_covariances[i][:, [0, 1, 1, 2]].reshape(-1, 2, 2).numpy()
        parts = zip(patch.psf_weights[i].tolist(), patch.psf_means[i].numpy(), covariances, strict=True)
        image = sum(
            w * multivariate_normal(centres[i] + m, c).pdf(patch.pixels[i].T.numpy()) for w, m, c in parts
        )
        rate = patch.background[i].numpy() + float(patch.calibration[i]) * flux[int(patch.band[i])] * image
        total += float((patch.mask[i].numpy() * poisson(rate).logpmf(patch.counts[i].numpy())).sum())
    return total


@pytest.mark.parametrize("star", [True, False])
def test_the_typed_density_is_the_models_own_with_its_derivatives(patches, star):
    density, u = TypedDensity(patches, PRIOR, star=star), vectors(star)
    value, gradient, hessian = density.value_grad_hessian(u)
    torch.testing.assert_close(density.values(u)[:, 0], value, **EXACT)
    torch.testing.assert_close(density.value_and_grad(u)[1], gradient, **EXACT)
    for i in range(len(u)):

        def f(x: Tensor, i: int = i) -> Tensor:
            return log_joint(one(patches, i), x, star)

        torch.testing.assert_close(value[i], f(u[i]), **EXACT)
        torch.testing.assert_close(gradient[i], torch.autograd.functional.jacobian(f, u[i]), **EXACT)
        torch.testing.assert_close(hessian[i], torch.autograd.functional.hessian(f, u[i]), **EXACT)


@pytest.mark.parametrize("star", [True, False])
@pytest.mark.parametrize(("log_flux", "size"), [(1.0, 17), (7.0, 81)])  # r = 21.4, and 14.9 in a wide patch
def test_images_in_single_precision_move_neither_mode_nor_evidence(star, log_flux, size):
    patch = Patch(*(t[None] for t in simulate(0, size=size)[0]))
    u = vectors(star)[:1]
    u[:, -5] = log_flux
    exact = TypedDensity(patch, PRIOR, star=star)
    rate = patch.background + exact.electrons(u)[..., None] * exact.images(u[:, : exact.n_bending])
    patch = patch._replace(counts=torch.poisson(rate, generator=torch.Generator().manual_seed(0)))
    exact = TypedDensity(patch, PRIOR, star=star)
    single = TypedDensity(patch._replace(pixels=patch.pixels.float()), PRIOR, star=star)
    value, gradient, hessian = exact.value_grad_hessian(u)
    found = single.value_grad_hessian(u)
    assert all(t.dtype == F64 for t in found)
    root = torch.linalg.cholesky(torch.linalg.inv(-hessian[0]))  # what follows is in posterior SDs
    assert abs(float(found[0] - value)) < 1e-3
    assert (root.mT @ (found[1] - gradient)[0]).norm() < 1e-3
    assert (root.mT @ (found[2] - hessian)[0] @ root).norm() < 1e-3
    assert abs(float(single.values(u) - exact.values(u))) < 1e-3


def test_galaxies_of_any_shape_are_finite_in_single_precision():
    n, g = 200, torch.Generator().manual_seed(0)
    patch = simulate(0, size=17)[0]
    patch = Patch(*(t.expand(n, *t.shape) for t in patch._replace(pixels=patch.pixels.float())))
    u = torch.randn(n, 11, generator=g, dtype=F64)
    u[:, 2] = 20 * torch.rand(n, generator=g) - 8  # ln arcsec
    u[:, 3:5] *= 4  # some are needles
    found = TypedDensity(patch, PRIOR, star=False).value_grad_hessian(u)
    assert all(t.isfinite().all() for t in found)


@pytest.mark.parametrize("star", [True, False])
def test_fluxes_tried_on_rendered_images_give_the_same_density(patches, star):
    density, u = TypedDensity(patches, PRIOR, star=star), vectors(star)
    if star:
        images = star_images(patches, u[:, :2])
    else:
        images = galaxy_images(patches, u[:, :2], u[:, 2], u[:, 3:5], u[:, 5])
    got = density.log_joint_of_images(images[:, None], u[:, None, None])
    torch.testing.assert_close(got[:, 0, 0], density.values(u)[:, 0], **EXACT)
    rows = density.take(torch.tensor([1]))
    torch.testing.assert_close(rows.values(u[1:]), density.values(u)[1:], **EXACT)


def test_the_types_are_summed_out_of_the_captured_model(patches):
    patch, u = one(patches, 0), vectors(star=False)[0]
    captured = log_density(problem(patch), compile="never")
    values = sites(u, star=False)
    del values["is_star"]
    z = captured.layout.unconstrain(values)
    as_galaxy = log_joint(patch, u, star=False)
    values_star = torch.cat((u[:2], u[6:]))
    nodes = poutine.trace(poutine.condition(Celeste(PRIOR), sites(u, star=False))).get_trace(patch).nodes
    shape_prior = sum(nodes[name]["fn"].log_prob(values[name]).sum() for name in SHAPE_SITES)
    as_star = log_joint(patch, values_star, star=True) + shape_prior
    torch.testing.assert_close(captured.f(z, patch), torch.logaddexp(as_galaxy, as_star), **EXACT)


def test_the_mixtures_of_the_two_types_may_differ_in_size(patches):
    is_star = torch.tensor([0.0, 1.0], dtype=F64)
    galaxy, star = PRIOR.colour
    fewer = ColourPrior(star.weights[:2] / star.weights[:2].sum(), star.means[:2], star.covariances[:2])
    small = replace(PRIOR, colour=(galaxy, fewer))
    values = {
        name: value.expand(2, *value.shape[1:]) for name, value in sites(vectors(False)[0], False).items()
    }
    patch = one(patches, 0)._replace(anchor=torch.zeros(2, 2, dtype=F64))
    model = poutine.condition(Celeste(small), values | {"is_star": is_star})
    got = poutine.trace(model).get_trace(patch).nodes["colour"]
    for i, mixture in enumerate(small.colour):
        parts = dist.MultivariateNormal(mixture.means, mixture.covariances).log_prob(values["colour"][i])
        expected = torch.logsumexp(mixture.weights.log() + parts, 0)
        torch.testing.assert_close(got["fn"].log_prob(got["value"])[i], expected, **EXACT)


def test_the_radius_prior_is_log_normal_with_its_jacobian_and_of_galaxies_alone(patches):
    """Published error 1."""
    dark = patches._replace(mask=torch.zeros_like(patches.mask))
    galaxy = TypedDensity(dark, PRIOR, star=False)
    u = vectors(star=False)
    wide = u.clone()
    wide[:, 2] += 1.3
    r, r_wide = u[:, 2].exp(), wide[:, 2].exp()
    log_normal = dist.LogNormal(r.new_tensor(PRIOR.log_radius_mean), PRIOR.log_radius_sd)
    expected = (log_normal.log_prob(r_wide) + r_wide.log()) - (log_normal.log_prob(r) + r.log())
    torch.testing.assert_close((galaxy.values(wide) - galaxy.values(u))[:, 0], expected, **EXACT)
    assert TypedDensity(dark, PRIOR, star=True).dim == galaxy.dim - 4


def test_stars_and_point_like_galaxies_look_the_same(patches):
    """Published error 3: both are seen through one PSF, which holds all the light."""
    patch = one(patches, 0)
    offset = torch.tensor([[0.1, -0.2]], dtype=F64)
    eta, shrunk = torch.tensor([[0.5, 0.3]], dtype=F64), torch.tensor([-14.0], dtype=F64)
    star = star_images(patch, offset)
    for dev_logit in (-3.0, 0.0, 3.0):
        galaxy = galaxy_images(patch, offset, shrunk, eta, torch.tensor([dev_logit], dtype=F64))
        torch.testing.assert_close(galaxy, star, rtol=2e-7, atol=1e-9)
    grid = torch.arange(-60, 61, dtype=F64)
    pixels = torch.stack([m.flatten() for m in torch.meshgrid(grid, grid, indexing="ij")])
    whole = patch._replace(pixels=pixels.expand(4, 2, -1), counts=pixels.new_zeros(4, pixels.shape[-1]))
    torch.testing.assert_close(
        star_images(whole, offset).sum(-1), torch.ones(1, 4, dtype=F64), rtol=1e-4, atol=0
    )
    disc = galaxy_images(whole, offset, torch.tensor([0.5], dtype=F64), eta, torch.tensor([-30.0], dtype=F64))
    torch.testing.assert_close(disc.sum(-1), torch.ones(1, 4, dtype=F64), rtol=1e-4, atol=0)


def test_a_source_keeps_its_light_in_the_last_column_and_row(patches):
    """Published error 6; also all of the star's likelihood, against scipy."""
    for corner in (0, -1):
        patch = one(patches, 0)
        target = patch.pixels[0, :, corner]
        u = vectors(star=True)[0]
        u[:2] = torch.linalg.solve(patch.jacobian[0], target)
        density = TypedDensity(Patch(*(t[None] for t in patch)), PRIOR, star=True)
        dark = TypedDensity(Patch(*(t[None] for t in patch._replace(mask=0 * patch.mask))), PRIOR, star=True)
        likelihood = (density.values(u[None]) - dark.values(u[None])).item()
        assert likelihood == pytest.approx(brute_force(patch, u), rel=1e-10)
        image = star_images(patch, u[None, :2])[0, 0].reshape(7, 7)
        assert image[corner, corner] > image[3, 3]


def test_a_star_at_a_known_sky_position_is_found_there(simulated_field: Field):
    """Published error 8: FITS coordinates count from 1, arrays from 0, both at the centres of pixels."""
    wcs = simulated_field.images[0].wcs
    x, y = map(float, simulated_field.meta["star"].split())
    (ra,), (dec,) = wcs.all_pix2world([x + 1], [y + 1], 1)
    sources = Sources.locate(simulated_field, np.array([ra]), np.array([dec]), np.array([8]))
    np.testing.assert_allclose(sources.xy[:, 0], [(x, y), (x + 2.4, y - 1.3)], atol=1e-6)
    canvas = Canvas(simulated_field, sources, PRIOR.bands)
    own = torch.zeros(1, 2, 17**2, dtype=F64)
    patch = canvas.patches(np.array([0]), own)
    expected = simulated_field.images[0].counts[round(y), round(x)]
    nearest = int(patch.pixels[0, 0].square().sum(0).argmin())
    assert float(patch.counts[0, 0, nearest]) == expected
    density = TypedDensity(patch, PRIOR, star=True)
    u = torch.tensor([[0.0, 0.0, math.log(30), 0.0, math.log(30 / 20), 0.0, 0.0]], dtype=F64)
    for _ in range(6):
        _, gradient, hessian = density.value_grad_hessian(u)
        u = u - torch.linalg.solve(hessian, gradient)
    in_pixels = (patch.jacobian[0] @ u[0, :2]).abs().max()
    assert float(in_pixels) < 0.1


def test_a_simulated_patch_is_that_of_its_seed():
    first, truth = simulate(3, sources=2, size=9)
    again, same = simulate(3, sources=2, size=9)
    other, _ = simulate(4, sources=2, size=9)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    torch.testing.assert_close(truth, same, rtol=0, atol=0)
    assert not torch.equal(first.counts, other.counts)
    assert (first.anchor.shape, first.counts.shape) == ((2, 2), (5, 81))


def test_simulations_leave_the_global_generator_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    simulate(0, size=5)
    assert torch.equal(before, torch.get_rng_state())


def test_simulations_come_from_the_model():
    """Latents from the prior (above the floor of flux), pixels Poisson about the model's light."""
    drawn = [simulate(seed, size=9, snr_floor=1e-6) for seed in range(100)]
    star = torch.cat([truth["is_star"] for _, truth in drawn])
    assert abs(float(star.mean()) - PRIOR.prob_star) < 4 * math.sqrt(0.25 / len(drawn))
    radius = torch.cat([truth["log_radius"] for _, truth in drawn])
    assert abs(float(radius.mean()) - PRIOR.log_radius_mean) < 4 * PRIOR.log_radius_sd / math.sqrt(len(drawn))
    assert float(radius.std()) == pytest.approx(PRIOR.log_radius_sd, rel=0.25)
    chi2 = []
    for patch, truth in drawn:
        image = star_images(patch, truth["offset"])
        if truth["is_star"] < 0.5:
            shape = (truth[name] for name in SHAPE_SITES)
            image = galaxy_images(patch, truth["offset"], *shape)
        flux = log_band_flux(truth["log_flux"], truth["colour"], PRIOR.reference).exp()[..., patch.band]
        rate = patch.background + patch.calibration[:, None] * (flux[..., None] * image)[0]
        chi2.append(float(((patch.counts - rate) ** 2 / rate).mean()))
    assert np.mean(chi2) == pytest.approx(1.0, abs=4 * math.sqrt(2 / (100 * 405)))


def test_a_wider_psf_is_seen_by_its_stars():
    """One step of Gauss and Newton from a PSF said to be 5 % too small in area, against the truth."""
    prior = load_prior()
    patches, modes = [], []
    for seed in range(6):
        patch, truth = simulate(seed, snr_floor=300.0)
        patches.append(patch._replace(psf_covariances=patch.psf_covariances / 1.05))
        modes.append(
            torch.cat((truth["offset"][0], truth["log_flux"][:1], truth["colour"][0])),
        )
    density = TypedDensity(Patch(*(torch.stack(t) for t in zip(*patches, strict=True))), prior, star=True)
    found = maximise(density, torch.stack(modes), max_iterations=50, tolerance=1e-3)
    delta, error = density.psf_width(found.w, torch.linalg.inv(-found.hessian))
    is_star = torch.tensor([bool(simulate(s, snr_floor=300.0)[1]["is_star"][0] > 0.5) for s in range(6)])
    pull = ((delta - 0.05) / error)[is_star]
    assert is_star.sum() >= 2
    # a chi2 of as many degrees of freedom as pulls, at five of its standard deviations
    assert float(pull.square().sum()) < pull.numel() + 5 * (2 * pull.numel()) ** 0.5
    assert float((delta[is_star] / error[is_star] ** 2).sum() / (error[is_star] ** -2).sum()) > 0.03


def test_galaxies_below_the_least_radius_fall_off_and_derivatives_follow():
    patch, _ = simulate(0)
    batch = Patch(*(t[None] for t in patch))
    free = TypedDensity(batch, load_prior(), star=False)
    edged = TypedDensity(batch, load_prior(), star=False, log_least_radius=torch.tensor([-1.9], dtype=F64))
    u = torch.zeros(1, 11, dtype=F64)
    for log_radius, below in ((-1.0, 0.0), (-2.1, 4.0)):
        u[:, 2] = log_radius
        change = edged.value_grad_hessian(u), free.value_grad_hessian(u)
        value, grad, hessian = (a - b for a, b in zip(*change, strict=True))
        torch.testing.assert_close(value, torch.tensor([-(below**2) / 2], dtype=F64), rtol=1e-6, atol=1e-8)
        assert float(grad[0, 2]) == pytest.approx(below / 0.05, abs=1e-6)
        assert float(hessian[0, 2, 2]) == pytest.approx(-((below > 0) / 0.05**2), abs=1e-6)
        assert float(grad.abs().sum() - grad[0, 2].abs()) < 1e-6


def test_fluxes_and_colours_start_from_the_pixels(patches):
    log_flux = torch.tensor([17.0, 16.0], dtype=F64)
    colour = torch.tensor([[0.9, 0.6, 0.3, 0.2], [1.5, -0.2, 0.4, 0.1]], dtype=F64)
    anchor = torch.tensor([[0.3, -0.4], [-0.5, 0.6]], dtype=F64)
    flux = log_band_flux(log_flux, colour, PRIOR.reference).exp()
    bright = []
    for i in range(2):
        patch = one(patches, i)._replace(anchor=anchor)
        electrons = patch.calibration * flux[:, patch.band]  # [source, image]
        light = (electrons[..., None] * star_images(patch, anchor)).sum(0)
        bright.append(patch._replace(counts=patch.background + light))
    start = problem(Patch(*(torch.stack(t) for t in zip(*bright, strict=True)))).start
    # bands 1 and 3 have no image: of the four colours the sums over them alone are seen
    seen = torch.stack((colour[:, 0] + colour[:, 1], colour[:, 2] + colour[:, 3]), 1)
    got = start["colour"].unflatten(-1, (2, 2)).sum(-1)
    torch.testing.assert_close(start["log_flux"], log_flux.expand(2, 2), rtol=1e-6, atol=0)
    torch.testing.assert_close(got, seen.expand(2, 2, 2), rtol=0, atol=1e-5)
    alone = problem(bright[1]).start
    for name, value in alone.items():
        torch.testing.assert_close(value, start[name][1], **EXACT)


@pytest.mark.parametrize("background", [0.0, 300.0])
def test_sources_that_nothing_is_seen_of_start_at_the_priors_mean(patches, background):
    patch = one(patches, 0)
    level = torch.full_like(patch.background, background)
    twice = patch.anchor.expand(2, 2)
    start = problem(patch._replace(counts=0.5 * level, background=level, anchor=twice)).start
    shares = (1 - PRIOR.prob_star, PRIOR.prob_star)
    log_flux = sum(share * mean for share, mean in zip(shares, PRIOR.log_flux_mean, strict=True))
    colour = sum(share * c.weights @ c.means for share, c in zip(shares, PRIOR.colour, strict=True))
    torch.testing.assert_close(start["log_flux"], torch.full((2,), log_flux, dtype=F64), **EXACT)
    torch.testing.assert_close(start["colour"], colour.expand(2, 4), **EXACT)
