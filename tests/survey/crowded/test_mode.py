from dataclasses import replace

import numpy as np
import pytest

from astrozoo.errors import InputError
from astrozoo.survey.crowded import mode
from astrozoo.survey.crowded.mode import fit_mode
from astrozoo.survey.crowded.psf_refit import refit
from astrozoo.survey.crowded.scene import Scene, Sources, expected, stamp_of_table


def _matched(xy, flux, sources, *, within=0.5):
    """For each true star, the nearest source within a distance and half a magnitude, or -1."""
    found = []
    for place, light in zip(xy, flux[:, 1], strict=True):
        near = np.hypot(*(sources.xy - place).T)
        close = (near < within) & (np.abs(np.log(sources.flux[:, 1] / light)) < 0.46)
        found.append(int(np.where(close, near, np.inf).argmin()) if close.any() else -1)
    return np.array(found)


def test_stars_are_found_from_nothing(scene, truth):
    fit = fit_mode(scene, refit_psf=False)
    match = _matched(*truth, fit.sources)
    assert (match >= 0).sum() >= 24
    assert len(fit.sources) <= 27
    assert len(set(match[match >= 0])) == (match >= 0).sum()
    np.testing.assert_allclose(fit.chi2, 1, atol=0.08)
    assert (fit.log_flux_sd > 0).all()
    assert (fit.xy_sd > 0).all()
    assert fit.trace[0].threshold == 100
    assert fit.trace[-1].stars == len(fit.sources)
    again = fit_mode(scene, refit_psf=False)
    assert (again.sources.xy == fit.sources.xy).all()
    assert (again.sources.flux == fit.sources.flux).all()


def test_galaxies_are_one_source_each_and_stars_stay_stars(field_of, truth_of):
    xy, flux = truth_of(14, seed=3, apart=6.0)
    xy[:3] = [[8.0, 9.5], [29.4, 22.2], [11.3, 31.8]]
    clear = np.hypot(*(xy[3:, None] - xy[None, :3]).transpose(2, 0, 1)).min(1) > 5
    keep = np.concatenate([np.ones(3, bool), clear])
    xy, flux = xy[keep], flux[keep]
    radius = np.where(np.arange(len(xy)) < 3, 2.0, 0.0)
    flux[:3] = [[12.0, 24.0], [25.0, 40.0], [15.0, 20.0]]
    scene = Scene.of(field_of(xy, flux, radius=radius))
    fit = fit_mode(scene, refit_psf=False)
    galaxies = fit.sources.take(~fit.sources.is_star)
    assert len(galaxies) == 3
    for place, light in zip(xy[:3], flux[:3], strict=True):
        distance = np.hypot(*(galaxies.xy - place).T)
        assert distance.min() < 0.3
        np.testing.assert_allclose(galaxies.flux[distance.argmin()], light, rtol=0.15)
        assert 1.1 < galaxies.shape[distance.argmin(), 0] < 4.0
    assert len(fit.sources) <= len(xy) + 2
    assert np.isnan(fit_mode(scene, xy, refit_psf=False).sources.shape).all()  # catalogues are of stars


def test_an_empty_field_has_no_stars(field_of):
    fit = fit_mode(Scene.of(field_of(np.zeros((0, 2)), np.zeros((0, 2)))), thresholds=(100.0, 25.0))
    assert len(fit.sources) == 0
    np.testing.assert_allclose(fit.chi2, 1, atol=0.1)


def test_a_blend_is_separated(field_of):
    xy = np.array([[18.0, 20.0], [20.4, 20.0], [19.0, 22.2]])
    flux = np.array([[30.0, 40.0], [20.0, 30.0], [15.0, 20.0]])
    scene = Scene.of(field_of(xy, flux, seed=2))
    fit = fit_mode(scene, refit_psf=False, thresholds=(100.0, 60.0, 36.0, 25.0))
    assert (_matched(xy, flux, fit.sources) >= 0).all()
    assert len(fit.sources) == 3


def _crowd(seed=5, count=140):
    """One star per 9 px^2: their distances are as small as a pixel."""
    rng = np.random.default_rng(seed)
    xy = rng.uniform(2, 37, (count, 2))
    red = 1.2 * rng.uniform(size=count) ** -1.2
    red = np.minimum(red, 300)
    return xy, np.column_stack([red * 0.6, red])


@pytest.mark.parametrize("given", [False, True])
def test_a_killed_fit_continues_exactly(field_of, truth, monkeypatch, tmp_path, given):
    xy, flux = truth
    scene = Scene.of(field_of(xy, 3 * flux, sharper=1.06))
    options = {"positions": xy, "position_error": 0.05} if given else {"thresholds": (100.0, 36.0)}
    whole = fit_mode(scene, **options)
    assert (whole.scene.psf[1] != scene.psf[1]).any()
    settle, path, kills = mode._Fit.settle, tmp_path / "mode.npz", 0
    monkeypatch.setattr("astrozoo.checkpoint.SAVE_INTERVAL", 0.0)
    for _ in range(20):  # each process lives for four solutions: at most two rounds
        calls = iter(range(4))

        def killed(self, steps, calls=calls):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            settle(self, steps)

        monkeypatch.setattr(mode._Fit, "settle", killed)
        try:
            continued = fit_mode(scene, checkpoint=path, **options)
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills >= 2
    for name in ("xy", "flux", "shape"):
        np.testing.assert_array_equal(getattr(continued.sources, name), getattr(whole.sources, name))
    np.testing.assert_array_equal(continued.log_flux_sd, whole.log_flux_sd)
    np.testing.assert_array_equal(continued.scene.psf, whole.scene.psf)
    assert continued.trace == whole.trace
    with pytest.raises(InputError, match="settings"):
        fit_mode(scene, checkpoint=path, **options | {"refit_psf": False})


def test_given_positions_stay_within_their_error_and_fluxes_come_first(field_of):
    xy, flux = _crowd()
    scene = Scene.of(field_of(xy, flux, seed=6))
    fit = fit_mode(scene, xy, position_error=0.1, refit_psf=False)
    shift = np.hypot(*(fit.sources.xy - xy).T)
    assert np.median(shift) < 0.1
    assert shift.max() < 0.4
    assert (fit.chi2 < 1.3).all()
    assert fit.sources.flux[:, 1].sum() == pytest.approx(flux[:, 1].sum(), rel=0.03)
    cold = fit_mode(scene, xy, position_error=0.1, refit_psf=False, fluxes_first=False)
    assert cold.chi2.sum() > fit.chi2.sum()
    assert np.abs(np.log(fit.sources.flux / flux))[flux[:, 1] > 5].mean() < 0.1


def test_the_psf_is_corrected_by_bright_stars(field_of, truth):
    xy, flux = truth
    scene = Scene.of(field_of(xy, 3 * flux, sharper=1.06))
    true = Scene.of(field_of(xy, 3 * flux))
    broad = expected(scene, Sources.stars(xy, 3 * flux))
    fit = fit_mode(scene, xy, position_error=0.05)
    assert all(chi2 < 1.2 for chi2 in fit.chi2)
    assert all(peak(fit.scene, k) > 1.06 * peak(true, k) for k in range(2))
    assert (fit.scene.psf_error < 0.02).all()
    assert ((scene.counts[1] - broad[1]) ** 2 / broad[1]).mean() > 2 * fit.chi2[1]


def peak(scene, k):
    return stamp_of_table(scene.psf[k]).max()


def test_undetected_stars_do_not_broaden_the_psf(field_of, truth_of):
    xy, flux = truth_of(7, seed=8, apart=9.0)
    flux = 40 + 2 * flux
    rng = np.random.default_rng(9)
    faint = rng.uniform(-3, 43, (240, 2))  # one per 9 px^2
    scene = Scene.of(field_of(np.vstack([xy, faint]), np.vstack([flux, np.full((240, 2), 0.8)])))
    diffuse = [calibration * 0.8 / 9 for calibration in scene.calibration]
    scene = replace(scene, sky=tuple(sky + d for sky, d in zip(scene.sky, diffuse, strict=True)))

    corrected = refit(scene, Sources.stars(xy, flux))
    broadening = [1 - peak(corrected, k) / peak(scene, k) for k in range(2)]
    assert np.abs(broadening).max() < 0.02


def test_missing_wings_of_the_psf_are_added(field_of, truth_of):
    xy, flux = truth_of(9, seed=8, apart=9.0)
    field = field_of(xy, 40 + 2 * flux)
    true = Scene.of(field)
    side = true.psf[0].shape[0]
    distance = np.hypot(*(np.mgrid[:side, :side] - (side - 1) / 2)) / true.oversampling
    cut = [np.where(distance < 5, table, 0.0) for table in true.psf]
    scene = replace(true, psf=tuple(table * (true.oversampling**2 / table.sum()) for table in cut))
    corrected = refit(scene, Sources.stars(xy, 40 + 2 * flux))
    for k in range(2):
        wings = [table[k][distance > 5].sum() / table[k].sum() for table in (corrected.psf, true.psf)]
        assert 0.4 * wings[1] < wings[0] < 1.2 * wings[1]


def test_few_bright_stars_leave_the_psf_as_it_is(field_of):
    xy, flux = np.array([[10.0, 10.0], [25.0, 30.0]]), np.full((2, 2), 50.0)
    scene = Scene.of(field_of(xy, flux), psf_error=0.01)
    corrected = refit(scene, Sources.stars(xy, flux))
    assert all((a == b).all() for a, b in zip(scene.psf, corrected.psf, strict=True))
    assert (corrected.psf_error == 0.01).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"positions": np.array([[np.nan, 0.0]])}, "positions of a catalogue"),
        ({"positions": np.zeros((2, 2)), "position_error": 0.0}, "position error"),
        ({"positions": np.zeros((2, 2)), "position_error": np.ones(3)}, "position errors"),
        ({"thresholds": (9.0, 16.0)}, "thresholds"),
        ({"grow": False}, "no positions"),
    ],
)
def test_bad_input_is_refused(scene, arguments, message):
    with pytest.raises(InputError, match=message):
        fit_mode(scene, **arguments)
