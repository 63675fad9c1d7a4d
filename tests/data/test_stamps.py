"""Stamps of any sizes: centred, turned, cropped or padded and scaled; bad ones are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from astropy.io import fits

from astrozoo.data.stamps import Stamps, border_noise, read_images, standardise, turned, turned_back
from astrozoo.errors import DataError

SIGMA = 0.02


def galaxy(shape=(40, 40), centre=(0.0, 0.0), seed=0, noise=SIGMA):
    """An elongated galaxy with a companion knot, at an offset from the middle."""
    ny, nx = shape
    y, x = np.mgrid[:ny, :nx].astype(float)
    y, x = y - (ny - 1) / 2 - centre[0], x - (nx - 1) / 2 - centre[1]
    image = np.exp(-0.5 * (x**2 / 16 + y**2 / 6 - 0.1 * x * y))
    image += 0.4 * np.exp(-0.5 * ((x - 4) ** 2 + (y - 1.5) ** 2))
    return image + noise * np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("shape", [(40, 40), (41, 41), (40, 47), (69, 69), (90, 75), (21, 20)])
def test_every_shape_is_brought_to_one_frame(shape):
    offset = (2.0, -1.0)
    stamps = standardise([galaxy(shape, offset)], 49, SIGMA)
    image, noise, used = stamps.pixels
    assert image.shape == used.shape == (1, 49, 49)
    assert image.dtype == torch.float32
    assert int(used.sum()) <= min(shape[0], 49) * min(shape[1], 49)
    assert (image[~used] == 0).all()
    assert float(noise[0] * stamps.scale[0]) == pytest.approx(SIGMA, rel=1e-5)
    y, x = torch.meshgrid(*(torch.arange(49) - 24.0,) * 2, indexing="ij")
    light = image[0] * torch.exp(-0.5 * (x**2 + y**2) / 5**2)
    for axis in (x, y):
        assert abs(float((light * axis).sum() / light.sum())) < 0.6  # whole pixels


def test_the_scale_is_the_rms_of_the_light_whatever_the_noise_and_the_stamp():
    clean = galaxy((60, 60), noise=0.0)
    expected = np.sqrt((clean**2).sum()) / 49
    for shape, noise in (((60, 60), 1e-3), ((60, 60), 0.1), ((40, 40), 0.05)):
        stamps = standardise([galaxy(shape, noise=noise)], 49, noise)
        assert float(stamps.scale[0]) == pytest.approx(expected, rel=0.12)


def test_an_empty_stamp_has_a_scale_above_zero():
    noise = np.random.default_rng(0).standard_normal((30, 30))
    stamps = standardise([noise], 30, 1.0)
    assert stamps.scale[0] >= 5 / 30 - 1e-6


def test_all_orientations_of_a_galaxy_are_one_stamp():
    image = torch.from_numpy(galaxy((41, 41)))
    stamps = [standardise([turned(image, k).numpy()], 41, SIGMA) for k in range(8)]
    for k, one in enumerate(stamps):
        torch.testing.assert_close(one.pixels.image, stamps[0].pixels.image)
        torch.testing.assert_close(turned_back(turned(image, k), k), image, rtol=0, atol=0)
        back = turned_back(one.pixels.image[0] * one.scale[0], int(one.orientation[0]))
        torch.testing.assert_close(back.double(), turned(image, k), rtol=1e-5, atol=1e-5)


def test_pixels_that_are_not_finite_are_not_used():
    image = galaxy()
    image[3, 5:8] = np.nan
    image[4, 4] = np.inf
    stamps = standardise([image], 40, SIGMA)
    assert int((~stamps.pixels.used).sum()) == 4
    assert stamps.pixels.image.isfinite().all()


def test_noise_is_measured_at_the_border_and_the_sky_subtracted():
    image = galaxy((60, 60), noise=0.05)
    assert border_noise(image) == pytest.approx(0.05, rel=0.25)
    plain = standardise([image], 60)
    lifted = standardise([image + 7.0], 60, subtract_sky=True)
    torch.testing.assert_close(plain.scale, lifted.scale, rtol=0.05, atol=0)


def test_mixed_sizes_and_parts():
    stamps = standardise([galaxy((30, 30)), galaxy((45, 44)), galaxy((80, 81))], 40, [0.02, 0.03, 0.04])
    assert len(stamps) == 3
    part = stamps[1:]
    assert isinstance(part, Stamps)
    assert part.names == ("1", "2")
    torch.testing.assert_close(part.pixels.noise, stamps.pixels.noise[1:])
    assert part.to(torch.float64).pixels.image.dtype == torch.float64


@pytest.mark.parametrize(
    ("images", "noise", "message"),
    [
        ([], SIGMA, "stamps: got none"),
        ([galaxy()], 0.0, "noise of stamp 0: got 0"),
        ([galaxy()], np.nan, "noise of stamp 0: got nan"),
        ([galaxy()], -1.0, "finite number above 0"),
        ([galaxy(), galaxy()], [SIGMA, np.inf], "noise of stamp 1"),
        ([galaxy(), galaxy()], [SIGMA], "one for each of 2 stamps"),
        ([galaxy(), np.zeros((30, 30))], SIGMA, "stamp 1: got the value 0 in all pixels"),
        ([np.full((30, 30), np.nan)], SIGMA, "100% of pixels not finite"),
        ([np.zeros((3, 3))], SIGMA, "at least 4 x 4"),
        ([np.zeros((4, 5, 6))], SIGMA, "shape \\(4, 5, 6\\)"),
        ([np.array([["a"] * 5] * 5)], SIGMA, "numbers"),
        ([np.pad(galaxy((20, 20)), 10)], None, "border has no noise, so state the noise"),
    ],
)
def test_bad_stamps_are_refused(images, noise, message):
    with pytest.raises(DataError, match=message):
        standardise(images, 40, noise)


def test_files_of_every_kind_are_read(tmp_path):
    shapes = [(30, 30), (31, 33)]
    images = [galaxy(shape, seed=i) for i, shape in enumerate(shapes)]
    folder = tmp_path / "folder"
    folder.mkdir()
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(images[0], name="A"), fits.ImageHDU(images[1])]
    fits.HDUList(hdus).writeto(tmp_path / "stamps.fits")
    fits.PrimaryHDU(np.stack([images[0]] * 3)).writeto(tmp_path / "cube.fits.gz")
    for i, image in enumerate(images):
        fits.PrimaryHDU(image).writeto(folder / f"{i}.fits")
    np.savez(tmp_path / "stack.npz", image=np.stack([images[0]] * 2), noise_rms=[1.0, 2.0])
    np.savez(tmp_path / "named.npz", a=images[0], b=images[1])
    np.save(tmp_path / "one.npy", images[0])
    expected = {
        "stamps.fits": ["A", "2"],
        "cube.fits.gz": ["PRIMARY[0]", "PRIMARY[1]", "PRIMARY[2]"],
        "folder": ["0:PRIMARY", "1:PRIMARY"],
        "stack.npz": ["0", "1"],
        "named.npz": ["a", "b"],
        "one.npy": ["image"],
    }
    for name, names in expected.items():
        found, labels, noise = read_images(tmp_path / name)
        assert labels == names
        np.testing.assert_array_equal(found[0], images[0])
        assert (noise is None) == (name != "stack.npz")


def test_files_without_stamps_are_refused(tmp_path):
    cut = tmp_path / "cut.fits"
    fits.PrimaryHDU(galaxy((60, 60))).writeto(cut)
    cut.write_bytes(cut.read_bytes()[:9000])
    (tmp_path / "text.npz").write_text("no arrays")
    np.savez(tmp_path / "flat.npz", a=np.zeros(5))
    fits.PrimaryHDU().writeto(tmp_path / "empty.fits")
    (tmp_path / "folder").mkdir()
    for name, message in {
        "none.fits": "no such file",
        "cut.fits": "cut.fits",
        "text.npz": "a complete NumPy file",
        "flat.npz": "no images",
        "empty.fits": "no images",
        "folder": "a folder without FITS files",
    }.items():
        with pytest.raises(DataError, match=message):
            read_images(tmp_path / name)
