import numpy as np
import pytest
from astropy.table import Table

from astrozoo.data.simulate import draw_sources, load_priors, simulate_field
from astrozoo.errors import InputError


def _source(flux: float = 1e5, *, star: bool, x: float = 60.0, y: float = 60.0, **shape: float) -> Table:
    row = {"is_star": star} | {f"flux_{b}": flux for b in "ugriz"}
    row |= {"dev_fraction": np.nan, "radius": np.nan, "axis_ratio": np.nan, "angle": np.nan} | shape
    return Table([row | {"x": x, "y": y}])


def _moments(values: np.ndarray, x0: float, y0: float) -> tuple[float, np.ndarray, np.ndarray]:
    y, x = np.mgrid[: values.shape[0], : values.shape[1]]
    offset = np.stack([x - x0, y - y0])
    total = values.sum()
    mean = (offset * values).sum((1, 2)) / total
    centred = offset - mean[:, None, None]
    return total, mean, np.einsum("iyx,jyx,yx->ij", centred, centred, values) / total


@pytest.mark.parametrize("psf", ["moffat", "kolmogorov"])
def test_star_lands_on_its_sky_position_with_its_flux(psf: str) -> None:
    field, truth = simulate_field(
        seed=0, shape=(121, 121), psf=psf, sources=_source(star=True, x=58.3, y=61.6)
    )
    for image in field:
        x, y = image.wcs.world_to_pixel_values(truth["ra"][0], truth["dec"][0])
        total, mean, _ = _moments(image.nanomaggies, float(x), float(y))
        assert total == pytest.approx(1e5, rel=0.004)  # a Kolmogorov PSF's wings leave the image
        assert np.abs(mean).max() < 0.05


def test_bands_are_offset_by_a_few_pixels_and_psfs_differ() -> None:
    field, truth = simulate_field(seed=0, shape=(65, 65), n_sources=1)
    at = np.array([image.wcs.world_to_pixel_values(truth["ra"][0], truth["dec"][0]) for image in field])
    assert at[2] == pytest.approx([truth["x"][0], truth["y"][0]], abs=1e-8)
    assert at[1] - at[2] == pytest.approx([3.3, 11.2], abs=0.05)
    peaks = [image.psf.stamp(0, 0).max() for image in field]
    assert len({round(float(peak), 4) for peak in peaks}) == 5


@pytest.mark.parametrize(("angle", "ratio"), [(0.0, 0.4), (35.0, 0.6), (120.0, 0.3)])
def test_shape_convention(angle: float, ratio: float) -> None:
    """An exponential's variance along the major axis is 3 h^2; h = radius / 1.6783 / sqrt(ratio)."""
    shape, radius = (121, 121), 1.5
    kinds = {
        "star": _source(1e6, star=True),
        "galaxy": _source(1e6, star=False, dev_fraction=0.0, radius=radius, axis_ratio=ratio, angle=angle),
    }
    moments = {}
    for kind, sources in kinds.items():
        field, _ = simulate_field(seed=1, shape=shape, bands="r", sources=sources)
        image = field.images[0]
        moments[kind] = _moments(image.nanomaggies, 60, 60)[2]
    to_sky = image.wcs.wcs.cd * 3600  # (x, y) -> (east, north) [arcsec]
    covariance = to_sky @ (moments["galaxy"] - moments["star"]) @ to_sky.T
    value, vector = np.linalg.eigh(covariance)
    assert value[1] == pytest.approx(3 * (radius / 1.67835) ** 2 / ratio, rel=0.02)
    assert np.sqrt(value[0] / value[1]) == pytest.approx(ratio, abs=0.01)
    east, north = vector[:, 1]
    off = (np.degrees(np.arctan2(east, north)) - angle + 90) % 180 - 90
    assert abs(off) < 0.5


def test_half_of_a_de_vaucouleurs_galaxy_lies_within_its_radius() -> None:
    """Large against the PSF, so that the PSF moves little light across the circle."""
    radius = 6.0
    sources = _source(
        1e6, star=False, x=400, y=400, dev_fraction=1.0, radius=radius, axis_ratio=1.0, angle=0.0
    )
    field, _ = simulate_field(seed=1, shape=(801, 801), bands="r", sources=sources)
    y, x = np.mgrid[:801, :801] - 400
    inside = np.hypot(x, y) < radius / 0.396
    assert field.images[0].nanomaggies[inside].sum() == pytest.approx(0.5e6, rel=0.02)


def test_noise_has_the_mean_and_variance_of_the_model() -> None:
    field, _ = simulate_field(seed=2, shape=(200, 200), n_sources=0)
    for image in field:
        sky = image.sky[0, 0]
        assert image.counts.mean() == pytest.approx(sky, abs=4 * np.sqrt(sky / image.counts.size))
        assert image.counts.var() == pytest.approx(sky, rel=4 * np.sqrt(2 / image.counts.size))


def test_same_seed_same_field() -> None:
    (a, truth_a), (b, truth_b) = (
        simulate_field(seed=3, shape=(64, 64), n_sources=3, bands="gr") for _ in range(2)
    )
    assert all(np.array_equal(i.counts, j.counts) for i, j in zip(a, b, strict=True))
    assert np.array_equal(truth_a["ra"], truth_b["ra"])
    assert a.bands == ("g", "r")


def test_truth_follows_the_prior() -> None:
    priors, n = load_priors(), 40_000
    truth = draw_sources(n, np.random.default_rng(4))
    assert truth["is_star"].mean() == pytest.approx(priors["prob_star"], abs=0.01)
    for kind, rows in (("star", truth["is_star"]), ("galaxy", ~truth["is_star"])):
        log = np.log(np.stack([truth[f"flux_{b}"][rows] for b in "ugriz"]))
        assert log[2].mean() == pytest.approx(priors["log_flux"][kind]["mean"], abs=0.05)
        assert log[2].std() == pytest.approx(priors["log_flux"][kind]["sd"], rel=0.03)
        colour = priors["colour"][kind]
        expected = np.array(colour["weights"]) @ np.array(colour["means"])
        assert np.diff(log, axis=0).mean(1) == pytest.approx(expected, abs=0.04)
    log_radius = np.log(truth["radius"][~truth["is_star"]])
    assert log_radius.mean() == pytest.approx(priors["log_radius_arcsec"]["mean"], abs=0.02)
    assert np.isnan(truth["radius"][truth["is_star"]]).all()


def test_magnitude_range_and_separation() -> None:
    _, truth = simulate_field(
        seed=5, shape=(300, 300), bands="r", n_sources=60, r_range=(17.0, 21.0), min_separation=12.0
    )
    r_mag = 22.5 - 2.5 * np.log10(truth["flux_r"])
    assert r_mag.min() > 17.0
    assert r_mag.max() < 21.0
    gap = np.hypot(*(np.subtract.outer(truth[c], truth[c]) for c in "xy")) + 1e3 * np.eye(60)
    assert gap.min() >= 12.0


def test_blends_are_close_pairs() -> None:
    _, truth = simulate_field(
        seed=6, shape=(400, 400), bands="r", n_sources=40, min_separation=20.0, blend_fraction=0.5
    )
    gap = np.hypot(*(np.subtract.outer(truth[c], truth[c]) for c in "xy")) + 1e3 * np.eye(40)
    assert 10 < (gap.min(1) <= 6.0).sum() < 40


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_sources": 1, "bands": "rx"},
        {"n_sources": 1, "psf": "airy"},
        {"n_sources": 40, "min_separation": 30.0},
        {"n_sources": 1, "margin": 40.0},
        {"n_sources": 1, "r_range": (2.0, 2.1)},
        {},
    ],
)
def test_bad_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError):
        simulate_field(seed=0, shape=(64, 64), **wrong)
