"""Files of lenses as archives deliver them: names, units, pixel scales, weights, masks, damage."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from astrozoo.data import lenses
from astrozoo.errors import DataError, InputError, UnknownNameError

SIDE = 40
WCS = {
    "CTYPE1": "RA---TAN",
    "CTYPE2": "DEC--TAN",
    "CRPIX1": 20.0,
    "CRPIX2": 20.0,
    "CRVAL1": 10.0,
    "CRVAL2": 5.0,
}
SCALE = {"CD1_1": -0.05 / 3600, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": 0.05 / 3600}
RMS, EXPOSURE = 0.01, 2000.0
"""Noise of the background [electron/s], and exposure time [s]."""


def bell(size: int, sd: float) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return np.exp(-(x**2 + y**2) / 2 / sd**2)


IMAGE = bell(SIDE, 4.0) + RMS * np.random.default_rng(1).normal(size=(SIDE, SIDE))
NOISE = np.sqrt(RMS**2 + bell(SIDE, 4.0) / EXPOSURE)
PSF = bell(11, 1.5)


def planes(**header: Any) -> dict[str, fits.ImageHDU]:
    """Image, noise map and PSF."""
    return {
        "image": fits.ImageHDU(IMAGE, fits.Header({**WCS, **SCALE, "BUNIT": "ELECTRONS/S", **header})),
        "noise": fits.ImageHDU(NOISE),
        "psf": fits.ImageHDU(PSF),
    }


def folder_of(tmp_path: Path, names: Mapping[str, str], **header: Any) -> Path:
    """A folder with a file for each plane."""
    for what, hdu in planes(**header).items():
        if what in names:
            hdu.writeto(tmp_path / names[what])
    return tmp_path


def file_of(tmp_path: Path, names: Mapping[str, str], **header: Any) -> Path:
    """One file with an extension for each plane."""
    hdus = []
    for what, name in names.items():
        hdu = planes(**header)[what]
        hdu.name = name
        hdus.append(hdu)
    path = tmp_path / "J0000+0000.fits"
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path)
    return path


FOLDERS = {
    "HST": {"image": "F814W_sci.fits", "noise": "F814W_rms.fits", "psf": "F814W_psf.fits"},
    "autolens": {"image": "image.fits", "noise": "noise_map.fits", "psf": "psf.fits"},
    "scaled": {"image": "data_scaled.fits.gz", "noise": "noise_map_scaled.fits.gz", "psf": "psf.fits.gz"},
    "tiny tim": {"image": "slacs_F814W_drz.fits", "noise": "slacs_F814W_err.fits", "psf": "kernel.fits"},
    "capitals": {"image": "IMAGE.FITS", "noise": "SIGMA.FITS", "psf": "PSF.FITS"},
    "by content": {"image": "J1430.fits", "noise": "noise.fits", "psf": "star.fits"},
}
FILES = {
    "drizzled": {"image": "SCI", "noise": "ERR", "psf": "PSF"},
    "Euclid": {"image": "VIS_BGSUB", "noise": "VIS_RMS", "psf": "VIS_PSF"},
    "Euclid flux": {"image": "VIS_FLUX", "noise": "VIS_RMS", "psf": "VIS_PSF"},
    "by content": {"image": "LENS1", "noise": "NOISE", "psf": "STAR"},
}


@pytest.mark.parametrize("names", FOLDERS.values(), ids=FOLDERS.keys())
def test_files_are_recognised(tmp_path: Path, names: dict[str, str]) -> None:
    check(lenses.read(folder_of(tmp_path, names)))


@pytest.mark.parametrize("names", FILES.values(), ids=FILES.keys())
def test_extensions_are_recognised(tmp_path: Path, names: dict[str, str]) -> None:
    check(lenses.read(file_of(tmp_path, names)))


def check(lens: lenses.LensImage) -> None:
    np.testing.assert_allclose(lens.image, IMAGE)
    np.testing.assert_allclose(lens.sigma(), NOISE)
    np.testing.assert_allclose(lens.psf, PSF / PSF.sum())
    assert lens.pixel_scale == pytest.approx(0.05)
    assert lens.unit == "electron / s"


def test_what_is_not_recognised_is_named_by_flags(tmp_path: Path) -> None:
    names = {"image": "a.fits", "noise": "b.fits", "psf": "c.fits"}
    folder = folder_of(tmp_path, names)
    with pytest.raises(DataError, match=r"--(noise|image)"):
        lenses.read(folder)
    check(lenses.read(folder, image="a.fits", noise="b.fits[1]", psf="c.fits"))
    with pytest.raises(DataError, match=r"nothing.fits: got no such file"):
        lenses.read(folder, image="nothing.fits", noise="b.fits", psf="c.fits")
    with pytest.raises(DataError, match=r"b.fits\[7\]: got no such 2-d plane"):
        lenses.read(folder, image="a.fits", noise="b.fits[7]", psf="c.fits")


@pytest.mark.parametrize("fault", ["half a plane", "half a header", "half a gzip", "empty", "text"])
def test_damaged_files_are_named(tmp_path: Path, fault: str) -> None:
    folder = folder_of(tmp_path, FOLDERS["autolens"])
    whole = (folder / "image.fits").read_bytes()
    (folder / "image.fits").unlink()
    contents = {
        "half a plane": ("image.fits", whole[: len(whole) // 2]),
        "half a header": ("image.fits", whole[:2000]),
        "half a gzip": ("image.fits.gz", gzip.compress(whole)[:3000]),
        "empty": ("image.fits", b""),
        "text": ("image.fits", b"not a FITS file"),
    }
    name, content = contents[fault]
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        lenses.read(folder)


UNITS = {
    "ELECTRONS/S": "electron / s",
    "electrons": "electron",
    "COUNTS/S": "adu / s",
    "cps": "adu / s",
    "counts": "adu",
    "e-/s": "electron / s",
    "uJy": "uJy",
    "nanomaggies": "nmgy",
    "MJy/sr": "MJy / sr",
    "furlongs": "",
    "": "",
}


@pytest.mark.parametrize(("card", "unit"), UNITS.items())
def test_everyday_units(tmp_path: Path, card: str, unit: str) -> None:
    lens = lenses.read(folder_of(tmp_path, FOLDERS["autolens"], BUNIT=card))
    assert lens.unit == unit
    assert unit or "unknown" in lens.provenance["unit"]


def test_a_given_unit_replaces_the_card_and_must_be_one(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, FOLDERS["autolens"])
    assert lenses.read(folder, unit="nJy").unit == "nJy"
    with pytest.raises(InputError, match="--unit: got 'furlongs'"):
        lenses.read(folder, unit="furlongs")


SCALES = {
    "zero": ({"CD1_1": 0.0, "CD2_2": 0.0}, "--pixel-scale"),
    "one zero": ({"CD1_1": 0.0}, "--pixel-scale"),
    "unequal": ({"CD2_2": 0.06 / 3600}, "square pixels.*--pixel-scale"),
    "degrees": ({"CD1_1": -0.05, "CD2_2": 0.05}, "--pixel-scale"),
}


@pytest.mark.parametrize(("cards", "message"), SCALES.values(), ids=SCALES.keys())
def test_pixel_scales_that_are_wrong(tmp_path: Path, cards: dict[str, float], message: str) -> None:
    folder = folder_of(tmp_path, FOLDERS["autolens"], **cards)
    with pytest.raises(DataError, match=message):
        lenses.read(folder)
    assert lenses.read(folder, pixel_scale=0.05).pixel_scale == 0.05
    with pytest.raises(InputError, match="--pixel-scale: got -1"):
        lenses.read(folder, pixel_scale=-1.0)


def test_pixel_scales_that_are_missing_or_in_another_card(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, FOLDERS["autolens"])
    with fits.open(folder / "image.fits", mode="update") as hdus:
        for card in SCALE:
            del hdus[1].header[card]
    with pytest.raises(DataError, match=r"without a pixel scale.*--pixel-scale"):
        lenses.read(folder)
    with fits.open(folder / "image.fits", mode="update") as hdus:
        del hdus[1].header["CTYPE*"]
        hdus[1].header["D001SCAL"] = 0.05
    lens = lenses.read(folder)
    assert (lens.pixel_scale, lens.provenance["pixel scale"]) == (0.05, "card D001SCAL")


def weighted(tmp_path: Path, weight: np.ndarray, name: str = "weight.fits", **header: Any) -> Path:
    folder = folder_of(tmp_path, {"image": "image.fits", "psf": "psf.fits"}, **header)
    fits.writeto(folder / name, weight)
    return folder


WEIGHTS = {
    "inverse variances": (1 / NOISE**2, {}, "inverse variances"),
    "exposure times of the header": (NOISE * 0 + EXPOSURE, {"EXPTIME": 2200.0}, "exposure times"),
    "exposure times of a deep image": (NOISE * 0 + 50 * EXPOSURE, {}, "exposure times"),
}


@pytest.mark.parametrize(("weight", "header", "meaning"), WEIGHTS.values(), ids=WEIGHTS.keys())
def test_weights(tmp_path: Path, weight: np.ndarray, header: dict[str, float], meaning: str) -> None:
    lens = lenses.read(weighted(tmp_path, weight, **header))
    assert meaning in lens.provenance["noise"]
    faint = IMAGE < RMS
    np.testing.assert_allclose(np.median((lens.sigma() / NOISE)[faint]), 1, atol=0.15)


def test_weights_of_counts_that_are_no_inverse_variances(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--noise or --exposure"):
        lenses.read(weighted(tmp_path, NOISE * 0 + 50 * EXPOSURE, BUNIT="COUNTS"))


def test_variances_and_weights_of_zero(tmp_path: Path) -> None:
    variance = NOISE**2
    variance[3, 4] = np.nan
    lens = lenses.read(weighted(tmp_path, variance, "image_var.fits"))
    assert (~lens.mask).sum() == 1
    np.testing.assert_allclose(lens.sigma()[lens.mask], NOISE[lens.mask])


def test_an_exposure_in_place_of_a_noise_map(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"image": "image.fits", "psf": "psf.fits"})
    with pytest.raises(DataError, match=r"--noise or --weight.*--exposure"):
        lenses.read(folder)
    np.testing.assert_allclose(
        np.median(lenses.read(folder, exposure=EXPOSURE).sigma() / NOISE), 1, atol=0.15
    )


y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
DISC = np.hypot(x, y) < 12
MASKS = {
    "1 in the middle": (DISC * 1, None, DISC),
    "0 in the middle": (1 - DISC, None, DISC),
    "few bad": ((x > 15) * 1, None, x <= 15),
    "few good zeros": (1 - (x > 15), None, x <= 15),
    "given": ((x > 0) * 1, 1, x > 0),
}


@pytest.mark.parametrize(("mask", "good", "used"), MASKS.values(), ids=MASKS.keys())
def test_masks_of_either_sign(tmp_path: Path, mask: np.ndarray, good: int | None, used: np.ndarray) -> None:
    folder = folder_of(tmp_path, FOLDERS["autolens"])
    fits.writeto(folder / "mask.fits", mask.astype(np.int16))
    np.testing.assert_array_equal(lenses.read(folder, good=good).mask, used)


def test_an_ambiguous_mask_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, FOLDERS["autolens"])
    fits.writeto(folder / "mask.fits", (x > 0).astype(np.int16))
    with pytest.raises(DataError, match="--good"):
        lenses.read(folder)


PSFS = {
    "negative": (-PSF, "image of a point"),
    "off its middle": (np.roll(PSF, 4, 0), "peak is in the middle"),
    "not finite": (np.where(PSF > 0.5, np.nan, PSF), "image of a point"),
}


@pytest.mark.parametrize(("psf", "message"), PSFS.values(), ids=PSFS.keys())
def test_psfs_that_are_none(tmp_path: Path, psf: np.ndarray, message: str) -> None:
    folder = folder_of(tmp_path, {"image": "image.fits", "noise": "noise.fits"})
    fits.writeto(folder / "psf.fits", psf)
    with pytest.raises(DataError, match=message):
        lenses.read(folder)


def test_psfs_of_any_size_and_sum(tmp_path: Path) -> None:
    """Even sides and sides larger than the image are cut around the peak."""
    for i, size in enumerate((12, 61)):
        (tmp_path / str(i)).mkdir()
        folder = folder_of(tmp_path / str(i), {"image": "image.fits", "noise": "noise.fits"})
        psf = 7 * bell(size + 1, 1.5)[: size + i, : size + i]
        fits.writeto(folder / "psf.fits", psf)
        kernel = lenses.read(folder).psf
        assert len(kernel) % 2 == 1 <= SIDE
        assert len(kernel) <= SIDE
        assert kernel.sum() == pytest.approx(1)
        assert np.unravel_index(kernel.argmax(), kernel.shape) == (len(kernel) // 2,) * 2


def test_an_unknown_keyword_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="pixel_scal"):
        lenses.read(tmp_path, pixel_scal=0.05)  # type: ignore[call-arg]
