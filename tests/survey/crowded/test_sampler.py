"""The sampler against known answers: the prior, an integral by brute force, itself after an interruption."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kstest

from astrozoo.errors import InputError
from astrozoo.survey.crowded import sampler
from astrozoo.survey.crowded._fluxes import draw_fluxes, fit_fluxes, log_flux_prior, log_prior, log_proposal
from astrozoo.survey.crowded._tile import subtract
from astrozoo.survey.crowded.learning import integral
from astrozoo.survey.crowded.prior import FieldPrior, Population
from astrozoo.survey.crowded.sampler import sample
from astrozoo.survey.crowded.scene import Scene, Sources, expected, psf_table
from astrozoo.survey.crowded.tables import MARGIN, canvas_of, core_half, prior_tables, shape_grid, unpad

SIGMA = 1.3


def _scene(
    shape: tuple[int, int],
    bands: tuple[str, ...] = ("g", "r", "i"),
    *,
    sources: Sources | None = None,
    seed: int = 0,
    sky: float = 200.0,
    calibration: float = 100.0,
) -> Scene:
    """Images shifted by fractions of a pixel against each other, with a Gaussian PSF and Poisson counts."""
    offset = np.arange(25) - 12
    profile = np.exp(-0.5 * (offset / SIGMA) ** 2)
    stamp = np.outer(profile, profile) / profile.sum() ** 2
    number = len(bands)
    affine = np.stack([[[1, 0, 0.3 * k], [0, 1, -0.2 * k]] for k in range(number)])

    def flat(value: float) -> tuple[np.ndarray, ...]:
        return tuple(np.full(shape, value) for _ in bands)

    scene = Scene(
        band=bands,
        counts=flat(sky),
        sky=flat(sky),
        calibration=flat(calibration),
        valid=tuple(np.ones(shape, bool) for _ in bands),
        affine=affine,
        psf=(psf_table(stamp),) * number,
        psf_error=np.zeros(number),
        shape=shape,
    )
    if sources is None:
        return scene
    rng = np.random.default_rng(seed)
    return replace(scene, counts=tuple(rng.poisson(e).astype(float) for e in expected(scene, sources)))


def _prior(
    bands: tuple[str, ...] = ("g", "r", "i"),
    *,
    density: float = 0.05,
    limits: tuple[float, float] = (1.0, 50.0),
    galaxies: float = 0.2,
) -> FieldPrior:
    knots = np.linspace(*np.log(limits), 5)
    line = -0.6 * knots
    line = line - np.log(integral(knots, line))
    reference = bands.index("r")
    ratio = np.linspace(-0.4, -0.2, 5)[:, None] * (np.arange(len(bands)) != reference)
    size = len(bands) - 1
    scatter = 0.1**2 * (0.7 * np.eye(size) + 0.3)
    star = Population(density * (1 - galaxies), knots, line, ratio, scatter)
    galaxy = Population(density * galaxies, knots, line, ratio / 2, 4 * scatter)
    return FieldPrior(bands, reference, star, galaxy, (0.2, 0.4), 0.4)


@pytest.fixture
def make_scene() -> Callable[..., Scene]:
    return _scene


@pytest.fixture
def make_prior() -> Callable[..., FieldPrior]:
    return _prior


def test_cores_are_those_of_the_scene(make_scene, make_prior):
    scene = make_scene((20, 24))
    shapes = shape_grid(make_prior(), 3.0)
    canvas = canvas_of(scene, shapes, 6)
    number = np.array([0, 30])
    sources = Sources(np.array([[9.3, 8.8], [12.9, 11.6]]), np.full((2, 3), 7.0), shapes.shape[number])
    for s in range(2):
        flat = np.zeros(len(canvas.weight))
        x, y = sources.xy[[s]].T
        subtract(canvas, flat, x, y, number[[s]], sources.flux[[s]])
        for k, image in enumerate(expected(scene, sources.take(np.array([s])))):
            core = -unpad(canvas, k, flat, image.shape)
            light = (image - scene.sky[k]) / scene.calibration[k]
            inside = core != 0
            assert inside.sum() >= 13 * 13 - 20
            np.testing.assert_allclose(core[inside], light[inside], atol=7e-4 * light.max())


def test_prior_of_a_source_is_that_of_the_field(make_prior):
    prior = make_prior()
    shapes = shape_grid(prior, 3.0)
    tables = prior_tables(prior, shapes)
    flux = np.array([[5.0, 7.0, 5.5], [2.0, 1.5, 1.2], [0.3, 0.5, 0.4]])
    number = np.array([0, 17, 0])
    kernel = [log_prior(tables, s, f) for s, f in zip(number, flux, strict=True)]
    shape = np.full((3, 3), np.nan)
    field = prior.log_intensity(flux, shape) - np.log(flux).sum(1)
    assert kernel[0] == pytest.approx(field[0])
    as_galaxy = prior.galaxy.log_intensity(flux[[1]], prior.reference) - np.log(flux[1]).sum()
    assert kernel[1] == pytest.approx(as_galaxy[0] + shapes.log_mass[17])
    assert kernel[2] == field[2] == -np.inf
    assert np.exp(shapes.log_mass[1:]).sum() == pytest.approx(1)
    for i, j in itertools.product(range(1, len(shapes.shape)), repeat=2):
        assert (shapes.neighbour[i] == j).sum() == (shapes.neighbour[j] == i).sum()


def _ratios(rng, prior, n, shape, precision, cross, score, size):
    bands = precision.shape[1]
    factor, mean, flux = np.zeros((2 * bands, 2 * bands)), np.zeros(2 * bands), np.ones((2, bands))
    fit_fluxes(prior, n, shape, precision, cross, score, factor, mean)
    ratio = np.empty(size)
    for t in range(size):
        draw_fluxes(rng, prior, n, shape, factor, mean, flux)
        ratio[t] = -log_proposal(prior, n, shape, factor, mean, flux)
        for m in range(n):
            ratio[t] += log_flux_prior(prior, min(shape[m], 1), flux[m])
    return np.exp(ratio)


@pytest.mark.parametrize("n", [1, 2])
def test_proposals_of_fluxes_have_the_density_that_is_stated(make_prior, n):
    """The mean of prior / proposal is 1; it is at most 1 / share of the prior."""
    prior = make_prior()
    tables = prior_tables(prior, shape_grid(prior, 3.0))
    precision = np.array([[3.0, 5.0, 2.0], [3.1, 4.8, 2.1]])
    score, cross = np.array([[9.0, 22.0, 8.0], [7.0, 15.0, 3.0]]), np.array([1.5, 2.2, 1.1])
    shape = np.array([0, 12])
    ratio = _ratios(np.random.default_rng(1), tables, n, shape, precision, cross, score, 40_000)
    assert ratio.mean() == pytest.approx(1, abs=5 * ratio.std() / len(ratio) ** 0.5)
    assert ratio.std() / len(ratio) ** 0.5 < 0.05


def test_without_data_the_prior_is_reproduced(make_scene, make_prior):
    scene = make_scene((14, 14))
    scene = replace(scene, valid=tuple(np.zeros((14, 14), bool) for _ in scene.band))
    prior = make_prior(density=0.05)
    start = Sources.stars(np.full((20, 2), 6.0), np.tile([5.0, 6.0, 5.0], (20, 1)))
    samples = sample(scene, start, prior, seed=2, chains=2, steps=6000, keep=300)
    names, mixing = samples.mixing()
    effective = dict(zip(names, mixing.bulk_ess[0].tolist(), strict=True))
    counts = samples.totals()["sources"]
    mean = 0.05 * (14 + 2 * MARGIN) ** 2
    assert effective["sources"] > 150
    assert counts.mean() == pytest.approx(mean, abs=4 * (mean / effective["sources"]) ** 0.5)
    assert counts.var() == pytest.approx(mean, rel=4 * (2 / effective["sources"]) ** 0.5)
    galaxies = 1 - samples.is_star.mean()
    assert galaxies == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / (mean * effective["sources"])) ** 0.5)
    every = samples.sample % 10 == 0  # nearly independent
    log_flux = np.log(samples.flux[every, 1])
    knots = prior.star.log_flux
    cdf = lambda t: np.expm1(-0.6 * (t - knots[0])) / np.expm1(-0.6 * (knots[-1] - knots[0]))  # noqa: E731
    assert kstest(log_flux, cdf).pvalue > 1e-3
    for axis in range(2):
        place = (samples.xy[every, axis] + 0.5 + MARGIN) / (14 + 2 * MARGIN)
        assert kstest(place, "uniform").pvalue > 1e-3
    star = every & samples.is_star
    ratio = np.log(samples.flux[star, 0] / samples.flux[star, 1])
    deviation = ratio - np.interp(np.log(samples.flux[star, 1]), knots, prior.star.log_ratio[:, 0])
    assert kstest(deviation / 0.1, "t", args=(4,)).pvalue > 1e-3
    assert set(samples.acceptance) == set(samples.tally)
    assert all(0 < share < 1 for share in samples.acceptance.values())


def _evidence(scene, prior, spacing):
    """Prior x likelihood of no, one and two stars, integrated on a grid of positions and fluxes, one band.

    Fluxes of the image are those of its model variance, the sky: the grid's likelihood is the sampler's with
    the variance of a scene without sources.
    """
    height, width = scene.shape
    half = core_half(scene)
    canvas = canvas_of(scene, shape_grid(prior, half / 2), half)
    edge = MARGIN + 0.5
    axes = [np.arange(-edge + spacing / 2, side - 1 + edge, spacing) for side in (width, height)]
    xy = np.array(list(itertools.product(*axes)))
    stamps = []
    for x, y in xy:
        flat = np.zeros(len(canvas.weight))
        subtract(canvas, flat, np.array([x]), np.array([y]), np.array([0]), np.ones((1, 1)))
        stamps.append(-unpad(canvas, 0, flat, scene.shape).ravel())
    stamps = np.array(stamps)
    weight = scene.calibration[0].ravel() ** 2 / scene.sky[0].ravel()
    residual = ((scene.counts[0] - scene.sky[0]) / scene.calibration[0]).ravel()
    g, a = stamps @ (weight * residual), (stamps * weight) @ stamps.T
    knots = prior.star.log_flux
    log_flux = np.linspace(knots[0], knots[-1], 25)
    rule = np.full(25, log_flux[1] - log_flux[0])
    rule[[0, -1]] /= 2
    rule *= np.exp(prior.star.log_luminosity(log_flux)) * prior.star.density * spacing**2
    f = np.exp(log_flux)
    single = np.exp(np.multiply.outer(g, f) - 0.5 * np.multiply.outer(np.diag(a), f**2)) * rule
    pair = 0.0
    for total in range(2 * 25 - 1):  # the product of two fluxes depends on the sum of their indices
        i = np.arange(max(0, total - 24), min(total, 24) + 1)
        overlap = np.exp(-np.exp(2 * log_flux[0] + total * (log_flux[1] - log_flux[0])) * a)
        pair += (single[:, i] * (overlap @ single[:, total - i])).sum()
    return np.array([1.0, single.sum(), pair / 2])


def test_number_of_sources_is_that_of_the_integral(make_scene, make_prior, monkeypatch):
    """Two faint stars, whose number is in doubt: births, deaths, splits and mergers against a grid."""
    bands = ("r",)
    true = Sources.stars(np.array([[4.0, 4.5], [6.2, 4.0]]), np.array([[1.6], [1.0]]))
    scene = make_scene((10, 10), bands, sources=true, seed=5)
    prior = make_prior(bands, density=0.01, limits=(0.5, 8.0), galaxies=0.0)
    monkeypatch.setattr(sampler, "SKY_SD", (1e-9,) * 3)
    monkeypatch.setattr(sampler._Run, "_light", lambda self, catalogue: [np.zeros((10, 10))])
    monkeypatch.setattr(sampler._Run, "_core", lambda self, catalogue: [np.zeros((10, 10))])
    start = Sources.stars(np.repeat(true.xy, 5, 0), np.repeat(true.flux, 5, 0))
    samples = sample(scene, start, prior, seed=1, chains=2, steps=12_000, keep=450)
    counts = samples.totals()["sources"]
    few = np.array([(counts == n).mean() for n in range(3)])
    wanted = _evidence(scene, prior, 0.5)
    wanted /= wanted.sum()
    names, mixing = samples.mixing()
    effective = float(mixing.bulk_ess[0, names.index("sources")])
    assert effective > 400
    assert min(wanted[1:]) > 0.1
    np.testing.assert_allclose(few / few.sum(), wanted, atol=4 * 0.5 / effective**0.5)


@pytest.fixture
def pair(make_scene):
    true = Sources.stars(np.array([[4.0, 5.0], [8.2, 6.1]]), np.array([[20.0, 30.0, 25.0], [8.0, 11.0, 9.0]]))
    return make_scene((12, 40), sources=true), true


def test_result_does_not_depend_on_threads(pair, make_prior, monkeypatch):
    scene, true = pair
    results = []
    for threads in (1, 3):
        monkeypatch.setattr(sampler, "available_cores", lambda threads=threads: threads)
        results.append(sample(scene, true, make_prior(), seed=3, chains=2, steps=400, keep=5))
    np.testing.assert_array_equal(results[0].flux, results[1].flux)
    assert results[0].tally == results[1].tally


def test_interrupted_run_continues_exactly(pair, make_prior, monkeypatch, tmp_path):
    scene, true = pair
    options = {"seed": 3, "chains": 2, "steps": 400, "keep": 5}
    whole = sample(scene, true, make_prior(), **options)
    advance = sampler._Run.advance

    def killed(self, pool):
        if self.sweep == 14:
            raise KeyboardInterrupt
        advance(self, pool)

    path = tmp_path / "run.npz"
    monkeypatch.setattr("astrozoo.checkpoint.SAVE_INTERVAL", 0.0)
    monkeypatch.setattr(sampler._Run, "advance", killed)
    with pytest.raises(KeyboardInterrupt):
        sample(scene, true, make_prior(), checkpoint=path, **options)
    monkeypatch.setattr(sampler._Run, "advance", advance)
    continued = sample(scene, true, make_prior(), checkpoint=path, **options)
    np.testing.assert_array_equal(whole.flux, continued.flux)
    np.testing.assert_array_equal(whole.sky, continued.sky)
    assert whole.tally == continued.tally
    with pytest.raises(InputError, match="settings"):
        sample(scene, true, make_prior(), checkpoint=path, **options | {"seed": 4})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chains": 0}, "chains"),
        ({"steps": 0}, "steps"),
        ({"keep": 0}, "keep"),
    ],
)
def test_bad_numbers(pair, make_prior, change, message):
    with pytest.raises(InputError, match=message):
        sample(*pair, make_prior(), **change)


def test_bad_bands_and_starts(pair, make_prior):
    scene, true = pair
    with pytest.raises(InputError, match="bands"):
        sample(scene, true, make_prior(("g", "r")))
    with pytest.raises(InputError, match="positive"):
        sample(scene, Sources.stars(true.xy, -true.flux), make_prior())
    galaxy = Sources(true.xy, true.flux, np.array([[1.0, 0, 0], [np.nan] * 3]))
    with pytest.raises(InputError, match="1 galaxies"):
        sample(scene, galaxy, make_prior(galaxies=0.0))
