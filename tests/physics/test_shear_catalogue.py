from __future__ import annotations

import numpy as np
import pytest
import torch
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.io import fits

from astrozoo.errors import InputError
from astrozoo.physics.shear import kaiser_squires, smoothed
from astrozoo.physics.shear_catalogue import bin_shear, checked_rows, sky_frame, tangent_wcs


def catalogue(ra, dec, strength=0.1, seed=0, side=1.0, n=20_000):
    """Galaxies around a point, sheared tangentially about it: angles by spherical trigonometry."""
    rng = np.random.default_rng(seed)
    centre = SkyCoord(ra, dec, unit="deg")
    bearing, distance = rng.uniform(0, 360, n), np.sqrt(rng.uniform(0, 1, n)) * side / 2
    sky = centre.directional_offset_by(bearing * units.deg, distance * units.deg)
    # The position angle of the centre, from north through east. A galaxy is elongated across that direction.
    # An axis of position angle p has the components -cos 2p and -sin 2p, with x west and y north.
    angle = sky.position_angle(centre).rad + np.pi / 2
    return sky.ra.deg, sky.dec.deg, -strength * np.cos(2 * angle), -strength * np.sin(2 * angle), np.ones(n)


@pytest.mark.parametrize(("ra", "dec"), [(150.0, 2.0), (0.1, -60.0), (359.9, 70.0)])
@pytest.mark.parametrize("axis", ["west", "east"])
def test_a_mass_on_the_sky_makes_e_modes_at_its_place(ra, dec, axis):
    ra_, dec_, e1, e2, w = catalogue(ra, dec)
    if axis == "east":
        e2 = -e2
    wcs, shape = tangent_wcs(ra_, dec_, 2.0)
    x, y = wcs.all_world2pix(ra_, dec_, 0)
    binned = bin_shear(x, y, np.stack((e1, sky_frame(e2, axis))), w, shape)
    assert binned.outside == 0
    assert shape[0] % 2 == shape[1] % 2 == 0
    assert max(shape) <= 34
    e, b = kaiser_squires(torch.as_tensor(binned.shear))
    e, b = smoothed(e, 1.0), smoothed(b, 1.0)
    assert e.max() > 8 * b.abs().max() - 0.05
    row, column = np.unravel_index(int(e.argmax()), shape)
    at = wcs.pixel_to_world(column, row)
    assert at.separation(SkyCoord(ra, dec, unit="deg")).arcmin < 4


def test_means_and_standard_errors_of_pixels():
    x, y = np.array([0.2, -0.3, 1.0, 5.0]), np.array([0.0, 0.1, 1.4, 0.0])
    e = np.array([[0.1, 0.3, -0.2, 0.5], [0.0, 0.2, 0.1, 0.5]])
    w = np.array([1.0, 3.0, 2.0, 1.0])
    binned = bin_shear(x, y, e, w, (2, 3), sigma_e=0.4)
    assert binned.outside == 1
    np.testing.assert_array_equal(binned.mask, [[True, False, False], [False, True, False]])
    np.testing.assert_allclose(binned.shear[:, 0, 0], [0.25, 0.15])
    np.testing.assert_allclose(binned.noise[:, 0, 0], 0.4 * np.sqrt(10) / 4)
    np.testing.assert_allclose(binned.noise[:, 1, 1], 0.4)
    np.testing.assert_array_equal(binned.shear[:, ~binned.mask], 0)


def test_standard_errors_are_those_of_noise():
    rng = np.random.default_rng(1)
    n = 200_000
    x, y, w = rng.uniform(-0.5, 19.5, n), rng.uniform(-0.5, 19.5, n), rng.uniform(0.2, 2, n)
    binned = bin_shear(x, y, 0.3 * rng.standard_normal((2, n)), w, (20, 20))
    assert np.std(binned.shear / binned.noise) == pytest.approx(1, abs=0.08)


def test_the_shipped_cosmos_maps_are_binned_from_their_catalogue(data_root):
    folder = data_root / "weak_lensing" / "cosmos"
    if not folder.is_dir():
        pytest.skip(f"no COSMOS shear catalogue at {folder}")
    table = np.load(folder / "cosmos_full_shear_catalog.npz")
    ra, dec = table["ra_1e7"] / 1e7, table["dec_1e7"] / 1e7
    pixel = 0.29 / 60
    x, y = ((a - np.median(a)) / pixel + 179.5 for a in (ra, dec))
    ellipticity = np.stack((table["e1"], -table["e2"])).astype(float)
    binned = bin_shear(x, y, ellipticity, table["w"].astype(float), (360, 360))
    mask = fits.getdata(folder / "cosmos_full_mask_0.29arcmin360.fits.gz") > 0
    assert (binned.mask == mask).mean() > 0.99
    both = binned.mask & mask
    for i, name in enumerate(("e1", "e2")):
        shipped = fits.getdata(folder / f"cosmos_full_{name}_0.29arcmin360.fits.gz")
        assert np.corrcoef(shipped[both], binned.shear[i][both])[0, 1] > 0.9
    # Lensing makes E modes only. A wrong sign of e2 would mix E and B.
    excess = []
    for sign in (1, -1):
        maps = torch.as_tensor(binned.shear * np.array([1, sign])[:, None, None])
        e, b = (smoothed(m, 6.0)[torch.as_tensor(mask)] for m in kaiser_squires(maps))
        excess.append(float(e.var() / b.var()))
    assert excess[0] > 1.3
    assert excess[0] > 1.2 * excess[1]


ROW = {"ra": [1.0, 2.0], "dec": [0.0, 1.0], "e1": [0.1, 0.2], "e2": [0.0, 0.1], "weight": [1.0, 1.0]}


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("e1", [np.nan, 0.2], "column e1: got 1 of 2 values NaN or infinite, the first in row 0"),
        ("dec", [0.0, 91.0], "column dec: got 91"),
        ("weight", [-1.0, 1.0], "column weight"),
        ("weight", [0.0, 0.0], "column weight"),
        ("e2", [7.0, 9.0], r"a median \|e\| of"),
        ("ra", [1.0], "columns of ra 1, dec 2"),
    ],
)
def test_bad_rows_are_refused(column, value, message):
    columns = {name: np.asarray(x) for name, x in {**ROW, column: value}.items()}
    with pytest.raises(InputError, match=message):
        checked_rows(**columns)


def test_maps_that_are_too_large_are_refused():
    with pytest.raises(InputError, match=r"pixel: got 0\.001 arcmin"):
        tangent_wcs(np.array([0.0, 2.0]), np.array([0.0, 2.0]), 0.001)
    with pytest.raises(InputError, match="more than 60 degrees"):
        tangent_wcs(np.array([0.0, 170.0]), np.array([0.0, 0.0]), 60.0)
