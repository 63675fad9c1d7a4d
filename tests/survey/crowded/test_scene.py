from dataclasses import replace

import galsim
import numpy as np
import pytest

from astrozoo.data.eigen_psf import EigenPsf
from astrozoo.data.images import pixel_map
from astrozoo.data.psf import PixelPsf
from astrozoo.errors import InputError
from astrozoo.survey.crowded.scene import (
    Scene,
    Sources,
    add_stars,
    expected,
    psf_table,
    stamp_of_table,
    star_stamp,
)
from astrozoo.survey.crowded.stamps import make_stamps, reaches


def test_expected_counts_are_those_of_an_independent_renderer(field_of, truth):
    xy, flux = truth
    field = field_of(xy, flux, seed=None)
    model = expected(Scene.of(field), Sources.stars(xy, flux))
    for image, counts in zip(field, model, strict=True):
        light = image.counts - image.sky
        assert np.abs(counts - image.counts).max() < 2e-3 * light.max()


def test_a_table_gives_back_its_stamp_and_its_normalisation(field_of, truth):
    stamp = field_of(*truth).images[0].psf.stamp(0, 0)
    table = psf_table(stamp)
    np.testing.assert_allclose(stamp_of_table(table), stamp / stamp.sum(), atol=1e-3 * stamp.max())
    assert table.sum() == pytest.approx(25)
    small = psf_table(stamp[16:-16, 16:-16])
    assert small.shape == (125, 125)


def test_a_sharp_psf_does_not_ring():
    profile = galsim.Convolve(galsim.Kolmogorov(fwhm=2.0), galsim.Pixel(1.0))
    table = psf_table(profile.drawImage(nx=65, ny=65, scale=1.0, method="no_pixel", dtype=float).array)
    true = galsim.ImageD(65, 65, xmin=0, ymin=0, scale=1.0)
    profile.drawImage(true, center=(32.4, 31.7), method="no_pixel")
    drawn = np.zeros((65, 65))
    add_stars(drawn, table, 5, np.array([[32.4, 31.7]]), np.ones(1))
    miss = np.abs(drawn - true.array)
    assert miss.max() < 2e-3 * true.array.max()
    assert miss[:, :20].max() < 1e-4 * true.array.max()


def test_star_stamps_have_the_derivatives_of_finite_differences(scene):
    out = np.zeros((3, 30, 30))
    table, step = scene.psf[0], 1e-4

    def image(x, y):
        y0, y1, x0, x1 = star_stamp(table, 5, x, y, 8, (40, 40), out)
        whole = np.zeros((3, 40, 40))
        whole[:, y0:y1, x0:x1] = out[:, : y1 - y0, : x1 - x0]
        return whole

    middle = image(17.3, 2.2)
    for axis, (dx, dy) in enumerate([(step, 0), (0, step)]):
        slope = (image(17.3 + dx, 2.2 + dy)[0] - image(17.3 - dx, 2.2 - dy)[0]) / (2 * step)
        np.testing.assert_allclose(middle[1 + axis], slope, atol=1e-6)


def test_stamps_follow_the_reference_position_into_each_image(scene, truth):
    xy, _ = truth
    shape = np.full((len(xy), 3), np.nan)
    shape[3] = (2.0, 0.3, -0.2)  # one galaxy among stars
    reach = np.full(len(xy), 8)
    stamps, step = make_stamps(scene, xy, reach, shape), 1e-4
    for k in range(2):
        for s, axis in [(0, 0), (1, 1), (3, 0), (3, 1)]:
            coefficients = np.zeros((len(xy), 3))
            coefficients[s, 1 + axis] = 1
            slopes = []
            for sign in (-1, 1):
                moved = xy.copy()
                moved[s, axis] += sign * step
                flux = (np.arange(len(xy)) == s).astype(float)
                slopes.append(make_stamps(scene, moved, reach, shape).light(k, flux))
            numeric = (slopes[1] - slopes[0]) / (2 * step)
            np.testing.assert_allclose(stamps.image(k, coefficients), numeric, atol=1e-4)


def test_projection_is_the_transpose_of_the_image(scene, truth):
    xy, flux = truth
    rng = np.random.default_rng(0)
    stamps = make_stamps(scene, xy, reaches(scene, flux))
    image, coefficients = rng.normal(size=(40, 40)), rng.normal(size=(len(xy), 3))
    forward = (stamps.image(1, coefficients) * image).sum()
    assert forward == pytest.approx((coefficients * stamps.project(1, image)).sum(), rel=1e-12)


def test_bright_stars_reach_further(scene):
    reach = reaches(scene, np.array([[0.1, 0.1], [1.0, 1.0], [1e3, 1e3]]))
    assert reach[0] == 6
    assert reach[0] < reach[1] < reach[2] <= 20


def test_a_galaxy_is_a_star_blurred_by_its_disc(scene):
    shape = np.array([[3.0, 0.4, 0.2]])
    wide = Sources(np.array([[20.0, 20.0]]), np.ones((1, 2)), shape)
    narrow = replace(wide, shape=np.array([[1e-3, 0.0, 0.0]]))
    star = Sources.stars(wide.xy, wide.flux)
    big, small, point = (
        (expected(scene, s)[1] - scene.sky[1]) / scene.calibration[1] for s in (wide, narrow, star)
    )
    assert big.sum() == pytest.approx(1, abs=0.02)
    assert np.abs(small - point).max() < 0.03 * point.max()  # the PSF's mixture is right to a few per cent
    y, x = np.mgrid[:40, :40] - 20.0
    moments = [(big * a * b).sum() / big.sum() for a, b in ((x, x), (x, y), (y, y))]
    assert moments[0] > moments[2]
    assert moments[1] > 0


def test_the_wing_of_an_eigen_psf_is_in_its_table():
    y, x = np.mgrid[:51, :51] - 25
    core = np.exp(-(x**2 + y**2) / 4.0)[None]
    psf = EigenPsf(core, np.ones((1, 1, 1)), wing=(0.02, 8.0))
    wide = psf.wide_stamp(3.0, 4.0)
    assert wide.sum() == pytest.approx(1)
    assert wide[np.hypot(x, y) > 10].sum() == pytest.approx(0.02 * np.exp(-50 / 64), abs=2e-3)
    assert PixelPsf(core[0]).stamp(0, 0).sum() == pytest.approx(1)


def test_a_scene_refuses_what_does_not_fit(field_of, truth, scene):
    field = field_of(*truth)
    with pytest.raises(InputError, match="one for each of 2 images"):
        Scene.of(field, [field.images[0].psf])
    with pytest.raises(InputError, match="psf_error"):
        Scene.of(field, psf_error=-1.0)
    with pytest.raises(InputError, match="odd side"):
        psf_table(np.ones((4, 4)))
    with pytest.raises(InputError, match="2 columns"):
        expected(scene, Sources.stars(np.zeros((1, 2)), np.zeros((1, 3))))
    with pytest.raises(InputError, match="shapes"):
        Sources(np.zeros((1, 2)), np.zeros((1, 3)), np.zeros((2, 3)))


def test_pixel_map_is_linear_in_the_reference_position(field_of, truth):
    field = field_of(*truth)
    reference, image = field.images[1], field.images[0]
    there = pixel_map(reference, image) @ [12.0, 30.0, 1.0]
    sky = reference.wcs.all_pix2world(12.0, 30.0, 0)
    np.testing.assert_allclose(there, image.wcs.all_world2pix(*sky, 0), atol=1e-6)


def test_gaussians_of_a_psf_are_fitted_once_and_follow_its_correction(scene):
    other = replace(scene, psf_error=scene.psf_error + 0.01)
    assert all(a is b for a, b in zip(scene.mixture, other.mixture, strict=True))
    wide = replace(scene, psf=(scene.psf[0], scene.psf[0]))
    assert wide.mixture[0] is scene.mixture[0]
    assert wide.mixture[1] is not scene.mixture[1]
