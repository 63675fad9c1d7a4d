import galsim
import numpy as np
import pytest
from scipy.ndimage import center_of_mass

from astrozoo.data.simulate_lens import SOURCES, draw_lens, draw_source, render_source, simulate_lens
from astrozoo.errors import InputError

ROUND = {"slope": 2.0, "axis_ratio": 1.0, "gamma1": 0.0, "gamma2": 0.0, "centre_x": 0.0, "centre_y": 0.0}


@pytest.mark.parametrize("kind", SOURCES)
def test_half_the_light_lies_about_one_radius_out(kind: str) -> None:
    """Exactly for one round Sersic profile; bulges and knots move it by a part of the radius."""
    rng = np.random.default_rng(1)
    image = render_source(draw_source(rng, kind), 241, 1 / 10)
    assert image.sum() == pytest.approx(1)
    assert image.min() >= 0
    y, x = np.mgrid[:241, :241] - 120
    assert 0.3 < image[np.hypot(x, y) < 10].sum() < 0.75


def test_same_seed_same_source() -> None:
    a, b, c = (render_source(draw_source(np.random.default_rng(s)), 32, 0.2, blur=1.0) for s in (3, 3, 4))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 1e-4


def test_noise_is_what_the_image_says() -> None:
    image, truth = simulate_lens(2, shape=(48, 48))
    residual = (image.image - truth["model"]) / image.sigma(truth["model"])
    assert (residual**2).mean() == pytest.approx(1, abs=4 * np.sqrt(2 / residual.size))
    assert truth["model"].max() == pytest.approx(30 * image.background_rms)
    again, _ = simulate_lens(2, shape=(48, 48))
    np.testing.assert_array_equal(image.image, again.image)


def test_source_behind_the_centre_makes_a_ring_of_the_einstein_radius() -> None:
    lens = {**ROUND, "einstein_radius": 1.0, "source_x": 0.0, "source_y": 0.0, "source_radius": 0.1}
    image, truth = simulate_lens(0, source="smooth", lens=lens)
    radius = np.hypot(*image.coordinates())
    light = truth["model"]
    assert (light * radius).sum() / light.sum() == pytest.approx(1.0, abs=0.02)


def test_without_a_lens_the_source_lies_where_it_is_with_its_flux() -> None:
    lens = {**ROUND, "einstein_radius": 1e-6, "source_x": 0.3, "source_y": -0.2, "source_radius": 0.25}
    _, truth = simulate_lens(0, source="smooth", lens=lens, shape=(101, 101), pixel_scale=0.05)
    assert truth["model"].sum() == pytest.approx(truth["flux"], rel=0.02)
    y, x = (np.array(center_of_mass(truth["model"])) - 50) * 0.05
    assert (x, y) == pytest.approx((0.3, -0.2), abs=0.01)


def test_exact_and_tabulated_profiles_agree() -> None:
    disc = galsim.Exponential(half_light_radius=1.0).shear(g1=0.2)
    blurred = galsim.Convolve(disc, galsim.Gaussian(sigma=1e-3))
    assert disc.is_analytic_x
    assert not blurred.is_analytic_x
    exact, table = (simulate_lens(0, source=s, shape=(48, 48))[1]["model"] for s in (disc, blurred))
    np.testing.assert_allclose(table, exact, atol=2e-3 * exact.max())


def test_more_rays_bring_an_image_to_its_limit() -> None:
    coarse, fine, finest = (
        simulate_lens(0, source="smooth", shape=(32, 32), pixel_scale=0.13, rays=n)[1]["model"]
        for n in (2, 4, 12)
    )
    assert np.abs(fine - finest).max() < 0.5 * np.abs(coarse - finest).max()


def test_shear_of_a_perturber_is_that_of_the_lens() -> None:
    def perturber(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return 0.05 * x + 0.02 * y, 0.02 * x - 0.05 * y

    sheared = {**ROUND, "gamma1": 0.05, "gamma2": 0.02}
    inside, outside = (
        simulate_lens(4, shape=(40, 40), lens=lens, perturber=extra)[1]["model"]
        for lens, extra in ((sheared, None), (ROUND, perturber))
    )
    np.testing.assert_allclose(inside, outside, atol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lens": {"mass": 1.0}}, "mass"),
        ({"lens": {"einstein_radius": 3.0}}, "half the image"),
        ({"lens": {"einstein_radius": -1.0}}, "half the image"),
        ({"source": "spiral"}, "smooth, clumpy"),
        ({"rays": 0}, "1 or more"),
    ],
)
def test_bad_settings_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        simulate_lens(0, **wrong)


def test_drawn_lenses_are_in_range() -> None:
    lenses = [draw_lens(np.random.default_rng(seed)) for seed in range(200)]
    radius = np.array([lens["einstein_radius"] for lens in lenses])
    assert np.log(radius).std() == pytest.approx(0.15, rel=0.2)
    assert all(0.6 <= lens["axis_ratio"] <= 0.95 for lens in lenses)
