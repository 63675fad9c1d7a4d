from __future__ import annotations

import math
from dataclasses import replace

import galsim
import numpy as np
import pytest
import torch

from astrozoo.density import log_density
from astrozoo.errors import InputError, UnknownNameError
from astrozoo.models import deblend
from astrozoo.models.deblend_mode import find_mode, first_guess
from astrozoo.physics.convolved_gaussians import GaussianSum, convolved_image, transfer_function
from astrozoo.physics.sersic_gaussians import sersic_gaussians, sersic_index


def test_sersic_gaussians_are_galsims_profile_through_a_psf():
    psf = galsim.Moffat(beta=3, fwhm=3.5)
    stamp = torch.as_tensor(psf.drawImage(nx=61, ny=61, scale=1, dtype=float).array)
    transfer = transfer_function(stamp / stamp.sum(), (41, 41))
    for u in (-1.0, 0.0, 0.8):
        index = float(sersic_index(torch.tensor(u, dtype=torch.float64)))
        flux, sigma = sersic_gaussians(torch.tensor(u, dtype=torch.float64))
        zeros = torch.zeros(len(flux), 2, dtype=torch.float64)
        square = (3 * sigma) ** 2
        light = GaussianSum(flux, zeros, torch.stack((square, 0 * square, square), -1))
        ours = convolved_image(light, transfer, (41, 41)).numpy()
        profile = galsim.Convolve(galsim.Sersic(round(index, 3), half_light_radius=3), psf)
        theirs = profile.drawImage(nx=41, ny=41, scale=1, dtype=float).array
        # The PSF of the pixels already has the pixel; galsim's is integrated over it once.
        assert np.abs(ours - theirs).max() < 0.01 * theirs.max()


@pytest.mark.parametrize("prior", ["sersic", "latent"])
def test_the_search_ends_at_a_mode_of_the_captured_density(prior):
    scene, _ = deblend.simulate(0, prior=prior)
    problem = deblend.problem(scene, prior=prior)
    target = log_density(problem, compile="never")
    z = target.initial(1)
    value, gradient = target.value_and_grad(z)
    unsearched = deblend.problem(scene, prior=prior, search=False)
    start = log_density(unsearched, compile="never").initial(1)
    assert (value > target.values(start)[:, 0]).all()
    hessian = target.value_grad_hessian(z)[2]
    newton = 0.5 * (gradient * torch.linalg.solve(-hessian, gradient)).sum()
    assert 0 <= float(newton) < 1e-2  # [nat] what another Newton step would gain


def test_fluxes_of_smooth_galaxies_are_within_their_errors():
    scenes, truths = zip(*(deblend.simulate(seed, size=24, prior="sersic") for seed in range(8)), strict=True)
    problem = deblend.problem(scenes, prior="sersic", search=False)
    mode = find_mode(problem.model, *problem.args, problem.start)
    assert mode.converged.all()
    sd = mode.covariance.diagonal(dim1=1, dim2=2).sqrt()[:, :4].view(8, 2, 2)
    z = (mode.values["log_flux"] - torch.stack([truth["log_flux"] for truth in truths])) / sd
    # 32 numbers, of which the two bands of a galaxy are correlated: about 16 independent ones
    assert float(z.square().mean()) == pytest.approx(1, abs=3 * math.sqrt(2 / 16))


def test_a_batch_has_the_modes_of_its_scenes():
    scenes = [deblend.simulate(seed, prior="sersic")[0] for seed in (0, 1)]
    together = deblend.problem(scenes, prior="sersic").start["log_flux"]
    for scene, values in zip(scenes, together, strict=True):
        alone = deblend.problem(scene, prior="sersic").start["log_flux"]
        torch.testing.assert_close(alone, values, rtol=1e-6, atol=1e-6)


def test_a_star_and_a_galaxy_at_one_place_share_their_light():
    scene, _ = deblend.simulate(2, galaxies=1, size=20, prior="sersic")
    table = scene.sources.copy()
    table.add_row(table[0])
    table["is_star"] = [True, False]  # the model has galaxies first, whatever the order of the table
    both = replace(scene, sources=table)
    problem = deblend.problem(both, prior="sersic")
    assert list(problem.coords["source"]) == ["1", "0"]
    flux = problem.start["log_flux"].exp()
    alone = deblend.problem(scene, prior="sersic").start["log_flux"].exp()
    torch.testing.assert_close(flux.sum(0), alone[0], rtol=0.06, atol=0)  # an SD is 4 %


def test_a_band_without_weight_changes_nothing_in_the_others():
    scene, _ = deblend.simulate(0, bands=3, prior="sersic")
    mask = scene.mask.copy()
    mask[1] = False
    pixels = scene.images.copy()
    pixels[1] = np.nan
    empty = replace(scene, mask=mask, images=pixels)
    fewer = replace(
        scene,
        **{name: getattr(scene, name)[[0, 2]] for name in ("images", "noise", "mask", "psfs")},
        bands=(scene.bands[0], scene.bands[2]),
    )
    problems = [deblend.problem(s, prior="sersic") for s in (empty, fewer)]
    for name in problems[0].start:
        torch.testing.assert_close(problems[0].start[name], problems[1].start[name])
    assert list(problems[0].coords["band"]) == [scene.bands[0], scene.bands[2]]


def test_a_source_without_pixels_in_one_band_has_the_prior_there():
    scene, _ = deblend.simulate(0, size=20, bands=2, galaxies=1, prior="sersic")
    mask = scene.mask.copy()
    mask[1, 2:, :] = False  # the band is not empty, but has nothing of the galaxy
    problem = deblend.problem([replace(scene, mask=mask)], prior="sersic", search=False)
    mode = find_mode(problem.model, *problem.args, problem.start)
    sd = mode.covariance[0].diagonal().sqrt()[:2]
    assert sd[0] < 0.2
    assert sd[1] > 0.5


def test_a_bad_start_ends_at_the_same_mode():
    scene, _ = deblend.simulate(3, size=20, prior="sersic")
    problem = deblend.problem([scene], prior="sersic", search=False)
    good = find_mode(problem.model, *problem.args, problem.start)
    bad = {name: value.clone() for name, value in problem.start.items()}
    bad["log_flux"] += 3.0 * torch.tensor([1.0, -1.0], dtype=torch.float64)[:, None]
    bad["position"] += 0.7
    bad["log_radius"] -= 1.0
    again = find_mode(problem.model, *problem.args, bad)
    assert again.converged.all()
    torch.testing.assert_close(again.log_density, good.log_density, atol=0.05, rtol=0)


def test_fluxes_start_from_a_joint_fit():
    scene, truth = deblend.simulate(1, size=24, prior="sersic")
    pixels, sources = (type(x)(*(leaf[None] for leaf in x)) for x in deblend.tensors(scene))
    start = first_guess(deblend.problem(scene, prior="sersic", search=False).model, pixels, sources)
    assert float((start["log_flux"][0] - truth["log_flux"]).abs().max()) < 0.7


def test_bad_scenes_are_refused():
    scene, _ = deblend.simulate(0)
    nx = scene.shape[1]

    def at(x, y):
        table = scene.sources.copy()
        table["x"][0], table["y"][0] = x, y
        return table

    broken = scene.images.copy()
    broken[0, 3, 3] = np.nan
    hidden = scene.mask.copy()
    row, column = (round(float(scene.sources[name][0])) for name in "yx")
    hidden[:, max(row - 3, 0) : row + 4, max(column - 3, 0) : column + 4] = False
    cases = {
        "noise: got shape": {"noise": scene.noise[:, :-1]},
        "NaN or infinite": {"images": broken},
        "SD that is not a positive": {"noise": 0 * scene.noise},
        r"psfs: got shape \(1": {"psfs": scene.psfs[:1]},
        "PSF of band u: got a sum of 0": {"psfs": 0 * scene.psfs},
        "odd sides": {"psfs": scene.psfs[:, :-1]},
        "sources: got none": {"sources": scene.sources[:0]},
        "a place in the image": {"sources": at(nx + 3, 2)},
        "px apart": {"sources": at(scene.sources["x"][1], scene.sources["y"][1])},
        "no used pixel near its centre": {"mask": hidden},
        "no used pixel in any band": {"mask": scene.mask & False},
        "different names": {"bands": ("g", "g")},
    }
    for message, changes in cases.items():
        with pytest.raises(InputError, match=message):
            replace(scene, **changes)


def test_unlike_scenes_and_unknown_priors_are_refused():
    scene, _ = deblend.simulate(0)
    other, _ = deblend.simulate(0, galaxies=1)
    with pytest.raises(InputError, match="1 galaxies"):
        deblend.problem([scene, other])
    with pytest.raises(UnknownNameError, match="did you mean 'sersic'"):
        deblend.problem(scene, prior="sersik")
