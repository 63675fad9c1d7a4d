"""What is taken from an image before a fit: the guess, the cut, the prior and the starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from astrozoo.data.lens_image import LensImage
from astrozoo.data.simulate_lens import simulate_lens
from astrozoo.density import layout_of
from astrozoo.errors import DataError, InputError, UnknownNameError
from astrozoo.models.lens_cut import cut_out
from astrozoo.models.lens_exposure import observe
from astrozoo.models.lens_guess import guess
from astrozoo.models.lens_prior import GIGALENS, IMAGE, prior_of
from astrozoo.models.strong_lens import problem

RADIUS = 1.2
CENTRE = (0.4, -0.24)
"""[arcsec] Of the lens: it is off the middle of the frame."""


@pytest.fixture(scope="module")
def lens() -> LensImage:
    """Arcs by GalSim and caustics, with de Vaucouleurs-like light of the lens, in electrons per second."""
    values = {"einstein_radius": RADIUS, "centre_x": 0.0, "centre_y": 0.0, "gamma1": 0.0, "gamma2": 0.0}
    image, truth = simulate_lens(5, source="clumpy", lens=values, shape=(64, 64), pixel_scale=0.08, rays=2)
    x, y = image.coordinates()
    light = 0.4 * np.exp(-7 * (np.hypot(x, y) / 0.9) ** 0.25 + 7) * 0.08**2
    rng = np.random.default_rng(0)
    model = truth["model"] + light
    noise = np.sqrt(0.01**2 + model / 2000)
    whole = rng.normal(0, 0.01, (80, 80))
    whole[5:69, 13:77] = model + noise * rng.normal(size=model.shape)
    sigma = np.full((80, 80), 0.01)
    sigma[5:69, 13:77] = noise
    return replace(image, image=whole, noise=sigma, background_rms=None, exposure=None, mask=None)


def scaled(lens: LensImage, factor: float) -> LensImage:
    return replace(lens, image=lens.image * factor, noise=lens.sigma() * factor)


def test_the_guess_of_a_lens(lens: LensImage) -> None:
    found = guess(observe(lens))
    assert found.found
    assert found.centre == pytest.approx(CENTRE, abs=0.04)
    assert found.radii[0] == pytest.approx(RADIUS, rel=0.1)
    assert found.light["amplitude"].shape == (1,)


@pytest.mark.parametrize("factor", [1e-7, 3e5])
def test_a_unit_changes_nothing_but_amplitudes(lens: LensImage, factor: float) -> None:
    one, other = guess(observe(lens)), guess(observe(scaled(lens, factor)))
    np.testing.assert_allclose(other.radii, one.radii, rtol=1e-5)
    np.testing.assert_allclose(other.centre, one.centre, atol=1e-5)
    np.testing.assert_array_equal(other.arcs, one.arcs)
    for name in ("radius", "index", "ellipticity"):
        np.testing.assert_allclose(other.light[name], one.light[name], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(other.light["amplitude"], factor * one.light["amplitude"], rtol=1e-3)
    np.testing.assert_allclose(other.brightness, factor * one.brightness, rtol=1e-3)


def test_without_arcs_the_radius_is_that_of_a_typical_lens(lens: LensImage) -> None:
    noise = np.random.default_rng(1).normal(size=lens.shape) * lens.sigma()
    found = guess(observe(replace(lens, image=noise)), lens_light=False)
    assert not found.found
    assert not found.arcs.any()
    assert found.radii == pytest.approx([1.28])


def test_the_cut_is_around_the_lens_and_masks_neighbours(lens: LensImage) -> None:
    x, y = lens.coordinates()
    bright = lens.image + 2.0 * np.exp(-((x + 1.6) ** 2 + (y - 1.6) ** 2) / 2 / 0.15**2)
    cut = cut_out(replace(lens, image=bright))
    assert cut.shape == (64, 64)
    assert "neighbours" in cut.provenance
    assert cut.mask[32, 32]
    found = guess(observe(cut))
    assert found.radii[0] == pytest.approx(RADIUS, rel=0.1)
    assert cut_out(lens, crop=0, core=0).shape == lens.shape
    assert cut_out(lens, crop=3.0, core=0.3).shape == (32, 32)
    with pytest.raises(InputError, match="crop: got -1"):
        cut_out(lens, crop=-1)


def test_starts_bring_the_arcs_together(lens: LensImage) -> None:
    """The best start explains most of the light that the lens's own leaves."""
    task = problem(cut_out(lens))
    values = task.proposals(16, torch.Generator().manual_seed(0))  # type: ignore[misc]
    assert {name: v.shape[0] for name, v in values.items()} == dict.fromkeys(task.start, 16)
    assert layout_of(task).unconstrain(dict(values)).isfinite().all()
    data, found = task.args[0], guess(task.args[0])
    best = {name: v[0] for name, v in values.items()}
    arcs = task.model.render(best, data, ("source",))[0].numpy()  # type: ignore[attr-defined]
    left = ((found.residual - arcs) / found.sigma)[found.arcs]
    before = (found.residual / found.sigma)[found.arcs]
    assert (left**2).mean() < 0.4 * (before**2).mean()
    assert float(best["einstein_radius"]) == pytest.approx(RADIUS, rel=0.15)


def test_priors_by_name_and_from_files(tmp_path: Path) -> None:
    assert prior_of(None) is IMAGE
    assert prior_of("gigalens") is GIGALENS
    assert not GIGALENS.from_image
    file = tmp_path / "prior.toml"
    file.write_text('einstein_radius = [1.4, 0.05]\nsource_amplitude = ["image", 0.5]\nposition = [0, 0.1]\n')
    prior = prior_of(file)
    assert prior.einstein_radius == (1.4, 0.05)
    assert prior.source_amplitude == (None, 0.5)
    assert prior.position == (0.0, 0.1)
    assert prior.slope == IMAGE.slope


BAD = {
    "unknown": ("einstein_radii = [1.0, 0.1]", UnknownNameError, "einstein_radius"),
    "one number": ("einstein_radius = 1.0", InputError, "2 numbers"),
    "no SD": ("einstein_radius = [1.0, 0.0]", InputError, "positive SD"),
    "word": ('slope = ["image", 0.1, 1.0, 3.0]', InputError, "4 numbers"),
    "not TOML": ("einstein_radius: 1", DataError, "TOML"),
}


@pytest.mark.parametrize(("text", "error", "message"), BAD.values(), ids=BAD.keys())
def test_priors_that_are_wrong(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    file = tmp_path / "prior.toml"
    file.write_text(text)
    with pytest.raises(error, match=message):
        prior_of(file)
    with pytest.raises(DataError, match="no such file"):
        prior_of(tmp_path / "none.toml")


def test_a_prior_outside_the_frame_is_refused(lens: LensImage) -> None:
    small = lens.crop(48)
    with pytest.raises(InputError, match="einstein_radius"):
        problem(small, prior=replace(IMAGE, einstein_radius=(9.0, 0.1)))
    with pytest.raises(InputError, match="position of the lens"):
        problem(small, prior=replace(IMAGE, position=(9.0, 0.1)))
