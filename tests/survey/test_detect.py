from dataclasses import replace

import galsim
import numpy as np
import pytest
import sep
from astropy.wcs import WCS

from astrozoo.data.images import Field, Image, crop, reference_image
from astrozoo.data.psf import PixelPsf
from astrozoo.data.sdss import read_field
from astrozoo.errors import InputError
from astrozoo.survey.detect import detect

PSF = galsim.Moffat(beta=3.5, fwhm=3.0)


def sky_image(sources, *, band="r", shift=(0.0, 0.0), angle=0.0, shape=(80, 90), seed=0, noise=True):
    """Point sources of (ra offset, dec offset [arcsec], nMgy), drawn by GalSim where *its* WCS puts them."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [150.0, 2.0]
    wcs.wcs.crpix = [shape[1] / 2 + shift[0], shape[0] / 2 + shift[1]]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    wcs.wcs.cd = turn @ np.diag([-1.1e-4, 1.1e-4])
    canvas = galsim.ImageD(shape[1], shape[0])  # FITS pixels: the first is (1, 1)
    canvas.wcs = galsim.AstropyWCS(wcs=wcs)
    calibration, sky = 850.0, 700.0
    for ra, dec, flux in sources:
        centre = galsim.CelestialCoord((150 * 3600 + ra) * galsim.arcsec, (2 * 3600 + dec) * galsim.arcsec)
        drawn = PSF.withFlux(flux).drawImage(
            canvas.copy(), center=canvas.wcs.toImage(centre), wcs=galsim.PixelScale(1)
        )
        canvas.array[:] += drawn.array
    expected = np.maximum(canvas.array, 0) * calibration + sky
    counts = np.random.default_rng(seed).poisson(expected).astype(float) if noise else expected
    ones = np.ones(shape)
    psf = PixelPsf(PSF.drawImage(nx=31, ny=31, scale=1.0).array)
    empty = np.zeros(shape, bool)
    return Image(band, counts, sky * ones, calibration * ones, ~empty, empty.copy(), wcs, psf, f"test-{band}")


def test_a_star_is_found_at_its_sky_position():
    """Half a pixel lost anywhere (FITS counts from 1, arrays from 0) would show as 0.5 px."""
    sources = [(3.3, -4.1, 60.0), (-7.7, 5.2, 60.0)]
    images = [sky_image(sources), sky_image(sources, band="g", shift=(3.4, -2.6), angle=0.01, seed=1)]
    table = detect(Field(tuple(images)))
    assert len(table) == 2
    table.sort("ra", reverse=True)
    for row, (ra, dec, flux) in zip(table, sources, strict=True):
        off = np.array([(row["ra"] - 150) * 3600 - ra, (row["dec"] - 2) * 3600 - dec]) / 0.396
        assert np.hypot(*off) < 0.05
        for band in "rg":
            assert row[f"flux_{band}"] == pytest.approx(flux, rel=0.06)
        assert row["is_star"]
        assert not any(row[flag] for flag in ("edge", "saturated", "blended"))


def test_star_and_galaxy(simulated_field):
    table = detect(simulated_field)
    assert len(table) == 2
    table.sort("x")
    for row, name in zip(table, ("star", "galaxy"), strict=True):
        x, y = map(float, simulated_field.meta[name].split())
        assert np.hypot(row["x"] - x, row["y"] - y) < (0.05 if name == "star" else 0.3)
    assert table["is_star"].tolist() == [True, False]
    np.testing.assert_allclose(table["flux_r"], [30, 50], rtol=0.12)
    np.testing.assert_allclose(table["flux_g"], [20, 25], rtol=0.12)
    assert table["half_light_radius"][1] == pytest.approx(4 * 0.396, rel=0.25)
    assert table["half_light_radius"][0] < 0.3


def test_noise_alone_gives_an_empty_table():
    table = detect(Field((sky_image([]), sky_image([], band="g", seed=1))))
    assert len(table) == 0
    assert {"ra", "dec", "flux_r", "fluxerr_g", "is_star", "edge"} <= set(table.colnames)


def test_everything_masked_is_refused(simulated_field):
    masked = tuple(replace(image, valid=np.zeros(image.shape, bool)) for image in simulated_field)
    with pytest.raises(InputError, match="masked"):
        detect(replace(simulated_field, images=masked))


def test_one_band_masked_leaves_the_other(simulated_field):
    red, green = simulated_field.images
    table = detect(replace(simulated_field, images=(red, replace(green, valid=np.zeros(green.shape, bool)))))
    assert len(table) == 2
    assert np.isnan(table["flux_g"]).all()
    assert np.isfinite(table["flux_r"]).all()


def test_a_source_on_the_edge_is_flagged():
    table = detect(Field((sky_image([(17.2, 0.0, 80.0), (0.0, 0.0, 80.0)]),)))
    assert sorted(table["edge"].tolist()) == [False, True]


def test_a_saturated_star_is_one_flagged_source():
    image = sky_image([(0.0, 0.0, 3000.0), (9.0, 9.0, 50.0)])
    core = image.nanomaggies > 60
    table = detect(Field((replace(image, valid=~core, saturated=core),)))
    assert len(table) == 2
    table.sort("flux_r")
    assert table["saturated"].tolist() == [False, True]


def test_nothing_is_found_in_a_masked_patch():
    image = sky_image([(0.0, 0.0, 50.0), (9.0, 9.0, 50.0)])
    valid = np.ones(image.shape, bool)
    valid[30:50, 35:55] = False
    table = detect(Field((replace(image, valid=valid),)))
    assert len(table) == 1


def test_a_blend_is_taken_apart():
    table = detect(Field((sky_image([(0.0, 0.0, 60.0), (2.4, 0.0, 30.0)]),)))
    assert len(table) == 2
    assert table["blended"].all()
    # apertures share light: the fainter star is up to half too bright
    np.testing.assert_allclose(np.sort(table["flux_r"]), [30, 60], rtol=0.5)


def test_flux_errors_are_those_of_the_noise():
    """Pulls of the same star in independent noise have unit variance."""
    flux, error = [], []
    for seed in range(40):
        row = detect(Field((sky_image([(0.13, 0.2, 20.0)], seed=seed, shape=(48, 48)),)))[0]
        flux.append(row["flux_r"])
        error.append(row["fluxerr_r"])
    assert np.std(flux) == pytest.approx(np.mean(error), rel=0.35)


def test_settings_of_sep_are_put_back(simulated_field):
    before = sep.get_extract_pixstack(), sep.get_sub_object_limit()
    detect(simulated_field)
    assert (sep.get_extract_pixstack(), sep.get_sub_object_limit()) == before


def test_a_bad_threshold_is_refused(simulated_field):
    with pytest.raises(InputError, match="threshold"):
        detect(simulated_field, threshold=0.0)


def test_the_real_field(sdss_folder):
    """A sparse crop: what the eye sees is found, and nothing is found on the negative of the image."""
    field = crop(read_field(sdss_folder, bands="gri"), slice(300, 556), slice(1400, 1656))
    table = detect(field)
    assert 45 <= len(table) <= 70
    assert 0.6 < table["is_star"].mean() < 0.95
    seen = [(113, 158), (190, 154), (80, 204), (82, 199), (69, 69), (72, 78), (219, 89), (212, 96)]
    for x, y in seen:
        assert np.hypot(table["x"] - x, table["y"] - y).min() < 1.5
    negative = tuple(replace(image, counts=2 * image.sky - image.counts) for image in field)
    assert len(detect(replace(field, images=negative))) <= 1
    assert reference_image(field).band == "r"
