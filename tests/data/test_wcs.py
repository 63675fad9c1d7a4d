import numpy as np
import pytest
from astropy.io import fits

from astrozoo.data.wcs import celestial_wcs, pixel_scale, tangent_wcs
from astrozoo.errors import DataError

LINEAR = {
    "CTYPE1": "RA---TAN",
    "CTYPE2": "DEC--TAN",
    "CRVAL1": 150.0,
    "CRVAL2": 2.0,
    "CRPIX1": 512.0,
    "CRPIX2": 512.0,
}
CD = {"CD1_1": -1e-4, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 1e-4}


def at(cards, x, y):
    return np.array(celestial_wcs(fits.Header(cards), "file").all_pix2world(x, y, 0), float)


def arcsec(a, b):
    return 3600 * np.hypot((a[0] - b[0]) * np.cos(np.deg2rad(2)), a[1] - b[1])


def test_distortions_and_rotations_of_a_header_count():
    straight = at(LINEAR | CD, 1000.0, 900.0)
    sip = {
        "A_ORDER": 2,
        "B_ORDER": 2,
        "A_2_0": 1e-5,
        "B_0_2": 2e-5,
        "CTYPE1": "RA---TAN-SIP",
        "CTYPE2": "DEC--TAN-SIP",
    }
    off = np.array([1e-5 * 489.0**2, 2e-5 * 389.0**2]) * 0.36
    assert arcsec(at(LINEAR | CD | sip, 1000.0, 900.0), straight) == pytest.approx(np.hypot(*off), rel=0.01)
    tpv = {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_0": 0.002, "PV1_1": 1.0, "PV2_1": 1.0}
    assert arcsec(at(LINEAR | CD | tpv, 1000.0, 900.0), straight) == pytest.approx(7.2, rel=0.01)
    turned = {"CDELT1": -1e-4, "CDELT2": 1e-4, "CROTA2": 30.0}
    assert arcsec(at(LINEAR | turned, 1000.0, 900.0), straight) > 60
    assert arcsec(at(LINEAR | CD | {"LONPOLE": 150.0}, 1000.0, 900.0), straight) > 60


@pytest.mark.parametrize(
    ("cards", "message"),
    [
        ({}, "celestial"),
        ({"CTYPE1": "LINEAR", "CTYPE2": "LINEAR"} | CD, "celestial"),
        (LINEAR, "without a pixel scale"),
        (LINEAR | {"CD1_1": 0.0, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 0.0}, "file: got"),
        (LINEAR | {"CDELT1": 0.0, "CDELT2": 0.0}, "file: got"),
        (LINEAR | {"CDELT1": -1.0, "CDELT2": 1.0}, "3600 x 3600 arcsec"),
    ],
)
def test_a_wcs_without_a_usable_scale_is_refused(cards, message):
    with pytest.raises(DataError, match=message):
        celestial_wcs(fits.Header(cards), "file")


def test_pixels_that_are_not_square():
    wide = celestial_wcs(fits.Header(LINEAR | CD | {"CD1_1": -2e-4}), "file")
    with pytest.raises(DataError, match=r"0\.72 x 0\.36 arcsec, expected square"):
        pixel_scale(wide, "file")
    assert pixel_scale(celestial_wcs(fits.Header(LINEAR | CD), "file"), "file") == pytest.approx(0.36)


def test_a_tangent_wcs_has_north_at_its_rotation():
    wcs = tangent_wcs((11, 21), 0.2, ra=30.0, dec=-20.0, rotation=90.0)
    np.testing.assert_allclose(wcs.all_pix2world(10, 5, 0), [30.0, -20.0])
    ra, dec = wcs.all_pix2world(10, 6, 0)  # one pixel up is to the east
    assert (ra - 30.0) * 3600 * np.cos(np.deg2rad(20)) == pytest.approx(0.2, rel=1e-3)
    assert (dec + 20.0) * 3600 == pytest.approx(0, abs=1e-6)
