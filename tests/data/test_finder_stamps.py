"""Simulated stamps of lenses, and stamps in units of their noise."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from astrozoo.data.finder_stamps import prepare
from astrozoo.data.lens_survey import KINDS, SURVEYS, LensSurvey
from astrozoo.data.simulate_lens_stamps import sie_deflection, simulate_lens_stamps
from astrozoo.errors import DataError, InputError


def test_the_deflection_has_the_golden_values():
    x, y = (torch.tensor(v, dtype=torch.float64) for v in ((1.0, -0.6, 0.3, -2.1), (0.2, 0.9, -1.4, -0.5)))
    lens = (torch.full((4,), v, dtype=torch.float64) for v in (1.3, 0.7, math.pi / 6))
    ax, ay = sie_deflection(x - 0.05, y + 0.03, *lens)
    expected_x = torch.tensor([1.211830119, -0.761309935, 0.329820234, -1.219287028], dtype=torch.float64)
    expected_y = torch.tensor([0.200118407, 1.130783693, -1.310294395, -0.167744420], dtype=torch.float64)
    torch.testing.assert_close(ax, expected_x, rtol=2e-9, atol=0)
    torch.testing.assert_close(ay, expected_y, rtol=2e-9, atol=0)


def test_a_stamp_depends_on_the_seed_and_its_number_alone():
    survey = LensSurvey(size=16)
    few, many = (simulate_lens_stamps(survey, n, seed=3) for n in (5, 130))
    torch.testing.assert_close(few.image, many.image[:5], rtol=0, atol=0, equal_nan=True)
    other = simulate_lens_stamps(survey, 5, seed=4)
    assert not torch.equal(few.image, other.image)


def test_kinds_have_their_fractions_and_only_lenses_an_einstein_radius():
    truth = simulate_lens_stamps(LensSurvey(size=16), 256, seed=0, lenses=0.25).truth
    lens = truth.kind == 0
    sd = (256 * 0.25 * 0.75) ** 0.5
    assert abs(int(lens.sum()) - 64) < 4 * sd
    assert set(truth.kind.tolist()) == set(range(len(KINDS)))
    assert (truth.einstein_radius.isfinite() == lens).all()
    assert (truth.snr[truth.kind == KINDS.index("plain")] == 0).all()


def test_arcs_have_the_stated_signal_to_noise_ratio():
    """Two sets that differ in the brightness of the arcs alone: their difference is arcs."""
    survey = LensSurvey(size=32, gain=(1e9, 1e9), missing=0.0, noise_scatter=0.0, snr=(50.0, 50.0))
    faint = replace(survey, snr=(1e-6, 1e-6))
    bright, dark = (simulate_lens_stamps(s, 6, seed=1, kinds=["lens"]) for s in (survey, faint))
    arcs = (bright.image - dark.image) / torch.tensor(survey.noise)[:, None, None]
    torch.testing.assert_close(arcs.square().sum((1, 2, 3)).sqrt(), torch.full((6,), 50.0), rtol=2e-3, atol=0)


@pytest.mark.parametrize("name", SURVEYS)
def test_stamps_of_every_survey_can_be_prepared(name):
    survey = SURVEYS[name]
    drawn = simulate_lens_stamps(survey, 3, seed=0)
    assert drawn.image.shape == (3, len(survey.bands), survey.size, survey.size)
    assert prepare(drawn.image).image.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"count": 0}, "1 or more"), ({"lenses": 1.2}, "fraction"), ({"kinds": ["lenz"]}, "lenz")],
)
def test_impossible_sets_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        simulate_lens_stamps(LensSurvey(), **{"count": 1, "seed": 0, **options})


def test_a_survey_has_as_many_colours_as_bands():
    with pytest.raises(InputError, match="one of each per band"):
        LensSurvey(bands=("g", "r"))
    with pytest.raises(InputError, match="multiple of 8"):
        LensSurvey(size=20)


def test_noise_and_sky_are_measured_beside_a_galaxy():
    generator = torch.Generator().manual_seed(0)
    noise = torch.tensor([2.0, 5.0])
    image = 30.0 + noise[:, None, None] * torch.randn(20, 2, 64, 64, generator=generator)
    radius = torch.arange(64.0) - 31.5
    image += 50 * torch.exp(-(radius[:, None] ** 2 + radius**2) / 4.5)
    prepared = prepare(image)
    n = 2 * 64 * 63  # differences; the SD of a median absolute deviation is 1.17 sigma / sqrt(n)
    tolerance = 4 * 1.17 / n**0.5 + 0.02  # 1.6 % of the pixels are on the galaxy, which widens by 1.9 %
    torch.testing.assert_close(prepared.noise, noise.expand(20, 2), rtol=tolerance, atol=0)
    assert (prepared.sky - 30).abs().max() < 4 * 1.25 * 5 / 64 + 0.02 * 5


def test_pixels_without_data_become_sky_and_do_not_change_the_noise():
    image = torch.randn(2, 1, 40, 40, generator=torch.Generator().manual_seed(1))
    gap = image.clone()
    gap[0, 0, :, :8] = torch.nan
    whole, holed = prepare(image), prepare(gap)
    assert (holed.image[0, 0, :, :8] == 0).all()
    torch.testing.assert_close(holed.noise, whole.noise, rtol=0.08, atol=0)
    torch.testing.assert_close(holed.image[1], whole.image[1], rtol=0, atol=0)


@pytest.mark.parametrize("value", [torch.nan, 7.0])
def test_a_stamp_without_an_image_is_named(value):
    image = torch.randn(3, 2, 16, 16)
    image[1, 1] = value
    with pytest.raises(DataError, match="stamp second"):
        prepare(image, ("first", "second", "third"))
