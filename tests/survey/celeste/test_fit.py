"""A simulated field from end to end, resuming after an interruption, and bad input."""

from dataclasses import replace

import numpy as np
import pytest
from astropy import units
from astropy.table import Table

from astrozoo.checkpoint import Checkpoint
from astrozoo.data.images import Field
from astrozoo.data.simulate import simulate_field
from astrozoo.diagnostics.scoring import match
from astrozoo.errors import DataError, InputError
from astrozoo.models.celeste import load_prior
from astrozoo.survey.celeste import fit as fitting
from astrozoo.survey.celeste.catalogue import catalogue
from astrozoo.survey.celeste.companions import companions
from astrozoo.survey.celeste.field_prior import prior_of_field
from astrozoo.survey.celeste.fit import Sweeps, fit_field
from astrozoo.survey.detect import detect

SETTINGS = {"draws": 64, "progress": False, "max_sweeps": 3}


@pytest.fixture(scope="module")
def scene():
    """A star, a galaxy, and a close pair."""
    sources = Table(
        {
            "is_star": [True, False, True, True],
            "x": [22.0, 70.3, 30.0, 35.5],
            "y": [20.4, 24.0, 70.0, 71.0],
            "radius": [np.nan, 1.2, np.nan, np.nan],
            "axis_ratio": [np.nan, 0.6, np.nan, np.nan],
            "angle": [np.nan, 40.0, np.nan, np.nan],
            "dev_fraction": [np.nan, 0.0, np.nan, np.nan],
        }
    )
    for band, scale in zip("gri", (0.5, 1.0, 1.4), strict=True):
        sources[f"flux_{band}"] = scale * np.array([40.0, 60.0, 30.0, 20.0])
    return simulate_field(sources=sources, seed=3, shape=(96, 96), bands="gri")


@pytest.fixture(scope="module")
def fitted(scene):
    return fit_field(scene[0], **SETTINGS)


def test_every_source_is_recovered_within_its_posterior(scene, fitted):
    _, truth = scene
    table = catalogue(fitted)
    i, j = match(truth, table)
    assert list(i) == [0, 1, 2, 3]
    found = table[j]
    assert list(found["p_star"] > 0.5) == [True, False, True, True]
    for band in "gri":
        z = (found[f"log_flux_{band}"] - np.log(truth[f"flux_{band}"][i])) / found[f"log_flux_{band}_sd"]
        assert np.abs(z).max() < 5
    east = (found["ra"] - truth["ra"][i]) * np.cos(np.deg2rad(truth["dec"][i])) * 3.6e6
    north = (found["dec"] - truth["dec"][i]) * 3.6e6
    assert np.abs(east / found["ra_sd"]).max() < 5
    assert np.abs(north / found["dec_sd"]).max() < 5
    galaxy = found[1]
    assert abs(np.log(galaxy["radius"] / 1.2)) < 5 * galaxy["log_radius_sd"]


def test_the_residuals_are_noise(scene, fitted):
    for image, model in zip(scene[0], fitted.model, strict=True):
        chi2 = ((image.counts - model)[image.valid] ** 2 / model[image.valid]).mean()
        # 96 x 96 pixels: the standard error of a mean chi2 is sqrt(2 / 9216) = .015
        assert abs(chi2 - 1) < 5 * 0.015


def test_the_same_seed_gives_the_same_draws(scene, fitted):
    again = fit_field(scene[0], **SETTINGS)
    for name, draws in fitted.draws.items():
        np.testing.assert_array_equal(draws, again.draws[name])


def test_an_interrupted_fit_goes_on_to_the_same_answer(scene, fitted, tmp_path, monkeypatch):
    calls = []
    plain = fitting._posterior

    def interrupted(job, rows, *settings):
        calls.append(len(rows))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(job, rows, *settings)

    folder = tmp_path / "checkpoint"
    monkeypatch.setattr(fitting, "_posterior", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit_field(scene[0], checkpoint=folder, **SETTINGS)
    done = calls[0]
    resumed = fit_field(scene[0], checkpoint=folder, **SETTINGS)
    assert sum(calls[2:]) == len(resumed.detections) - done  # what was finished is not done again
    for name, draws in fitted.draws.items():
        np.testing.assert_allclose(resumed.draws[name], draws, rtol=1e-6, atol=1e-6)
    with pytest.raises(InputError, match="sources, seed and settings"):
        fit_field(scene[0], checkpoint=folder, seed=1, **SETTINGS)
    (folder / "field.sky-2.npz").write_bytes(b"cut off")
    with pytest.raises(DataError, match="unreadable"):
        fit_field(scene[0], checkpoint=folder, **SETTINGS)


def test_a_source_that_was_missed_is_found_in_the_residuals(scene):
    images, truth = scene
    job = Sweeps(images, truth[["ra", "dec"]][1:], load_prior(), 0, False, Checkpoint(None, {}))
    job.run(2, True)
    found = companions(job)
    assert len(match(truth[:1], found)[0]) == 1


def test_what_is_not_modelled_is_listed_and_its_neighbour_is_flagged(scene):
    images, truth = scene
    fit = fit_field(images, truth[["ra", "dec"]][:3], **SETTINGS)  # given sources: no search for companions
    distance = np.hypot(fit.left_over["x"] - truth["x"][3], fit.left_over["y"] - truth["y"][3])
    assert distance.min() < 1
    assert distance.max() < 8  # the source beside it is pulled, and leaves a residual of its own
    assert list(fit.flags["unmodelled_light"]) == [False, False, True]
    assert list(catalogue(fit)["unmodelled_light"]) == [False, False, True]


def test_a_field_that_is_modelled_has_nothing_left_over(fitted):
    assert len(fitted.left_over) == 0
    assert not fitted.flags["unmodelled_light"].any()


def test_the_wings_of_a_large_galaxy_are_not_taken_for_sky():
    sources = Table({"is_star": [False], "x": [95.6], "y": [96.2], "radius": [4.0], "axis_ratio": [0.7]})
    sources["angle"], sources["dev_fraction"] = [30.0], [1.0]
    for band in "gri":
        sources[f"flux_{band}"] = [631.0]
    images = simulate_field(sources=sources, seed=3, shape=(192, 192), bands="gri")[0]
    images = replace(images, images=images.images[1:2])  # r alone
    job = Sweeps(images, detect(images), prior_of_field(images), 0, False, Checkpoint(None, {}))
    job.run(12, fit_sky=True)
    assert not job.state.waiting.any()
    image = images.images[0]
    sky = job.canvas.unpadded(job.canvas.sky[0], 0)
    assert abs(float(np.mean((sky - image.sky) / np.sqrt(image.sky)))) < 0.03
    assert not job.state.outgrown.any()


def test_a_source_whose_core_is_masked_is_no_small_galaxy(scene):
    images, truth = scene
    table = truth[["ra", "dec"]]
    table["saturated"] = [True, False, False, False]
    job = Sweeps(images, table, load_prior(), 0, False, Checkpoint(None, {}))
    job.run(1, fit_sky=False)
    least = job.log_least_radius.exp().numpy()
    assert least[0] == 1.0
    assert (least[1:] < 0.3).all()


def test_a_satellite_s_trail_is_no_galaxy_that_is_a_needle_far_out_of_its_pixels():
    sky, _ = simulate_field(n_sources=0, seed=3, shape=(64, 64), bands="gri")
    y, x = np.mgrid[:64, :64]
    trail = np.random.default_rng(0).poisson(300 * np.exp(-0.5 * ((y - x) / 1.5) ** 2))
    images = Field(tuple(replace(image, counts=image.counts + trail) for image in sky), sky.name)
    job = Sweeps(images, detect(images), load_prior(), 0, False, Checkpoint(None, {}))
    job.run(1, fit_sky=False)  # without the rule, two of ten are needles, the longest of six half sizes
    rows = np.arange(len(job.sources))
    galaxy = (job.p_star(rows) < 1).numpy()
    assert 0 < galaxy.sum() < len(rows)
    log_radius, eta1, eta2 = job.state.mode["galaxy"][:, 2:5].numpy().T
    flattening = np.hypot(eta1, eta2)
    semi_major = np.exp(log_radius + 0.5 * flattening) / 0.396  # px
    assert ((semi_major <= 2 * job.sources.half) | (np.exp(-flattening) >= 0.1))[galaxy].all()
    assert all(light.isfinite().all() for light in job.state.light)


def test_a_catalogue_of_positions_is_enough(scene):
    images, truth = scene
    fit = fit_field(Field(images.images[1:2]), truth[["ra", "dec"]][:2], **SETTINGS)  # r alone
    z = np.log(truth["flux_r"][:2]) - fit.draws["log_flux"].mean(1)
    assert (np.abs(z) < 5 * fit.draws["log_flux"].std(1)).all()


@pytest.mark.parametrize(
    ("catalog", "message"),
    [
        (Table({"x": [1.0], "y": [2.0]}), "ra and dec"),
        (Table({"ra": [np.nan], "dec": [0.0]}), "no sky coordinates"),
        (Table({"ra": [100.0], "dec": [50.0]}), "in no image"),
        (Table({"ra": ["north"], "dec": [0.5]}), "an angle such as"),
        (Table({"ra": [3.0] * units.m, "dec": [0.5]}), "the unit m, expected deg"),
    ],
)
def test_a_bad_catalogue_is_named(scene, catalog, message):
    with pytest.raises(InputError, match=message):
        fit_field(scene[0], catalog, **SETTINGS)


def test_an_empty_catalogue_gives_an_empty_fit(scene):
    fit = fit_field(scene[0], Table({"ra": np.zeros(0), "dec": np.zeros(0)}), **SETTINGS)
    assert len(catalogue(fit)) == 0


def test_bands_that_a_given_prior_does_not_have_are_named(scene):
    with pytest.raises(InputError, match=r"bands: got \['Y'\], expected bands with a prior, u, g, r, i, z"):
        fit_field(Field((replace(scene[0].images[0], band="Y"),)), prior=load_prior(), **SETTINGS)


@pytest.mark.parametrize("band", ["Y", "narrow"])  # a known wavelength, and none
def test_a_band_beyond_sdss_is_fitted(scene, band):
    images, truth = scene
    field = Field((images.images[0], replace(images.images[2], band=band)))
    table = catalogue(fit_field(field, truth[["ra", "dec"]], **SETTINGS))
    for name, true in (("g", "g"), (band, "i")):
        z = (table[f"log_flux_{name}"] - np.log(truth[f"flux_{true}"])) / table[f"log_flux_{name}_sd"]
        assert np.abs(z).max() < 5
    assert list(table["p_star"] > 0.5) == list(truth["is_star"])


def test_a_field_of_sky_alone_gives_an_empty_fit(scene):
    rng = np.random.default_rng(0)
    sky = Field(tuple(replace(i, counts=rng.poisson(i.sky).astype(float)) for i in scene[0]))
    fit = fit_field(sky, **SETTINGS)
    assert len(fit.detections) == len(catalogue(fit)) == 0
    assert fit.draws["colour"].shape == (0, 64, 4)
    assert len(fit.model) == 3


@pytest.fixture(scope="module")
def apart():
    """Four sources well apart, 18 to 20 mag, in five bands."""
    return simulate_field(n_sources=4, seed=11, shape=(96, 96), r_range=(18, 20), min_separation=24)


@pytest.mark.parametrize("what", ["five bands", "without the reference band", "two epochs"])
def test_fields_of_any_bands_and_epochs(apart, what):
    images, truth = apart
    if what == "without the reference band":
        images = Field(tuple(i for i in images if i.band in "gi"))
    elif what == "two epochs":  # of other noise and another corner of the sky
        first, second = (
            simulate_field(sources=truth, seed=seed, shape=(96, 96), bands="gr")[0] for seed in (21, 22)
        )
        images = Field(first.images + tuple(i.crop(slice(0, 80), slice(7, 96)) for i in second))
    fit = fit_field(images, **SETTINGS)
    table = catalogue(fit)
    i, j = match(truth, table)
    assert list(i) == [0, 1, 2, 3]
    assert len(table) == 4
    assert fit.converged.all()
    assert list(fit.p_star[j] > 0.5) == list(truth["is_star"][i])
    pixels = fit.n_pixels.sum() / len(images.images)  # of each image; a band has one or more
    chi2 = np.average(fit.chi2, axis=0, weights=fit.n_pixels)
    assert (np.abs(chi2 - 1) < 5 * np.sqrt(2 / pixels)).all()
    for band in images.bands:
        z = (table[f"log_flux_{band}"][j] - np.log(truth[f"flux_{band}"][i])) / table[f"log_flux_{band}_sd"][
            j
        ]
        assert np.abs(z).max() < 5
    if what == "two epochs":
        whole = fit_field(Field(images.images[:2]), truth[["ra", "dec"]], **SETTINGS)
        once = whole.draws["log_flux"].std(1)[i]
        assert np.median(fit.draws["log_flux"].std(1)[j] / once) < 0.85  # of 1 / sqrt(2), more or less


def test_a_close_pair_of_known_positions_is_fitted_together():
    pair = Table({"is_star": [True, True], "x": [40.0, 45.0], "y": [48.0, 48.0]})
    for name in ("radius", "axis_ratio", "angle", "dev_fraction"):
        pair[name] = np.nan
    for band, scale in zip("gri", (0.5, 1.0, 1.4), strict=True):
        pair[f"flux_{band}"] = scale * np.array([30.0, 12.0])
    images, truth = simulate_field(sources=pair, seed=5, shape=(80, 96), bands="gri")
    fit = fit_field(images, truth[["ra", "dec"]], **(SETTINGS | {"max_sweeps": 5}))
    assert fit.converged.all()
    assert (fit.p_star > 0.5).all()
    log_flux = fit.draws["log_flux"]
    assert (np.abs(log_flux.mean(1) - np.log(truth["flux_r"])) < 5 * log_flux.std(1)).all()


@pytest.mark.parametrize("setting", ["draws", "max_sweeps"])
def test_nothing_to_do_is_refused(scene, setting):
    with pytest.raises(InputError, match=f"{setting}: got 0"):
        fit_field(scene[0], **{**SETTINGS, setting: 0})


def test_a_fully_masked_field_is_refused_with_a_catalogue_too(scene):
    images, truth = scene
    masked = tuple(replace(image, valid=np.zeros_like(image.valid)) for image in images)
    with pytest.raises(InputError, match="every pixel masked"):
        fit_field(Field(masked), truth[["ra", "dec"]], **SETTINGS)


def test_masked_pixels_and_images_without_any_value_leave_the_others_as_they_are(scene):
    images, truth = scene
    table = truth[["ra", "dec"]][:1]
    alone = fit_field(Field(tuple(i for i in images if i.band != "r")), table, **SETTINGS)
    spoilt = []
    for image in images:
        empty = np.zeros(image.shape, bool)
        if image.band == "r":  # the reference image
            spoilt.append(replace(image, valid=empty, sky=np.nan * image.sky, calibration=0 * image.sky))
        else:
            empty[60:63, 60:63] = True
            sky, calibration = np.where(empty, 0.0, image.sky), np.where(empty, -1.0, image.calibration)
            spoilt.append(replace(image, valid=~empty, sky=sky, calibration=calibration))
    fit = fit_field(Field(tuple(spoilt)), table, **SETTINGS)
    assert fit.field.bands == ("g", "i")
    names = ("flux_g", "flux_i", "ra", "dec")
    for name in names:
        assert catalogue(fit)[name][0] == pytest.approx(catalogue(alone)[name][0], rel=0.02)
    assert len(detect(Field(tuple(spoilt)))) > 0


def test_positions_in_other_units_are_the_same_fit(scene):
    images, truth = scene
    plain = fit_field(images, truth[["ra", "dec"]][:1], **SETTINGS)
    table = Table({k: np.deg2rad(np.asarray(truth[k][:1])) * units.rad for k in ("ra", "dec")})
    radians = fit_field(images, table, **SETTINGS)
    np.testing.assert_allclose(catalogue(radians)["flux_r"], catalogue(plain)["flux_r"], rtol=1e-3)
