"""Files of surveys that are recognised by their headers, as their archives write them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import galsim.des
import numpy as np
import pytest
import yaml
from astropy.io import fits
from astropy.wcs import WCS

from astrozoo.data.description_file import IMAGE_KEYS, parse_images
from astrozoo.data.psf import mixture_stamp
from astrozoo.data.sdss import read_field
from astrozoo.data.surveys import check_survey, read_images, surveys
from astrozoo.errors import DataError, InputError, UnknownNameError

SHAPE = (90, 100)
FLUX, AT = 50.0, (48.0, 41.0)  # of a star [nMgy], (x, y)


def _header(scale: float, **cards: Any) -> fits.Header:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150.0, 2.0], [50.5, 45.5]
    wcs.wcs.cd = np.array([[-1.0, 0.0], [0.0, 1.0]]) * scale / 3600
    header = wcs.to_header()
    for name, value in cards.items():
        header[f"HIERARCH {name}" if len(name) > 8 else name] = value
    return header


def _star(sigma: float) -> np.ndarray:
    y, x = np.indices(SHAPE)
    return np.exp(-0.5 * ((x - AT[0]) ** 2 + (y - AT[1]) ** 2) / sigma**2) / (2 * np.pi * sigma**2)


def _stamp(sigma: float, size: int = 31) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - size // 2
    return np.exp(-0.5 * (x**2 + y**2) / sigma**2)


def psfex(path: Path, sigma: float, *, slope: float = 0.0, sampling: float = 0.7, **cards: Any) -> None:
    """A PSFEx model of a Gaussian whose images grow along x, by a polynomial of degree 1."""
    basis = np.zeros((3, 41, 41), np.float32)
    basis[0] = _stamp(sigma / sampling, 41)
    wider = _stamp(1.02 * sigma / sampling, 41) / 1.02**2
    basis[1] = slope * (wider - basis[0])
    column = fits.Column("PSF_MASK", f"{basis.size}E", dim="(41,41,3)", array=basis[None])
    table = fits.BinTableHDU.from_columns([column], name="PSF_DATA")
    table.header.update(
        {"POLNAXIS": 2, "POLGRP1": 1, "POLGRP2": 1, "POLNAME1": "X_IMAGE", "POLNAME2": "Y_IMAGE",
         "POLNGRP": 1,
         "POLZERO1": 50.0, "POLZERO2": 45.0, "POLSCAL1": 100.0, "POLSCAL2": 90.0, "POLDEG1": 1,
         "PSF_SAMP": sampling, "PSF_FWHM": 4.0, "PSFNAXIS": 3, "PSFAXIS1": 41, "PSFAXIS2": 41, "PSFAXIS3": 3,
         **cards}
    )  # fmt: skip
    table.writeto(path, overwrite=True)


def decam(folder: Path) -> None:
    zero_point, gain, sky = 30.0, 4.0, 500.0
    counts = _star(2.0) * FLUX * 10 ** (0.4 * (zero_point - 22.5)) + sky
    counts = np.random.default_rng(0).poisson(counts * gain) / gain
    counts[3, 4] = 6e4
    mask = np.zeros(SHAPE, np.int16)
    mask[10, 11], mask[12, 13] = 1, 3
    cards = {"INSTRUME": "DECam", "FILTER": "g DECam SDSS c0001 4720.0 1520.0", "MAGZERO": zero_point,
             "GAINA": 3.9, "GAINB": 4.1,
             "RDNOISEA": 0.0, "RDNOISEB": 0.0, "SATURATA": 4e4, "SATURATB": 5e4}  # fmt: skip
    for kind, array in (("image", counts), ("dqmask", mask)):
        name = f"c4d_160101_{'ooi' if kind == 'image' else 'ood'}_g_v1.fits"
        hdu = fits.CompImageHDU if kind == "image" else fits.ImageHDU
        header = _header(0.263, **cards, PRODTYPE=kind)
        fits.HDUList([fits.PrimaryHDU(), hdu(array, header, name="N4")]).writeto(folder / name)
    psfex(folder / "c4d_160101_ooi_g_v1-psfex.fits", 2.0)


def hsc(folder: Path) -> None:
    value = _star(2.5) * FLUX * 10 ** (0.4 * (27.0 - 22.5)) + np.random.default_rng(1).normal(0, 0.3, SHAPE)
    mask = np.zeros(SHAPE, np.int32)
    mask[10, 11], mask[12, 13], mask[20:30] = 1 << 0, 1 << 1, 1 << 5
    planes = {"MP_BAD": 0, "MP_SAT": 1, "MP_DETECTED": 5, "MP_SUSPECT": 7, "MP_NO_DATA": 8}
    hdus = [fits.PrimaryHDU(header=fits.Header({"FILTER": "HSC-R"}))]
    hdus += [fits.ImageHDU(value.astype(np.float32), _header(0.168), name="IMAGE")]
    hdus += [fits.ImageHDU(mask, _header(0.168, **planes), name="MASK")]
    hdus += [fits.ImageHDU(np.full(SHAPE, 0.09, np.float32), _header(0.168), name="VARIANCE")]
    fits.HDUList(hdus).writeto(folder / "2-cutout-HSC-R-9813.fits")
    fits.PrimaryHDU(_stamp(2.5)).writeto(folder / "psf-2-cutout-HSC-R-9813.fits")


def hst(folder: Path) -> None:
    per_second = FLUX / 10 ** (0.4 * (22.5 - 25.94))
    value = _star(1.5) * per_second + np.random.default_rng(2).normal(0, 0.01, SHAPE)
    weight = np.full(SHAPE, 2000.0, np.float32)
    value[:3], weight[:3] = 0, 0
    flam = 10 ** (-0.4 * (25.94 + 5 * np.log10(8045.0) + 2.408))
    primary = {"TELESCOP": "HST", "FILTER1": "CLEAR1L", "FILTER2": "F814W", "EXPTIME": 2000.0}
    science = _header(0.05, BUNIT="ELECTRONS/S", PHOTFLAM=flam, PHOTPLAM=8045.0)
    hdus = [fits.PrimaryHDU(header=fits.Header(primary)), fits.ImageHDU(value, science, name="SCI")]
    fits.HDUList([*hdus, fits.ImageHDU(weight, science, name="WHT")]).writeto(folder / "j8xi01_drz.fits")
    fits.PrimaryHDU(_stamp(1.5)).writeto(folder / "j8xi01_drz_psf.fits")


def euclid(folder: Path) -> None:
    hdus = [fits.PrimaryHDU()]
    for band, zero_point in (("VIS", 24.6), ("NIR_Y", 29.8), ("NIR_J", 30.0), ("NIR_H", 29.9)):
        value = _star(2.0) * FLUX * 10 ** (0.4 * (zero_point - 22.5))
        value = value + np.random.default_rng(3).normal(0, 0.1, SHAPE)
        header = _header(0.1, MAGZERO=zero_point)
        hdus += [fits.ImageHDU(value, header, name=f"{band}_FLUX")]
        hdus += [fits.ImageHDU(np.full(SHAPE, 0.1), header, name=f"{band}_RMS")]
        hdus += [fits.ImageHDU(_stamp(2.0), name=f"{band}_PSF")]
    fits.HDUList(hdus).writeto(folder / "102.fits")


def npz(folder: Path) -> None:
    value = _star(2.5) * FLUX * 10 ** (0.4 * (27.0 - 22.5)) + np.random.default_rng(4).normal(0, 0.3, SHAPE)
    arrays = {"images": np.stack([value, value]), "psfs": np.stack([_stamp(2.5)] * 2)}
    np.savez(folder / "blend.npz", filters=np.array(["g", "y"]), **arrays)


FILES = {
    "decam": (decam, ("g",), 4.0 * 10 ** (0.4 * 7.5)),
    "hsc": (hsc, ("r",), None),
    "hst": (hst, ("F814W",), None),
    "euclid": (euclid, ("VIS", "Y", "J", "H"), None),
    "npz": (npz, ("g", "y"), None),
}


@pytest.mark.parametrize("survey", FILES)
def test_files_are_recognised_and_a_star_has_its_flux(survey, tmp_path):
    write, bands, calibration = FILES[survey]
    write(tmp_path)
    field = read_images(tmp_path)
    assert field.meta["survey"] == survey
    assert field.bands == bands
    for image in field:
        stamp = image.psf.stamp(*AT)
        half = len(stamp) // 2
        y, x = (int(v) for v in AT[::-1])
        cut = image.nanomaggies[y - half : y + half + 1, x - half : x + half + 1]
        flux = (stamp * cut).sum() / (stamp**2).sum()
        assert flux == pytest.approx(FLUX, rel=0.03)
        drawn = mixture_stamp(image.psf.mixture(*AT), len(stamp))
        np.testing.assert_allclose(drawn, stamp, atol=0.02 * stamp.max())
        if calibration is not None:
            np.testing.assert_allclose(image.calibration, calibration, rtol=1e-6)
    assert read_images(tmp_path, survey).bands == bands
    correlated = survey in ("hst", "euclid")
    assert ("chi2 per pixel of noise alone" in field.meta.get("notes", "")) == correlated


def test_masks_of_surveys(tmp_path):
    for survey, bad, saturated in (
        ("decam", [[3, 4], [10, 11], [12, 13]], [[3, 4], [12, 13]]),
        ("hsc", [[10, 11], [12, 13]], [[12, 13]]),  # detected pixels are good
        ("hst", [[y, x] for y in range(3) for x in range(SHAPE[1])], []),
    ):
        folder = tmp_path / survey
        folder.mkdir()
        FILES[survey][0](folder)
        image = read_images(folder).images[0]
        assert np.argwhere(~image.valid).tolist() == bad, survey
        assert np.argwhere(image.saturated).tolist() == saturated, survey


def test_a_legacy_cube_needs_a_described_psf(tmp_path):
    cube = np.stack([_star(2.0) * FLUX] * 2) + np.random.default_rng(5).normal(0, 0.01, (2, *SHAPE))
    fits.PrimaryHDU(cube, _header(0.262, BANDS="grz"[:2], SURVEY="LegacySurvey")).writeto(tmp_path / "a.fits")
    with pytest.raises(DataError, match="psf: got nothing, expected one of stamp"):
        read_images(tmp_path / "a.fits")
    text = {
        "survey": "legacy",
        "images": [{"file": "a.fits", "psf": {"gaussians": {"weights": [1], "sigmas": [0.524]}}}],
    }
    (tmp_path / "images.yaml").write_text(yaml.safe_dump(text))
    field = read_images(tmp_path)  # the one description of the folder
    assert field.bands == ("g", "r")
    assert field.images[1].nanomaggies.sum() == pytest.approx(FLUX, rel=0.3)
    np.testing.assert_allclose(field.images[0].psf.mixture(0, 0).covariances[0], 4 * np.eye(2), rtol=1e-3)


def test_what_is_not_recognised_is_said(tmp_path):
    with pytest.raises(UnknownNameError, match="unknown survey 'lsst'"):
        check_survey("lsst")
    fits.PrimaryHDU(np.zeros(SHAPE), _header(0.2)).writeto(tmp_path / "a.fits")
    with pytest.raises(DataError, match=r"1 files of no known survey, expected a description .*Known: sdss"):
        read_images(tmp_path)
    decam(tmp_path)
    hsc(tmp_path)
    with pytest.raises(DataError, match="expected images of one survey, or --survey"):
        read_images(tmp_path)
    assert read_images(tmp_path, "hsc").bands == ("r",)
    (tmp_path / "images.yaml").write_text("survey: lsst\nimages: [{file: a.fits}]")
    with pytest.raises(DataError, match="survey: got 'lsst', expected one of decam"):
        read_images(tmp_path / "images.yaml")
    (tmp_path / "images.yaml").write_text("survey: hst\nimages: [{file: a.fits}]")
    with pytest.raises(InputError, match="expected hst, as"):
        read_images(tmp_path / "images.yaml", "hsc")
    assert all(entry["summary"] for entry in surveys().values())


@pytest.mark.parametrize("name", ["c4d_160101_ooi_g_v1.fits", "c4d_160101_ooi_g_v1-psfex.fits"])
def test_truncated_files_of_a_survey_are_named(name, tmp_path):
    decam(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=name):
        read_images(tmp_path, "decam")


def test_psfex_varies_over_the_image_and_is_checked(tmp_path):
    decam(tmp_path)
    path = tmp_path / "c4d_160101_ooi_g_v1-psfex.fits"
    psfex(path, 2.0, slope=5.0)
    psf = read_images(tmp_path).images[0].psf
    left, right = (psf.stamp(x, 45.0) for x in (0.0, 99.0))
    assert left.max() > 1.02 * right.max()
    wide = [np.sum(m.weights * m.covariances[:, 0, 0]) for m in (psf.mixture(0, 45), psf.mixture(99, 45))]
    assert wide[1] > 1.02 * wide[0]
    psfex(path, 2.0, POLNAME1="MAG_AUTO")
    with pytest.raises(DataError, match=r"a polynomial of \['MAG_AUTO', 'Y_IMAGE'\]"):
        read_images(tmp_path)
    psfex(path, 2.0, POLDEG1=3)
    with pytest.raises(DataError, match="PSFEx basis: got shape"):
        read_images(tmp_path)
    fits.BinTableHDU.from_columns([fits.Column("A", "E", array=[1.0])]).writeto(path, overwrite=True)
    with pytest.raises(DataError, match="expected a table with PSF_MASK"):
        read_images(tmp_path)


def test_a_psfex_stamp_is_that_of_galsim(tmp_path):
    decam(tmp_path)
    path = tmp_path / "c4d_160101_ooi_g_v1-psfex.fits"
    psfex(path, 2.0, slope=3.0)
    psf = read_images(tmp_path).images[0].psf
    stamp = psf.stamp(70.0, 20.0)
    with fits.open(path) as hdus:
        model = galsim.des.DES_PSFEx(hdus[1]).getPSF(galsim.PositionD(71.0, 21.0))
    drawn = model.drawImage(nx=len(stamp), ny=len(stamp), scale=1.0, method="no_pixel", dtype=float).array
    np.testing.assert_allclose(stamp, drawn / drawn.sum(), atol=2e-3 * stamp.max())


def test_a_described_sdss_frame_is_the_native_reader_s_image(sdss_folder, tmp_path):
    image = read_field(sdss_folder, bands="r").images[0]
    for name in ("calibration", "sky"):
        np.save(tmp_path / f"{name}.npy", getattr(image, name) / (image.calibration if name == "sky" else 1))
    np.save(tmp_path / "mask.npy", (~image.valid).astype(np.int16))
    np.save(tmp_path / "psf.npy", image.psf.stamp(1024, 744))
    file = next(sdss_folder.glob("frame-r-*"))
    entry = {
        "file": str(file), "band": "r", "sky_subtracted": True,
        "gain": {"file": str(tmp_path / "calibration.npy")},
        "sky": {"file": str(tmp_path / "sky.npy")}, "mask": {"file": str(tmp_path / "mask.npy"), "good": 0},
        "psf": {"stamp": str(tmp_path / "psf.npy")},
    }  # fmt: skip
    (tmp_path / "images.yaml").write_text(yaml.safe_dump({"images": [entry]}))
    described = read_images(tmp_path / "images.yaml").images[0]
    np.testing.assert_array_equal(described.valid, image.valid)
    for name in ("counts", "sky", "calibration"):
        got, expected = (getattr(i, name)[image.valid] for i in (described, image))
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    corners = np.array([[0.0, 2047.0], [0.0, 1488.0]])
    np.testing.assert_allclose(
        described.wcs.all_pix2world(*corners, 0), image.wcs.all_pix2world(*corners, 0), atol=1e-9
    )
    np.testing.assert_allclose(described.psf.stamp(1024, 744), image.psf.stamp(1024, 744), atol=1e-9)


PAGE = Path(__file__).parents[2] / "docs" / "images_of_any_survey.md"


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.S))
def test_descriptions_of_the_documentation_are_valid(block, tmp_path):
    for name in re.findall(r"[\w-]+\.(?:fits\.fz|fits|psf|npy)\b", block):
        if not (tmp_path / name).exists():
            fits.PrimaryHDU(np.zeros((2, 3, 3)), fits.Header({"BANDS": "gr"})).writeto(tmp_path / name)
    content = yaml.safe_load(block)
    ready = surveys()[content["survey"]]["image"] if "survey" in content else {}
    for name in ("c4d_160101_ood_g_v1.fits.fz",):  # the masks of ready descriptions
        (tmp_path / name).touch()
    images = parse_images(content, tmp_path, "images.yaml", ready)
    assert len(images) == (2 if content.get("survey") == "legacy" else len(content["images"]))


def test_the_documentation_has_every_survey_and_key():
    page = PAGE.read_text()
    assert all(re.search(name, page, re.IGNORECASE) for name in surveys())
    assert all(f"`{key}`" in page for key in IMAGE_KEYS if key != "name")
