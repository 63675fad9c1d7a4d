import numpy as np
import pytest

from astrozoo.data.images import crop, reference_image
from astrozoo.errors import InputError


def test_crop_keeps_every_band_on_one_patch_of_sky(simulated_field):
    part = crop(simulated_field, slice(30, 50), slice(10, 35))
    assert reference_image(part).shape == (20, 25)
    sky = reference_image(part).wcs.all_pix2world([[0, 0], [24, 19]], 0)
    for image in part:
        x, y = image.wcs.all_world2pix(sky, 0).T
        assert x.min() >= -1e-6
        assert y.min() >= -1e-6
        assert x.max() <= image.shape[1] - 1 + 1e-6
        assert y.max() <= image.shape[0] - 1 + 1e-6


def test_crop_follows_position_of_the_psf(simulated_field):
    image = reference_image(simulated_field)
    part = image.crop(slice(5, 20), slice(7, 20))
    np.testing.assert_array_equal(part.psf.stamp(1, 2), image.psf.stamp(8, 7))
    np.testing.assert_allclose(part.wcs.all_pix2world([[1, 2]], 0), image.wcs.all_pix2world([[8, 7]], 0))


def test_crop_outside_is_refused(simulated_field):
    with pytest.raises(InputError, match="crop"):
        crop(simulated_field, slice(100, 120), slice(0, 5))
