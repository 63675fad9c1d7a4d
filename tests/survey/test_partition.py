"""Patches of a field: where sources are, how large their patches, no neighbours of one colour."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.coordinates import SkyCoord

from astrozoo.data.images import Field, GaussianMixture
from astrozoo.data.psf import MixturePsf
from astrozoo.errors import InputError
from astrozoo.survey.partition import Sources, colouring, half_sizes, neighbours


def test_a_source_is_where_the_sky_says_in_every_image(located):
    field, sources, _ = located
    for k, image in enumerate(field):
        sky = SkyCoord(sources.ra, sources.dec, unit="deg")
        x, y = image.wcs.world_to_pixel(sky)  # astropy's own 0-based, centres at integers
        np.testing.assert_allclose(sources.xy[k], np.stack((x, y), 1), atol=1e-6)
        # one arcsec north and east
        north = image.wcs.world_to_pixel(SkyCoord(sky.ra, sky.dec + _ARCSEC))
        np.testing.assert_allclose(
            sources.jacobian[k, :, :, 1], np.stack(north, 1) - sources.xy[k], atol=1e-4
        )


_ARCSEC = SkyCoord(0, 1 / 3600, unit="deg").dec


def test_neighbours_never_share_a_colour():
    rng = np.random.default_rng(0)
    n = 400
    xy = rng.uniform(0, 500, (1, n, 2))
    nothing = np.zeros((1, n, 1))
    sources = Sources(
        np.zeros(n), np.zeros(n), xy, np.zeros((1, n, 2, 2)), np.ones((1, n)),
        half_sizes(rng.uniform(1, 8, n)), nothing, nothing, nothing,
    )  # fmt: skip
    adjacent = neighbours(sources)
    colour = colouring(adjacent)
    for i, others in enumerate(adjacent):
        assert (colour[others] != colour[i]).all()
        overlap = np.abs(xy[0] - xy[0, i]).max(1) <= sources.half + sources.half[i]
        assert set(np.flatnonzero(overlap)) - {i} <= set(others)


def test_neighbours_in_any_one_image_are_neighbours():
    turn = np.array([[1.0, 1.0], [-1.0, 1.0]]) / np.sqrt(2)
    xy = np.array(
        [[0.0, 0.0], [20.0, 0.0], [200.0, 0.0]]
    )  # squares of 8: apart as they are, turned they touch
    nothing = np.zeros((2, 3, 1))
    sources = Sources(
        np.zeros(3), np.zeros(3), np.stack((xy, xy @ turn)), np.zeros((2, 3, 2, 2)), np.ones((2, 3)),
        np.full(3, 8), nothing, nothing, nothing,
    )  # fmt: skip
    assert [list(n) for n in neighbours(sources)] == [[1], [0], []]
    none = replace(sources, ra=np.zeros(0), dec=np.zeros(0), xy=np.zeros((2, 0, 2)), half=np.zeros(0, int))
    assert neighbours(none) == []


def test_psfs_are_padded_to_the_most_components(simulated_field):
    one = MixturePsf(GaussianMixture(np.ones(1), np.zeros((1, 2)), 2 * np.eye(2)[None]))
    first, second = simulated_field.images
    field = Field((first, replace(second, psf=one)))
    ra, dec = first.wcs.all_pix2world([[30.0, 30.0], [20.0, 25.0]], 0).T
    sources = Sources.locate(field, ra, dec, np.array([8, 8]))
    k = len(first.psf.mixture(30.0, 30.0).weights)
    assert sources.psf_weights.shape == (2, 2, k)
    assert k > 1
    np.testing.assert_allclose(sources.psf_weights.sum(-1), 1, atol=1e-6)
    assert not sources.psf_weights[1, :, 1:].any()
    xx, xy, yy = np.moveaxis(sources.psf_covariances, -1, 0)
    assert (xx * yy > xy**2).all()


def test_patches_grow_with_the_extent_and_stop_at_the_largest():
    assert list(half_sizes(np.array([0.5, 2.0, 2.1, 1e3, np.nan]))) == [8, 8, 12, 40, 8]


@pytest.mark.parametrize(("ra", "dec"), [(np.nan, 0.0), (10.0, 95.0), (200.0, 10.0)])
def test_positions_off_the_sky_or_the_field_are_refused(located, ra, dec):
    field = located[0]
    with pytest.raises(InputError, match="catalogue"):
        Sources.locate(field, np.array([ra]), np.array([dec]), np.array([8]))
