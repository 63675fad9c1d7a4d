"""Draws of single sources against grids, long plain runs and what is known of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from astrozoo.infer.maximise import maximise
from astrozoo.models.celeste import (
    ColourPrior,
    Patch,
    galaxy_images,
    load_prior,
    log_band_flux,
    simulate,
    star_images,
)
from astrozoo.models.celeste_density import TypedDensity
from astrozoo.survey.celeste.posterior import TypedDraws, draw_type, mix_types

SIZE, R = 15, 2


def r_prior():
    """r and a band that no image has: the colour, the last parameter, keeps its normal prior."""
    one = torch.ones(1, dtype=torch.float64)
    colour = ColourPrior(one, one.new_full((1, 1), 0.3), one.new_full((1, 1, 1), 0.01))
    return replace(load_prior(), bands=("r", "i"), reference=0, colour=(colour, colour))


def r_alone(patch):
    taken = Patch(*(t[R : R + 1] for t in patch[:-1]), patch.anchor)
    return taken._replace(band=torch.zeros(1, dtype=torch.long))


def r_patch(flux, *, radius, seed):
    """r alone, [1, ...]: a galaxy of known flux and radius, or a star where the radius is None."""
    patch = r_alone(simulate(seed, size=SIZE)[0])
    offset = torch.tensor([0.1, -0.15], dtype=torch.float64)
    if radius is None:
        image = star_images(patch, offset)
    else:
        shape = (math.log(radius), (0.3, -0.2), -1.0)
        image = galaxy_images(patch, offset, *(torch.tensor(v, dtype=torch.float64) for v in shape))
    rate = patch.background + flux * patch.calibration[:, None] * image
    counts = torch.from_numpy(np.random.default_rng(seed).poisson(rate.numpy()).astype(float))
    return Patch(*(t[None] for t in patch._replace(counts=counts)))


def guide(density, start):
    found = maximise(density, torch.tensor([start], dtype=torch.float64), max_iterations=80, tolerance=1e-4)
    return found.w, torch.linalg.inv(-found.hessian)


def repeated(patch, n):
    return Patch(*(t.expand(n, *t.shape[1:]) for t in patch))


def effective(log_weight, block=1):
    """Effective number of draws, or of blocks of draws that share a rendering."""
    weight = torch.exp(log_weight - log_weight.max()).reshape(-1, block).sum(-1)
    return float(weight.sum() ** 2 / weight.square().sum())


def moments(log_weight, u):
    weight = torch.softmax(log_weight, -1)
    mean = weight @ u
    return mean, (weight @ (u - mean).square()).sqrt()


YES = torch.ones(1, dtype=torch.bool)


@pytest.mark.parametrize("flux", [3.0, 40.0])
def test_a_star_s_evidence_and_moments_are_those_of_a_grid(flux):
    patch = r_patch(flux, radius=None, seed=4)
    density = TypedDensity(patch, r_prior(), star=True)
    mode, covariance = guide(density, [0.0, 0.0, math.log(flux), 0.3])
    drawn = draw_type(density, mode, covariance, YES, seed=0)
    assert float(drawn.k_hat[0]) < 0.7

    # along the guide's axes, 8 of its sd either way in steps of .5: trapezoid sums of bells are then exact;
    # over the colour the integral is known
    steps = torch.arange(-8, 8.01, 0.5, dtype=torch.float64)
    nodes = torch.cartesian_prod(steps, steps, steps)
    tril = torch.linalg.cholesky(covariance[0, :3, :3])
    u = torch.cat((mode[:, :3] + nodes @ tril.T, torch.full((len(nodes), 1), 0.3, dtype=torch.float64)), 1)
    log_p = torch.cat(
        [
            TypedDensity(repeated(patch, len(v)), density.prior, star=True).values(v)[:, 0]
            for v in u.split(4096)
        ]
    )
    volume = 3 * math.log(0.5) + float(tril.diagonal().log().sum()) + math.log(0.1 * math.sqrt(2 * math.pi))
    evidence = float(torch.logsumexp(log_p, 0)) + volume

    n = effective(drawn.log_weight[0], 8)
    assert n > 50
    assert abs(float(drawn.log_evidence[0]) - evidence) < 4 / math.sqrt(n)
    mean, sd = moments(log_p, u)
    sd[3] = 0.1
    got_mean, got_sd = moments(drawn.log_weight[0], drawn.u[0])
    assert ((got_mean - mean).abs() < 4 * sd / math.sqrt(n)).all()
    assert ((got_sd / sd).log().abs() < 4 / math.sqrt(2 * n)).all()


def test_a_galaxy_s_evidence_and_moments_are_those_of_a_long_plain_run():
    patch = r_patch(25.0, radius=1.1, seed=7)
    density = TypedDensity(patch, r_prior(), star=False)
    mode, covariance = guide(density, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.0, 0.3])
    drawn = draw_type(density, mode, covariance, YES, seed=0)
    assert float(drawn.k_hat[0]) < 0.7

    # plain: one Student t about the moments found, pseudo-random, every draw rendered by itself
    centre, _ = moments(drawn.log_weight[0], drawn.u[0])
    off = drawn.u[0] - centre
    spread = torch.einsum("n,ni,nj->ij", torch.softmax(drawn.log_weight[0], -1), off, off)
    g = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        tail = torch.distributions.Chi2(torch.tensor(6.0, dtype=torch.float64)).sample((5000,)) / 6
    z = torch.randn(5000, 8, generator=g, dtype=torch.float64) / tail.sqrt()[:, None]
    tril = 1.1 * torch.linalg.cholesky(spread)
    u = centre + z @ tril.T
    log_q = (
        math.lgamma(7) - math.lgamma(3) - 4 * math.log(6 * math.pi) - tril.diagonal().log().sum()
        - 7 * torch.log1p(z.square().sum(-1) / 6)
    )  # fmt: skip
    log_p = TypedDensity(repeated(patch, 5000), density.prior, star=False).values(u)[:, 0]
    ratio = log_p - log_q

    error = math.sqrt(1 / effective(drawn.log_weight[0], 8) + 1 / effective(ratio))
    assert error < 0.2
    evidence = float(torch.logsumexp(ratio, 0)) - math.log(5000)
    assert abs(float(drawn.log_evidence[0]) - evidence) < 4 * error
    mean, sd = moments(ratio, u)
    got_mean, got_sd = moments(drawn.log_weight[0], drawn.u[0])
    assert ((got_mean - mean).abs() < 4 * error * sd).all()
    assert ((got_sd / sd).log().abs() < 4 * error).all()


@pytest.fixture(scope="module")
def five_bands():
    """Two patches of five bands, and their typed draws."""
    patches = [simulate(seed, size=SIZE)[0] for seed in (1, 2)]
    patch = Patch(*(torch.stack(t) for t in zip(*patches, strict=True)))
    prior = load_prior()
    colour = [0.5, 0.3, 0.2, 0.1]
    flux = [math.log(20.0)]
    drawn = {}
    for star, shape in ((True, [0.0, 0.0]), (False, [0.0] * 6)):
        density = TypedDensity(patch, prior, star=star)
        start = torch.tensor([shape + flux + colour] * 2, dtype=torch.float64)
        found = maximise(density, start, max_iterations=80, tolerance=1e-3)
        values, vectors = torch.linalg.eigh(-found.hessian)
        covariance = (vectors / values.clamp(min=0.1)[:, None]) @ vectors.mT
        drawn[star] = (density, found.w, covariance)
    return drawn


@pytest.mark.parametrize("star", [True, False])
def test_rendered_images_give_the_density_of_their_sources(five_bands, star):
    density, mode, covariance = five_bands[star]
    g = torch.Generator().manual_seed(0)
    tril = torch.linalg.cholesky(covariance)
    nb, m, n = density.n_bending, 3, 4
    u = mode[:, None, None] + torch.einsum(
        "bij,bmnj->bmni", tril, torch.randn(2, m, n, density.dim, generator=g, dtype=torch.float64)
    )
    u[..., :nb] = u[:, :, :1, :nb]
    images = []
    for at in u[:, :, 0].unbind(1):
        shape = () if star else (at[:, 2], at[:, 3:5], at[:, 5])
        images.append((star_images if star else galaxy_images)(density.patch, at[:, :2], *shape))
    got = density.log_joint_of_images(torch.stack(images, 1), u)
    expected = torch.stack([density.values(v)[:, 0] for v in u.flatten(1, 2).unbind(1)], 1).reshape(2, m, n)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_fluxes_scale_as_the_model_s_do(five_bands):
    density, mode, _ = five_bands[True]
    log_flux = log_band_flux(mode[:, 2], mode[:, 3:], density.prior.reference)
    torch.testing.assert_close(density.electrons(mode), density.patch.calibration * log_flux.exp())


def test_the_same_seed_gives_the_same_draws_and_rows_do_not_mix(five_bands):
    density, mode, covariance = five_bands[True]
    yes = torch.ones(2, dtype=torch.bool)
    settings = {"renderings": (8, 8), "fluxes": 4}
    one, two = (draw_type(density, mode, covariance, yes, seed=3, **settings) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    other = draw_type(density, mode, covariance, yes, seed=4, **settings)
    assert not torch.equal(one.u, other.u)
    second = torch.tensor([1])
    alone = draw_type(density.take(second), mode[1:], covariance[1:], YES, seed=3, **settings)
    torch.testing.assert_close(alone.u[0], one.u[1])
    torch.testing.assert_close(alone.log_evidence[0], one.log_evidence[1])


def test_a_type_ruled_out_has_no_evidence_and_is_never_drawn(five_bands):
    settings = {"renderings": (8, 8), "fluxes": 4, "seed": 0}
    yes, first = torch.ones(2, dtype=torch.bool), torch.tensor([True, False])
    star = draw_type(*five_bands[True], first, **settings)
    galaxy = draw_type(*five_bands[False], yes, **settings)
    assert float(star.log_evidence[1]) == -torch.inf
    p_star, is_star, u = mix_types(star, galaxy, 50, torch.Generator().manual_seed(0))
    assert float(p_star[1]) == 0
    assert not is_star[1].any()
    assert torch.isfinite(u[1]).all()


def test_a_type_whose_draws_have_no_weight_gives_way_unless_the_other_is_ruled_out(five_bands):
    settings = {"renderings": (8, 8), "fluxes": 4, "seed": 0}
    yes, no = torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)
    density, mode, covariance = five_bands[True]
    beyond = mode.clone()
    beyond[:, density.n_bending] = 1e4  # its flux overflows
    star = draw_type(density, beyond, covariance, yes, **settings)
    assert (star.k_hat == torch.inf).all()
    for possible, expected in ((yes, 0.0), (no, 1.0)):
        galaxy = draw_type(*five_bands[False], possible, **settings)
        p_star = mix_types(star, galaxy, 50, torch.Generator().manual_seed(0))[0]
        assert (p_star == expected).all()


def weighted(n_sources, d, evidence, seed):
    """Normal draws of unequal weights; the same for every source, as quasi-random ones nearly are."""
    g = torch.Generator().manual_seed(seed)
    u = torch.randn(1, 1000, d, generator=g, dtype=torch.float64).expand(n_sources, -1, -1)
    log_weight = torch.log_softmax(0.5 * u[..., 0], -1)
    return TypedDraws(u, log_weight, torch.full((n_sources,), evidence).double(), torch.zeros(n_sources))


def test_types_are_mixed_by_their_evidences():
    star, galaxy = weighted(3, 7, math.log(3.0), 0), weighted(3, 11, 0.0, 1)
    p_star, is_star, u = mix_types(star, galaxy, 400, torch.Generator().manual_seed(0))
    torch.testing.assert_close(p_star, torch.full((3,), 0.75, dtype=torch.float64))
    assert ((is_star.mean(1) - 0.75).abs() <= 1 / 400).all()
    shapes = u[..., 2:6]
    assert torch.isnan(shapes[is_star > 0.5]).all()
    assert torch.isfinite(shapes[is_star < 0.5]).all()
    others = torch.cat((u[..., :2], u[..., 6:]), -1)
    assert torch.isfinite(others).all()
    # weights of exp(u / 2) move a unit normal to .5
    for kind, sources in ((1.0, star), (0.0, galaxy)):
        got = others[..., 0][is_star == kind]
        expected = float((torch.exp(sources.log_weight[0]) * sources.u[0, :, 0]).sum())
        assert abs(float(got.mean()) - expected) < 5 / math.sqrt(len(got))


def test_draws_of_one_source_say_nothing_of_another_s():
    star, galaxy = weighted(2, 7, 0.0, 0), weighted(2, 11, 0.0, 1)
    n = 2000
    _, is_star, u = mix_types(star, galaxy, n, torch.Generator().manual_seed(0))
    for values in (is_star, u[..., 0], u[..., 6]):
        correlation = float(torch.corrcoef(values)[0, 1])
        assert abs(correlation) < 5 / math.sqrt(n)


def test_shapes_whose_images_overflow_have_no_weight():
    """Modes of galaxies in the crowded core of M2 are needles of minutes of arc, known to a factor of ten."""
    patch = r_patch(2000.0, radius=1.0, seed=3)
    density = TypedDensity(repeated(patch, 2), r_prior(), star=False)
    round_, covariance = guide(density.take(torch.tensor([0])), [0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 7.0, 0.3])
    needle = round_.clone()
    needle[0, 2:5] = torch.tensor([4.9, -8.6, 1.4])
    wide = covariance.clone()
    wide[0, 2:4] = wide[0, :, 2:4] = 0.0
    wide[0, 2, 2], wide[0, 3, 3] = 1e4, 1e4
    both = draw_type(
        density, torch.cat((round_, needle)), torch.cat((covariance, wide)), torch.ones(2, dtype=bool), seed=0
    )
    alone = draw_type(density.take(torch.tensor([0])), round_, covariance, torch.ones(1, dtype=bool), seed=0)
    torch.testing.assert_close(both.u[:1], alone.u)
    assert both.u.isfinite().all()
    assert not both.log_weight.isnan().any()
    assert not both.log_evidence.isnan().any()
    assert both.k_hat[1] > 0.7
