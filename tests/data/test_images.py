from dataclasses import replace

import numpy as np
import pytest

from astrozoo.data.images import Field, check_overlap, crop, reference_image
from astrozoo.errors import DataError, InputError


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


def test_sky_and_calibration_may_be_one_number(simulated_field):
    image = simulated_field.images[0]
    same = replace(image, sky=250.0, calibration=np.float32(30))
    np.testing.assert_array_equal(same.sky, np.full(image.shape, 250.0))
    np.testing.assert_array_equal(same.crop(slice(3, 9), slice(4, 8)).calibration, np.full((6, 4), 30.0))
    with pytest.raises(InputError, match=r"sky: got \(3,\), expected the shape of counts"):
        replace(image, sky=np.ones(3))


@pytest.mark.parametrize("label", ["valid", "saturated"])
def test_a_mask_of_integers_is_refused(simulated_field, label):
    image = simulated_field.images[0]  # ~ of 0 and of 1 are both True: every pixel would be masked
    with pytest.raises(InputError, match=f"{label}: got dtype int64, expected booleans, such as mask == 0"):
        replace(image, **{label: image.valid.astype(np.int64)})


def test_images_of_other_parts_of_the_sky_are_named(simulated_field):
    image = simulated_field.images[0]
    for ra, dec in ((150.5, 2.0), (330.0, -2.0), (150.0, 88.0)):  # near, on the far side, near a pole
        wcs = image.wcs.deepcopy()
        wcs.wcs.crval = [ra, dec]
        elsewhere = Field((image, replace(image, wcs=wcs, name="elsewhere")))
        with pytest.raises(DataError, match=r"image 'elsewhere': got columns .*of the same sky"):
            check_overlap(elsewhere)
