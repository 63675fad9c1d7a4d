"""Overlapping sources, together, against derivatives of the pixels' density by autograd."""

import numpy as np
import pytest
import torch
from astropy.table import Table

from astrozoo.checkpoint import Checkpoint
from astrozoo.data.simulate import simulate_field
from astrozoo.models.celeste import load_prior, log_band_flux, star_images
from astrozoo.survey.celeste import joint
from astrozoo.survey.celeste.posterior import draw_type
from astrozoo.survey.celeste.response import respond
from astrozoo.survey.celeste.sweeps import Sweeps

FLUX = np.array([20.0, 12.0])


def two_stars(apart):
    """Two stars some pixels apart, after one sweep."""
    missing = [np.nan, np.nan]
    shape = dict.fromkeys(("radius", "axis_ratio", "angle", "dev_fraction"), missing)
    stars = Table({"is_star": [True, True], "x": [40.0, 40.0 + apart], "y": [40.3, 41.0], **shape})
    for band, scale in zip("ugriz", (0.3, 0.5, 1.0, 1.4, 1.6), strict=True):
        stars[f"flux_{band}"] = scale * FLUX
    images, truth = simulate_field(sources=stars, seed=3, shape=(80, 80), bands="ugriz")
    job = Sweeps(images, truth[["ra", "dec"]], load_prior(), 0, False, Checkpoint(None, {}))
    job.run(1, fit_sky=False)
    for name, lead in (("star", 1000.0), ("galaxy", 0.0)):  # stars for certain
        job.state.evidence[name][:] = lead
    rows = np.arange(2)
    job.repaint(rows)
    curvature = job.density(job.patch(rows)[0], rows, star=True).value_grad_hessian(job.state.mode["star"])[2]
    job.state.covariance["star"] = torch.linalg.inv(-curvature)
    return job


@pytest.fixture
def blend():
    return two_stars(4.0)


@pytest.fixture
def close_blend():
    """So close that a star's errors are much larger than beside a neighbour held fixed."""
    return two_stars(2.2)


def joint_density(job, u):
    """log p of the whole field and both stars, from the model's own rendering."""
    prior, total = load_prior(), 0.0
    rows = np.arange(2)
    patch, _ = job.patch(rows)
    image = star_images(patch._replace(pixels=patch.pixels.double()), u[:, :2])
    flux = log_band_flux(u[:, 2], u[:, 3:], prior.reference).exp()
    light = (patch.calibration * flux)[..., None] * image
    for k in range(5):
        at = job.canvas._index(rows, k)
        rate = job.canvas.sky[k].index_add(0, at.flatten(), light[:, k].flatten())
        counts, weight = job.canvas.counts[k], job.canvas.weight[k]
        total = total + (weight * (counts * rate.log() - rate)).sum()
    return total + job.density(patch, rows, star=True).log_prior(u).sum()


def curvature(job, u):
    """Minus the joint Hessian."""
    return -torch.autograd.functional.hessian(
        lambda flat: joint_density(job, flat.reshape(u.shape)), u.detach().flatten()
    )


def newton(job):
    """The length of the joint Newton step [standard deviations], and the step."""
    u = job.state.mode["star"].clone().requires_grad_()
    (g,) = torch.autograd.grad(joint_density(job, u), u)
    step = torch.linalg.solve(curvature(job, u), g.flatten())
    return float((step @ g.flatten()).sqrt()), step.reshape(u.shape)


def test_the_step_is_newton_s_in_all_sources_together(blend, monkeypatch):
    _, expected = newton(blend)
    monkeypatch.setattr(joint, "_MAX_STEP", 1e3)
    steps = joint._steps(blend.canvas, [joint._linearised(blend, np.arange(2))])
    assert set(steps[0]) == {"star"}
    # the Krylov method ends at a tenth of the gradient in the metric of each source's own curvature
    white = torch.linalg.solve(
        torch.linalg.cholesky(blend.state.covariance["star"]), steps[0]["star"] - expected
    )
    scale = torch.linalg.solve(torch.linalg.cholesky(blend.state.covariance["star"]), expected)
    assert white.norm() < 0.3 * scale.norm()


def test_few_steps_reach_the_joint_mode_that_fits_in_turn_approach_slowly(blend):
    before, _ = newton(blend)
    for _ in range(5):
        blend.state.waiting[:] = True
        joint.settle(blend)
    after, _ = newton(blend)
    assert before > 5
    assert after < 0.5
    z = (blend.state.mode["star"][:, 2].numpy() - np.log(FLUX)) / 0.02
    assert np.abs(z).max() < 5  # of a generous error for S/N of a hundred


def test_a_step_that_lowers_the_density_is_not_taken(blend, monkeypatch):
    before = blend.state.mode["star"].clone()
    uphill = joint._steps

    def backwards(canvas, batches):
        return [{name: -step for name, step in held.items()} for held in uphill(canvas, batches)]

    monkeypatch.setattr(joint, "_steps", backwards)
    blend.state.waiting[:] = True
    joint.settle(blend)
    torch.testing.assert_close(blend.state.mode["star"], before, rtol=0, atol=1e-12)


def test_sources_that_hang_together_are_one_group():
    adjacent = [np.array([1]), np.array([0, 2]), np.array([1, 3]), np.array([2]), np.array([], int)]
    group = joint._groups(adjacent, np.array([True, True, False, True, True]))
    assert group[0] == group[1]
    assert len({group[0], group[3], group[4]}) == 3
    assert group[2] == -1


def settled(job):
    """At the joint mode, with the curvature that each source has there given the other."""
    for _ in range(8):
        job.state.waiting[:] = True
        joint.settle(job)
    rows = np.arange(2)
    hessian = job.density(job.patch(rows)[0], rows, star=True).value_grad_hessian(job.state.mode["star"])[2]
    job.state.covariance["star"] = torch.linalg.inv(-hessian)
    return rows, *job.patch(rows)


def test_a_neighbour_that_gives_way_leaves_the_marginal_covariance(close_blend):
    blend = close_blend
    rows, patch, own = settled(blend)
    u, given = blend.state.mode["star"], blend.state.covariance["star"]
    response = respond(blend, rows, patch, own)
    _, found = response.widened(blend.density(patch, rows, star=True), u, given)
    joint_covariance = torch.linalg.inv(curvature(blend, u))
    for i in rows:
        own_block = slice(7 * i, 7 * i + 7)
        sd = joint_covariance[own_block, own_block].diagonal().sqrt()
        assert (sd / given[i].diagonal().sqrt()).max() > 1.3  # or there would be nothing to test
        # light is linearised, in single precision, on the pixels of one source's patch
        torch.testing.assert_close(found[i].diagonal().sqrt(), sd, rtol=0.02, atol=0)
    images = blend.density(patch, rows, star=True).images(u[:, None, :2])
    electrons = blend.density(patch, rows, star=True).electrons(u)[:, None, None]
    # nothing is gained at the mode, beside which the neighbours have settled
    assert response.gain(images, electrons, torch.zeros(2, 1, 1)).abs().max() < 1e-4


def test_a_neighbour_never_makes_light_more_probable_that_is_far_too_bright(close_blend):
    rows, patch, own = settled(close_blend)
    u = close_blend.state.mode["star"]
    density, response = close_blend.density(patch, rows, star=True), respond(close_blend, rows, patch, own)
    brighter = u[:, None].repeat(1, 8, 1)
    brighter[..., 2] += torch.arange(8)
    images, electrons = density.images(u[:, None, :2]), density.electrons(brighter)[:, None]
    values = torch.stack([density.values(v)[:, 0] - density.log_prior(v) for v in brighter.unbind(1)], 1)
    loss = (density.log_likelihood(own)[:, None] - values)[:, None]
    gain = response.gain(images, electrons, loss)
    assert (loss[..., 1:] > 100).all()
    assert (gain <= loss + 1e-6).all()  # by e^3 and more, the quadratic form alone exceeds the loss
    assert (0.5 * ((electrons @ torch.einsum("bqip,bmip->bmiq", response.factor, images).double()
            - response.at[:, None, None]) ** 2).sum(-1) > loss)[..., 3:].all()  # fmt: skip


def test_draws_of_a_blend_are_as_wide_as_the_joint_posterior(close_blend):
    blend = close_blend
    rows, patch, own = settled(blend)
    u, given = blend.state.mode["star"], blend.state.covariance["star"]
    density, response = blend.density(patch, rows, star=True), respond(blend, rows, patch, own)
    drawn = draw_type(density, u, given, torch.ones(2, dtype=torch.bool), seed=0, response=response)
    weight = drawn.log_weight.exp()
    effective = float((weight.sum(1) ** 2 / weight.square().sum(1)).min())
    mean = torch.einsum("bn,bni->bi", weight, drawn.u)
    sd = torch.einsum("bn,bni->bi", weight, (drawn.u - mean[:, None]) ** 2).sqrt()
    expected = torch.linalg.inv(curvature(blend, u)).diagonal().sqrt().reshape(2, 7)
    # of eight draws that share a rendering, one is independent
    assert (sd / expected - 1).abs().max() < 4 / np.sqrt(2 * effective / 8)
