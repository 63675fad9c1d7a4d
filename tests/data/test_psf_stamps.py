"""Stamps with PSF and noise: files, cuts, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits

from astrozoo.data.psf_stamps import Galaxy, PsfStamp, cut_psf, cut_stamp, read_galaxies
from astrozoo.errors import DataError, InputError


def arrays(ny: int = 12, nx: int = 12, k: int = 5) -> dict:
    rng = np.random.default_rng(0)
    psf = rng.uniform(0.5, 1, (k, k))
    return {"image": rng.normal(size=(ny, nx)), "psf": psf / psf.sum(), "noise": 0.5, "pixel_scale": 0.2}


def stamp(**changes) -> PsfStamp:
    return PsfStamp(**{**arrays(), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise": 0.0}, "144 unmasked pixels that are zero"),
        ({"noise": np.nan}, "not finite, expected standard deviations above 0"),
        ({"noise": np.where(np.eye(12), 0.0, 1.0)}, "12 unmasked pixels"),
        ({"noise": np.ones((11, 12))}, r"noise: got shape \(11, 12\)"),
        ({"psf": np.ones((13, 13)) / 169}, "no larger than the stamp"),
        ({"psf": np.ones((5, 5))}, "a sum of 25"),
        ({"psf": np.full((5, 5), np.nan)}, "a sum of nan"),
        ({"image": np.full((12, 12), np.nan)}, "144 pixels that are not finite"),
        ({"image": np.zeros((7, 12))}, "8 px or more"),
        ({"mask": np.zeros((12, 12), bool)}, "0 pixels to use"),
        ({"mask": np.ones((12, 12))}, "float64"),
        ({"pixel_scale": 0.0}, "positive number"),
        ({"zero_point": np.inf}, "zero_point"),
        ({"mask": np.eye(12) == 0, "correlation": np.ones((1, 1))}, "12 masked pixels"),
    ],
)
def test_a_bad_stamp_is_refused_with_its_name(changes, message):
    with pytest.raises(InputError, match=message) as raised:
        stamp(**changes, name="NGC 1")
    assert "NGC 1" in str(raised.value)


def test_masked_pixels_may_have_any_value():
    image, noise, mask = arrays()["image"], np.ones((12, 12)), np.ones((12, 12), bool)
    image[0, 0], noise[0, 1], mask[0, :2] = np.nan, 0.0, False
    read = stamp(image=image, noise=noise, mask=mask)
    assert np.isfinite(read.image).all()
    assert (np.asarray(read.noise) > 0).all()


def test_a_galaxy_has_exposures():
    with pytest.raises(InputError, match="no exposure"):
        Galaxy(())


@pytest.mark.parametrize(("side", "want"), [(9, 9), (8, 7), (3, 3), (20, 13)])
def test_a_psf_is_cut_around_its_middle(side, want):
    psf = np.zeros((13, 13))
    psf[6, 6] = 4.0
    cut = cut_psf(psf, (side, side))
    assert cut.shape == (want, want)
    assert cut[want // 2, want // 2] == 1


@pytest.mark.parametrize(("shape", "size", "want"), [((12, 13), 10, (10, 9)), ((12, 12), 40, (12, 12))])
def test_a_stamp_is_cut_around_its_middle(shape, size, want):
    whole = PsfStamp(**arrays(*shape, k=11))
    cut = cut_stamp(whole, size)
    assert cut.shape == want
    assert max(cut.psf.shape) <= min(want)
    dy, dx = ((a - b) // 2 for a, b in zip(shape, want, strict=True))
    np.testing.assert_array_equal(cut.image, whole.image[dy : shape[0] - dy, dx : shape[1] - dx])


def test_stamps_of_a_numpy_file_are_read(tmp_path):
    rng = np.random.default_rng(1)
    several = {
        "image": rng.normal(size=(3, 10, 10)),
        "psf": np.full((3, 5, 5), 1 / 25),
        "noise": np.array([1.0, 2.0, 3.0]),
        "pixel_scale": np.array(0.1),
        "mask": np.ones((10, 10), int),
    }
    np.savez(tmp_path / "a.npz", **several)
    galaxies = read_galaxies(tmp_path / "a.npz", first=1)
    assert len(galaxies) == 2
    (read,) = galaxies[0].exposures
    np.testing.assert_array_equal(read.image, several["image"][1])
    assert (np.asarray(read.noise) == 2).all()
    assert read.pixel_scale == 0.1
    assert (np.asarray(read_galaxies(tmp_path / "a.npz", noise=0.7)[0].exposures[0].noise) == 0.7).all()
    with pytest.raises(DataError, match="3 galaxies, expected more than 3"):
        read_galaxies(tmp_path / "a.npz", first=3)
    one = {name: value[0] if name in ("image", "psf") else value for name, value in several.items()}
    np.savez(tmp_path / "b.npz", **(one | {"noise": np.ones((10, 10))}))
    assert len(read_galaxies(tmp_path / "b.npz")) == 1
    for missing, message in (("noise", "--noise"), ("pixel_scale", "--pixel-scale"), ("psf", "psf")):
        np.savez(tmp_path / "c.npz", **{name: x for name, x in several.items() if name != missing})
        with pytest.raises(DataError, match=message):
            read_galaxies(tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", **(several | {"noise": np.ones(4)}))
    with pytest.raises(DataError, match="3 along the first axis"):
        read_galaxies(tmp_path / "d.npz")
    np.savez(tmp_path / "e.npz", **(several | {"image": np.ones((0, 10, 10))}))
    with pytest.raises(DataError, match="0 galaxies"):
        read_galaxies(tmp_path / "e.npz")
    (tmp_path / "f.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:200])
    with pytest.raises(DataError, match="complete NumPy file"):
        read_galaxies(tmp_path / "f.npz")
    with pytest.raises(DataError, match="no such file"):
        read_galaxies(tmp_path / "g.npz")


def test_a_galsim_catalogue_is_read_with_its_noise(tmp_path):
    rng = np.random.default_rng(2)
    psf = rng.uniform(0.5, 1, (15, 11))
    planes = {"gal": rng.normal(size=(10, 12)), "psf": psf / psf.sum(), "cf": np.eye(3) + np.eye(3)[::-1]}
    for name, plane in planes.items():
        fits.PrimaryHDU(plane).writeto(tmp_path / f"{name}.fits")
    columns = {
        "IDENT": ("K", 7), "GAL_FILENAME": ("20A", "gal.fits"), "PSF_FILENAME": ("20A", "psf.fits"),
        "NOISE_FILENAME": ("20A", "cf.fits"), "GAL_HDU": ("J", 0), "PSF_HDU": ("J", 0),
        "NOISE_VARIANCE": ("D", 4.0), "PIXEL_SCALE": ("D", 0.03),
    }  # fmt: skip
    table = [fits.Column(name, form, array=np.array([value])) for name, (form, value) in columns.items()]
    fits.BinTableHDU.from_columns(table).writeto(tmp_path / "real_galaxy_catalog_1.fits")
    (galaxy,) = read_galaxies(tmp_path)
    (read,) = galaxy.exposures
    assert (read.name, read.pixel_scale) == ("7", 0.03)
    assert (np.asarray(read.noise) == 2).all()
    assert read.psf.shape == (9, 11)
    assert "(15, 11) to (9, 11)" in galaxy.provenance["PSF of 7"]
    np.testing.assert_array_equal(read.correlation, planes["cf"])
    (tmp_path / "psf.fits").unlink()
    with pytest.raises(DataError, match="psf"):
        read_galaxies(tmp_path)


def test_a_folder_of_numpy_arrays_is_read(tmp_path):
    parts = arrays()
    for part, values in (("im", parts["image"]), ("psf", parts["psf"]), ("sig", np.ones((12, 12)))):
        np.save(tmp_path / f"gal_{part}.npy", values)
    np.save(tmp_path / "gal_mask.npy", np.eye(12))
    (galaxy,) = read_galaxies(tmp_path, pixel_scale=0.168)
    (read,) = galaxy.exposures
    assert int((~np.asarray(read.mask)).sum()) == 12
    (tmp_path / "gal_psf.npy").unlink()
    with pytest.raises(DataError, match="the PSF of gal"):
        read_galaxies(tmp_path)
