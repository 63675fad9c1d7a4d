"""Galaxies seen through a PSF: the decode against GalSim, the likelihood, starts, exposures, bad input."""

from __future__ import annotations

from dataclasses import replace

import galsim
import numpy as np
import pytest
import torch
from pyro import poutine

import astrozoo
from astrozoo.density import elbo, log_density
from astrozoo.errors import DataError, InputError, UnknownNameError
from astrozoo.galaxies.psf_maps import maps_of
from astrozoo.models import galaxy_discrepancy, galaxy_population, psf_vae
from astrozoo.models.galaxy_encoder import encode
from astrozoo.models.psf_vae import Galaxy, PsfStamp
from astrozoo.physics.correlated_noise import toeplitz

F64 = torch.float64


@pytest.fixture(scope="module")
def simulated():
    return psf_vae.simulate(seed=3, snr=80.0)


@pytest.fixture(scope="module")
def problem(simulated):
    return psf_vae.problem(simulated[0])


def through(light, psf: galsim.GSObject, side: int, scale: float) -> np.ndarray:
    """A sum of Gaussians through a PSF, by GalSim; lengths are in pixels."""
    parts = []
    for flux, (x, y), (xx, xy, yy) in zip(*(part.tolist() for part in light), strict=True):
        sigma = (xx * yy - xy**2) ** 0.25
        size = xx + yy + 2 * (xx * yy - xy**2) ** 0.5
        part = galsim.Gaussian(sigma=sigma * scale, flux=flux).shear(g1=(xx - yy) / size, g2=2 * xy / size)
        parts.append(part.shift(x * scale, y * scale))
    whole = galsim.Convolve(galsim.Add(parts), psf)
    return whole.drawImage(nx=side, ny=side, scale=scale, dtype=float).array


@pytest.mark.parametrize("side", [40, 41])
def test_a_convolved_decode_is_that_of_galsim(side):
    accurate = galsim.GSParams(folding_threshold=1e-4, maxk_threshold=1e-5, kvalue_accuracy=1e-7)
    psf = galsim.Moffat(beta=4.5, fwhm=0.4, gsparams=accurate).shear(g1=0.06, g2=0.03).shift(0.01, -0.02)
    kernel = psf.drawImage(nx=side, ny=side, scale=0.1, dtype=float).array
    blank = PsfStamp(np.zeros((side, side)), kernel / kernel.sum(), 1.0, 0.1)
    model = psf_vae.PsfVae()
    z = 0.5 * torch.randn(16, dtype=F64, generator=torch.Generator().manual_seed(0))
    z[3] = -0.5  # a galaxy that is as large as its stamp reaches its copies in the periodic frame
    exposures = psf_vae.problem(blank).args[0]
    (image,) = model.images(exposures, z)
    light = model.light(z).scaled(exposures[0].flux, exposures[0].length)
    want = through(light, psf, side, 0.1)
    assert np.abs(image.numpy() - want).max() < 1e-4 * want.max()


def test_the_start_is_a_mode_that_fits(simulated, problem):
    (exposure,), start = problem.args
    (image,) = problem.model.images((exposure,), start.mean)
    chi2 = float(((exposure.image - image) / exposure.sd).square().mean())
    assert abs(chi2 - 1) < 4 * (2 / image.numel()) ** 0.5
    density = log_density(problem, compile="never")
    _, gradient = density.value_and_grad(start.mean[None])
    slope = (gradient[0] @ start.root).norm()  # by the latents in units of their SDs
    assert slope < 0.3
    shift = torch.linalg.solve_triangular(
        start.root, (simulated[1]["latent"] - start.mean)[:, None], upper=False
    )
    assert float(shift.square().sum()) < 45  # chi2 of 16 degrees of freedom, with curvature to spare


def test_the_encoder_depends_on_no_unit(simulated):
    stamp, _ = simulated
    nets = galaxy_population.load()
    mean, sd = encode(nets, (stamp,), [1.0], [1.0])
    other = replace(stamp, image=7 * stamp.image, noise=7 * np.asarray(stamp.noise))
    again, sd_again = encode(nets, (other,), [7.0], [1.0])
    torch.testing.assert_close(again, mean)
    torch.testing.assert_close(sd_again, sd)
    units, _ = encode(nets, (stamp,), [2.0], [0.5])
    lights = [
        [part * s for part, s in zip(nets.decoder(z), scales, strict=True)]
        for z, scales in ((mean, (1, 1, 1)), (units, (2, 0.5, 0.25)))
    ]
    for a, b in zip(*lights, strict=True):
        torch.testing.assert_close(a, b)


def test_exposures_of_one_galaxy_share_its_shape(simulated):
    stamp, _ = simulated
    twin = replace(stamp, image=3 * stamp.image, noise=3 * np.asarray(stamp.noise), name="brighter")
    fine = replace(stamp, pixel_scale=stamp.pixel_scale / 2)
    problem = psf_vae.problem(Galaxy((stamp, twin)))
    assert problem.start["log_flux_ratio"].shape == (1,)
    assert abs(float(problem.start["log_flux_ratio"]) - np.log(3)) < 0.1
    exposures, start = problem.args
    images = problem.model.images(exposures, start.mean[:16], start.mean[16:])
    torch.testing.assert_close(
        images[1] / images[0], (images[1] / images[0])[:1, :1].expand_as(images[0]), rtol=1e-6, atol=0
    )
    finer = psf_vae.problem(Galaxy((stamp, fine))).args[0]
    assert float(finer[1].length / finer[0].length) == 2.0
    shifted = psf_vae.problem(Galaxy((stamp, replace(stamp, zero_point=2.5)))).args[0]
    assert float(shifted[1].flux / shifted[0].flux) == pytest.approx(10)
    volumes = [
        float(s.root.diagonal()[:16].log().sum()) for s in (problem.args[1], psf_vae.problem(stamp).args[1])
    ]
    assert volumes[0] < volumes[1] - 1  # two exposures constrain the galaxy better than one


def test_correlated_noise_has_the_density_of_a_dense_normal():
    side = 10
    y, x = np.mgrid[-3:4, -3:4]
    correlation = np.exp(-(x**2 + y**2) / 2)
    psf = np.full((3, 3), 1 / 9)
    rng = np.random.default_rng(0)
    noise = rng.uniform(0.5, 1.0, (side, side))
    stamp = PsfStamp(rng.normal(size=(side, side)), psf, noise, 0.1, correlation=correlation)
    problem = psf_vae.problem(stamp)
    z = torch.zeros(16, dtype=F64)
    trace = poutine.trace(poutine.condition(problem.model, {"latent": z})).get_trace(*problem.args)
    (image,) = problem.model.images(problem.args[0], z)
    sd = torch.as_tensor(noise.ravel())
    covariance = sd[:, None] * toeplitz(torch.as_tensor(correlation), (side, side)) * sd
    dense = torch.distributions.MultivariateNormal(image.flatten(), covariance)
    got = trace.log_prob_sum(lambda name, _: name == "image")
    torch.testing.assert_close(
        got, dense.log_prob(torch.as_tensor(stamp.image.ravel())), rtol=1e-8, atol=1e-8
    )
    (label,) = problem.model.noise_labels(problem.args[0])
    assert "exact" in label


def test_masked_pixels_do_not_count(simulated):
    stamp, _ = simulated
    mask = np.ones(stamp.shape, bool)
    mask[:3] = False
    wild = np.where(mask, stamp.image, 1e4)
    first = psf_vae.problem(replace(stamp, mask=mask))
    second = psf_vae.problem(replace(stamp, image=wild, mask=mask))
    torch.testing.assert_close(first.start["latent"], second.start["latent"])
    assert (first.start["latent"] - psf_vae.problem(stamp).start["latent"]).abs().max() > 1e-6


def test_large_stamps_start_near_their_galaxy():
    rng = np.random.default_rng(1)
    galaxy = galsim.Exponential(half_light_radius=9.0, flux=2e4).shear(g1=0.2, g2=-0.1)
    psf = galsim.Gaussian(sigma=2.0)
    image = galsim.Convolve(galaxy, psf).drawImage(nx=75, ny=75, scale=1.0, dtype=float).array
    kernel = psf.drawImage(nx=25, ny=25, scale=1.0, dtype=float).array
    stamp = PsfStamp(image + rng.normal(size=image.shape), kernel / kernel.sum(), 1.0, 0.168)
    problem = psf_vae.problem(stamp)
    (exposure,), start = problem.args
    (model,) = problem.model.images((exposure,), start.mean)
    assert float(exposure.length) == 2.0
    assert float((exposure.image - model).square().mean()) < 1.06


def test_galaxies_of_one_shape_are_a_batch(simulated):
    stamp, _ = simulated
    other, _ = psf_vae.simulate(seed=4)
    problem = psf_vae.problem([stamp, other])
    assert problem.batch == 2
    torch.testing.assert_close(problem.start["latent"][0], psf_vae.problem(stamp).start["latent"])
    result = astrozoo.infer(problem, "laplace", draws=10, compile="never", progress=False)
    assert result.draws["latent"].shape[2:] == (2, 16)


def test_data_that_are_no_problem_are_refused(simulated):
    stamp, _ = simulated
    odd, _ = psf_vae.simulate(seed=3, size=23)
    with pytest.raises(InputError, match="one batch per shape"):
        psf_vae.problem([stamp, odd])
    with pytest.raises(InputError, match="another noise correlation"):
        psf_vae.problem([stamp, replace(stamp, correlation=np.ones((1, 1)))])
    with pytest.raises(InputError, match="discrepancy: got exposures with correlated noise"):
        psf_vae.problem(replace(stamp, correlation=np.ones((1, 1))), discrepancy=True)
    with pytest.raises(InputError, match="galaxies: got none"):
        psf_vae.problem([])
    for name in ("flux_unit", "length_unit"):
        with pytest.raises(InputError, match=name):
            psf_vae.problem(stamp, **{name: 0.0})
    for name, value in (("size", 6), ("snr", 0.0), ("fwhm", -1.0), ("pixel_scale", np.nan)):
        with pytest.raises(InputError, match=name):
            psf_vae.simulate(**{name: value})


def test_a_discrepancy_adds_a_variance_that_grows_with_the_light(simulated):
    stamp, _ = simulated
    problem = psf_vae.problem(stamp, discrepancy=True)
    (exposure,), start = problem.args
    z, log_fraction = start.mean[:16], start.mean[16:]
    (light,) = problem.model.images((exposure,), z)
    brightness = (light**2).sum() / light.sum()
    sd = (exposure.sd**2 + (2 * log_fraction).exp() * light.clamp_min(0) * brightness).sqrt()
    normal = torch.distributions.Normal
    want = normal(light, sd).log_prob(exposure.image).sum() + normal(0.0, 1.0).log_prob(z).sum()
    want = want + normal(*torch.tensor(galaxy_discrepancy.LOG_FRACTION, dtype=F64)).log_prob(log_fraction[0])
    got = log_density(problem, compile="never").values(start.mean[None])
    torch.testing.assert_close(got.squeeze(), want, rtol=1e-10, atol=0)


def test_the_noiseless_pixel_is_that_of_bayes():
    """Light 4 +- 1.2 in a galaxy of brightness 4, seen as 6 +- 0.5 or masked: the posterior on a grid."""
    image, light = torch.tensor([[6.0, 6.0]], dtype=F64), torch.tensor([[4.0, 4.0]], dtype=F64)
    fraction = torch.tensor(0.3, dtype=F64).log()
    used = torch.tensor([[True, False]])
    mean, sd = galaxy_discrepancy.noiseless(image, torch.full_like(image, 0.5), used, light, fraction)
    y = torch.linspace(-6, 18, 100_001, dtype=F64)
    weight = (-0.5 * ((y - 4) / 1.2) ** 2 - 0.5 * ((6 - y) / 0.5) ** 2).softmax(0)
    centre = (weight * y).sum()
    spread = (weight * (y - centre) ** 2).sum().sqrt()
    torch.testing.assert_close(mean[0], torch.stack((centre, torch.tensor(4.0, dtype=F64))))
    torch.testing.assert_close(sd[0], torch.stack((spread, torch.tensor(1.2, dtype=F64))))


def test_a_discrepancy_is_recovered_and_makes_intervals_wider():
    """A galaxy whose pixels scatter with f = 10 %, and one that the decoder reproduces."""
    found = {}
    for fraction in (0.1, 0.0):
        stamp, truth = psf_vae.simulate(seed=3, snr=200.0)
        model = psf_vae.PsfVae()
        exposures = psf_vae.problem(stamp).args[0]
        units = exposures[0]._replace(flux=torch.ones((), dtype=F64), length=torch.ones((), dtype=F64))
        light = model.images((units,), truth["latent"])[0].numpy()
        spread = fraction * np.sqrt(light.clip(0) * (light**2).sum() / light.sum())
        scatter = spread * np.random.default_rng(0).standard_normal(light.shape)
        problem = psf_vae.problem(replace(stamp, image=stamp.image + scatter), discrepancy=True)
        result = astrozoo.infer(problem, "laplace", draws=64, seed=0, compile="never", progress=False)
        (maps,) = maps_of(problem, result)
        found[fraction] = np.exp(result.draws["log_discrepancy"].mean()), maps.model_sd[0]
    assert 0.06 < found[0.1][0] < 0.16
    assert found[0.0][0] < 0.03
    bright = light > light.max() / 4
    assert np.median((found[0.1][1] / found[0.0][1])[bright]) > 1.3


def test_weights_that_are_not_the_models_are_refused(tmp_path, simulated):
    stamp, _ = simulated
    with pytest.raises(UnknownNameError, match="psf_vae"):
        psf_vae.problem(stamp, weights="psf_vea")
    with pytest.raises(DataError, match="missing"):
        psf_vae.problem(stamp, weights="learned_source")
    shipped = astrozoo.load_weights("psf_vae")
    path = shipped.save(tmp_path / "w.safetensors")
    psf_vae.problem(stamp, weights=path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="unreadable"):
        psf_vae.problem(stamp, weights=path)
    path.write_bytes(content.replace(b'\\"format\\": 1', b'\\"format\\": 9'))
    with pytest.raises(DataError, match="format 9"):
        psf_vae.problem(stamp, weights=path)
    smaller = {
        name: w[..., :1] if name.endswith("linear.weight") else w for name, w in shipped.weights.items()
    }
    with pytest.raises(DataError, match="shape"):
        psf_vae.problem(stamp, weights=replace(shipped, weights=smaller))


@pytest.mark.parametrize("discrepancy", [False, True])
@pytest.mark.parametrize("guide", ["encoder", "encoder_iaf"])
def test_a_guide_begins_as_the_normal_at_the_start(simulated, guide, discrepancy):
    problem = psf_vae.problem(simulated[0], discrepancy=discrepancy)
    target = elbo(problem, problem.factory("guides", guide), compile="never")
    noise = torch.randn(200, target.noise_dim, dtype=F64, generator=torch.Generator().manual_seed(0))
    drawn = target.sample(target.initial(None), noise)
    z = torch.cat([drawn[name][0] for name in problem.start], -1)
    _, start = problem.args
    white = torch.linalg.solve_triangular(start.root, (z - start.mean).mT, upper=False)
    assert white.mean(1).abs().max() < 4 / 200**0.5
    assert (white.var(1) - 1).abs().max() < 0.5
