"""Stamps from files of several layouts, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from astropy.io import fits

from astrozoo import data
from astrozoo.data.finder_files import read_stamps
from astrozoo.errors import DataError, InputError


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def write(path, *planes):
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.HDUList([fits.PrimaryHDU(), *(fits.ImageHDU(plane) for plane in planes)]).writeto(path)


def test_a_file_per_stamp_with_an_hdu_per_band(tmp_path):
    planes = noise(4, 3, 20, 20)
    for i, stamp in enumerate(planes):
        write(tmp_path / f"s{i}.fits", *stamp)
    stamps = read_stamps(tmp_path)
    torch.testing.assert_close(stamps.image, torch.from_numpy(planes))
    assert (stamps.names, stamps.bands, stamps.label) == (
        ("s0.fits", "s1.fits", "s2.fits", "s3.fits"),
        ("1", "2", "3"),
        None,
    )


def test_a_folder_per_band_is_matched_by_number_and_bands_are_ordered(tmp_path):
    planes = noise(2, 3, 16, 16)
    for band, rows in zip(("R", "G"), planes, strict=True):
        for number, plane in zip((9, 10, 11), rows, strict=True):
            write(tmp_path / band / f"image_{band}-{number}.fits", plane)
    stamps = read_stamps(tmp_path, bands="R,G")
    torch.testing.assert_close(stamps.image, torch.from_numpy(planes.transpose(1, 0, 2, 3).copy()))
    assert stamps.names == ("9", "10", "11")
    assert read_stamps(tmp_path, bands="G").bands == ("G",)


def test_folders_lens_and_nolens_are_labels(tmp_path):
    for name, count in (("lens", 2), ("nolens", 3)):
        for i in range(count):
            write(tmp_path / name / f"{i}.fits", noise(16, 16))
    assert read_stamps(tmp_path).label.tolist() == [1, 1, 0, 0, 0]


def test_an_npz_file(tmp_path):
    images = noise(3, 2, 16, 16)
    np.savez(tmp_path / "a.npz", images=images, names=["a", "b", "c"], bands=["g", "r"], label=[0, 1, 0])
    stamps = read_stamps(tmp_path / "a.npz", bands="r")
    torch.testing.assert_close(stamps.image[:, 0], torch.from_numpy(images[:, 1]))
    assert stamps.names == ("a", "b", "c")
    assert stamps.label.tolist() == [0, 1, 0]


def test_the_value_100_is_a_missing_pixel(tmp_path):
    image = noise(1, 16, 16)
    image[0, :3] = 100.0
    np.savez(tmp_path / "a.npz", images=image)
    assert read_stamps(tmp_path / "a.npz").image.isnan().sum() == 3 * 16
    assert not read_stamps(tmp_path / "a.npz", missing=-99.0).image.isnan().any()


def _sizes(path):
    write(path / "a.fits", noise(20, 20))
    write(path / "b.fits", noise(21, 20))


def _shapes(path):
    write(path / "a.fits", noise(20, 20), noise(20, 21))


def _bands(path):
    write(path / "a.fits", noise(20, 20), noise(20, 20))
    write(path / "b.fits", noise(20, 20))


def _numbers(path):
    write(path / "g" / "s1.fits", noise(20, 20))
    write(path / "r" / "s2.fits", noise(20, 20))


def _label(path):
    np.savez(path / "a.npz", images=noise(3, 16, 16), label=[1])


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (lambda path: None, "", "no FITS files"),
        (_sizes, "", "stamp b.fits: got shape .1, 21, 20.*stamps of one size"),
        (_shapes, "", "bands of different shapes"),
        (_bands, "", "stamp b.fits: got shape .1, 20, 20"),
        (_numbers, "", "the same stamps in all bands"),
        (_label, "a.npz", "label of .*: got 1, expected 3"),
        (lambda path: (path / "a.txt").write_text("x"), "a.txt", "another kind"),
        (lambda path: np.savez(path / "a.npz", image=noise(2, 8, 8)), "a.npz", "images of shape"),
    ],
)
def test_bad_files_are_refused(make, name, message, tmp_path):
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        read_stamps(tmp_path / name)


def test_unknown_bands_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=noise(2, 2, 16, 16), bands=["g", "r"])
    with pytest.raises(InputError, match=r"--bands: got \['z'\], expected some of g, r"):
        read_stamps(tmp_path / "a.npz", bands="g,z")


def test_stamps_of_the_challenge_are_read():
    root = data.root()
    folder = None if root is None else root / "lens_finding" / "ground_based"
    if folder is None or not folder.is_dir():
        pytest.skip("the stamps of the lens-finding challenge are not among the local data")
    stamps = read_stamps(folder, bands="Band3,Band1,Band2")
    assert stamps.image.shape == (6, 3, 101, 101)
    assert stamps.label.tolist() == [1, 1, 1, 0, 0, 0]
    whole = read_stamps(folder)
    assert whole.bands == ("Band1", "Band2", "Band3", "Band4")
    assert whole.image.isnan().any()
