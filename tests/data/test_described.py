"""Images that a description explains: electrons, calibration, noise, masks and PSFs, and clear errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import galsim
import numpy as np
import pytest
import yaml
from astropy.io import fits
from astropy.wcs import WCS

from astrozoo.data.described import read_described
from astrozoo.data.images import Field
from astrozoo.errors import DataError

SHAPE, SCALE = (120, 140), 0.2
GAIN, SKY, READ, EXPOSURE = 2.5, 180.0, 6.0, 90.0
PER_NMGY = 40.0  # counts of one nanomaggy in the whole exposure
ZERO_POINT = 22.5 + 2.5 * np.log10(PER_NMGY)
FLUX, AT = 120.0, (61.3, 70.8)  # of a star [nMgy], (x, y)
FWHM = 0.9
STAMP = (
    galsim.Moffat(beta=3.5, fwhm=FWHM / SCALE)
    .drawImage(
        nx=SHAPE[1], ny=SHAPE[0], scale=1.0, center=galsim.PositionD(AT[0] + 1, AT[1] + 1), method="no_pixel"
    )
    .array
)


def header(**cards: Any) -> fits.Header:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150.0, 2.0], [70.5, 60.5]
    wcs.wcs.cd = np.array([[-1.0, 0.0], [0.0, 1.0]]) * SCALE / 3600
    return wcs.to_header() + fits.Header(cards)


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    """Detector counts of a star on a sky, with Poisson noise and read noise."""
    rng = np.random.default_rng(5)
    electrons = rng.poisson(GAIN * (FLUX * PER_NMGY * STAMP.clip(0) + SKY)) + rng.normal(0, READ, SHAPE)
    return electrons / GAIN


def write(folder: Path, array: np.ndarray, name: str = "a.fits", **cards: Any) -> None:
    fits.PrimaryHDU(array, header(**cards)).writeto(folder / name, overwrite=True)


def described(folder: Path, entry: dict[str, Any], **top: Any) -> Field:
    image = {"file": "a.fits", "band": "r", "psf": {"moffat": {"fwhm": FWHM}}} | entry
    image = {key: value for key, value in image.items() if value is not None}
    (folder / "images.yaml").write_text(yaml.safe_dump({"images": [image], **top}))
    return read_described(folder / "images.yaml")


AS_COUNTS = {"unit": "adu", "gain": GAIN, "read_noise": READ, "zero_point": float(ZERO_POINT)}
KINDS = {  # value of a pixel from its counts, and what the description says
    "counts with the sky": (lambda c: c, {**AS_COUNTS, "sky": SKY}),
    "counts with a sky that is measured": (lambda c: c, AS_COUNTS),
    "counts without the sky": (lambda c: c - SKY, {**AS_COUNTS, "sky": SKY, "sky_subtracted": True}),
    "counts per second": (
        lambda c: c / EXPOSURE,
        {**AS_COUNTS, "unit": "counts/s", "exposure": EXPOSURE, "zero_point_per_second": False,
         "zero_point": float(ZERO_POINT - 2.5 * np.log10(EXPOSURE))},
    ),
    "counts, zero point per second": (
        lambda c: c,
        {**AS_COUNTS, "exposure": EXPOSURE, "zero_point_per_second": True,
         "zero_point": float(ZERO_POINT - 2.5 * np.log10(EXPOSURE))},
    ),
    "electrons": (
        lambda c: c * GAIN,
        {"unit": "electron", "read_noise": READ, "zero_point": float(ZERO_POINT + 2.5 * np.log10(GAIN))},
    ),
    "nanomaggies": (
        lambda c: (c - SKY) / PER_NMGY,
        {"unit": "nmgy", "gain": GAIN * PER_NMGY, "sky": SKY / PER_NMGY, "sky_subtracted": True,
         "read_noise": READ},
    ),
    "microjanskys of unknown noise": (
        lambda c: (c - SKY) / PER_NMGY * 3.631, {"unit": "uJy", "sky_subtracted": True}
    ),
    "a calibration in place of a unit": (
        lambda c: c - SKY, {"calibration": 1 / PER_NMGY, "sky_subtracted": True}
    ),
}  # fmt: skip


def flux_of(nanomaggies: np.ndarray) -> float:
    """Flux of the star by its PSF [nMgy]; the noise makes it uncertain by 1.5."""
    return float((STAMP * nanomaggies).sum() / (STAMP**2).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_a_star_has_its_flux_and_pixels_their_noise(kind, counts, tmp_path):
    to_value, entry = KINDS[kind]
    write(tmp_path, to_value(counts))
    image = described(tmp_path, entry).images[0]
    near = np.hypot(*(np.indices(SHAPE) - np.array(AT[::-1])[:, None, None])) < 25
    assert image.valid.all()
    realised = flux_of((counts - SKY) / PER_NMGY)
    assert realised == pytest.approx(FLUX, abs=4.5)
    assert flux_of(image.nanomaggies) == pytest.approx(realised, abs=1e-6 if "sky" in entry else 0.5)
    z = ((image.counts - image.sky) / np.sqrt(image.sky))[~near]
    assert z.std() == pytest.approx(1, abs=0.04)
    assert z.mean() == pytest.approx(0, abs=0.1)
    if "gain" in entry and "unknown" not in kind:
        np.testing.assert_allclose(image.calibration, GAIN * PER_NMGY, rtol=1e-6)


@pytest.mark.parametrize("kind", ["sigma", "variance", "inverse_variance", "weight"])
def test_noise_maps(kind, counts, tmp_path):
    variance = (counts.clip(1) * GAIN + READ**2) / GAIN**2  # includes the noise of the star
    variance[3:5, 3:5] = np.nan
    arrays = {
        "sigma": np.sqrt(variance),
        "variance": variance,
        "inverse_variance": np.nan_to_num(1 / variance),
    }
    write(tmp_path, counts - SKY)
    empty = np.where(np.isfinite(variance), (SKY * GAIN + READ**2) / GAIN**2, np.nan)
    write(tmp_path, arrays.get(kind, np.nan_to_num(7.0 / empty)), "noise.fits")
    entry = {
        "unit": "adu",
        "zero_point": float(ZERO_POINT),
        "sky_subtracted": True,
        "noise": {kind: "noise.fits"},
    }
    field = described(tmp_path, entry)
    image = field.images[0]
    assert (~image.valid).sum() == 4
    z = ((image.counts - image.sky) / np.sqrt(image.sky))[5:40]
    assert z.std() == pytest.approx(1, abs=0.05)
    assert flux_of(image.nanomaggies) == pytest.approx(flux_of((counts - SKY) / PER_NMGY), abs=0.1)
    if kind != "weight":
        assert np.median(image.calibration) == pytest.approx(
            GAIN * PER_NMGY, rel=0.15
        )  # from the map's slope
        assert "noise map" in field.meta["notes"]


def test_masks_of_bits_names_codes_and_good_values(counts, tmp_path):
    write(tmp_path, counts)
    mask = np.zeros(SHAPE, np.int32)
    mask[0, 0], mask[0, 1], mask[0, 2], mask[0, 3] = 1 << 0, 1 << 1, 1 << 5, (1 << 1) | (1 << 5)
    write(tmp_path, mask, "mask.fits", **{"MP_BAD": 0, "MP_SAT": 1, "HIERARCH MP_DETECTED": 5})

    def masked(**how: Any) -> tuple[list[int], list[int]]:
        image = described(tmp_path, {**AS_COUNTS, "mask": {"file": "mask.fits", **how}}).images[0]
        assert image.valid.dtype == bool
        return np.flatnonzero(~image.valid.ravel()).tolist(), np.flatnonzero(image.saturated.ravel()).tolist()

    assert masked(bad=[0], saturated=[1]) == ([0, 1, 3], [1, 3])
    assert masked(bad=["BAD"], saturated="SAT") == ([0, 1, 3], [1, 3])
    assert masked(bad="any") == ([0, 1, 2, 3], [])
    assert masked(good=0) == ([0, 1, 2, 3], [])
    assert masked(bad=[2], saturated=[32], codes=True) == ([1, 2], [2])
    assert masked(bad=["DEAD"], planes={"DEAD": 5}) == ([2, 3], [])
    with pytest.raises(DataError, match=r"mask: got the plane 'CR', expected one of: BAD \(0\)"):
        masked(bad=["CR"])
    write(tmp_path, mask + 0.5, "mask.fits")
    with pytest.raises(DataError, match="whole numbers"):
        masked(bad="any")
    write(tmp_path, mask[1:], "mask.fits")
    with pytest.raises(DataError, match="shape"):
        masked(bad="any")


def test_saturation_and_values_that_are_not_numbers(counts, tmp_path):
    spoilt = counts.copy()
    spoilt[2, 3], spoilt[4, 5] = np.nan, 5e4
    write(tmp_path, spoilt, SATURATE=4e4)
    image = described(tmp_path, {**AS_COUNTS, "saturation": "SATURATE"}).images[0]
    assert np.argwhere(~image.valid).tolist() == [[2, 3], [4, 5]]
    assert np.argwhere(image.saturated).tolist() == [[4, 5]]
    assert np.isfinite(image.counts).all()


def test_numbers_from_header_cards(counts, tmp_path):
    write(
        tmp_path,
        counts,
        BUNIT="ADU",
        GAINA=GAIN - 0.5,
        GAINB=GAIN + 0.5,
        RON=READ,
        MAGZERO=ZERO_POINT,
        FILTER="r DECam SDSS",
    )
    entry = {
        "band": {"card": "FILTER"},
        "gain": ["GAINA", "GAINB", "GAINC"],
        "read_noise": "RON",
        "zero_point": "MAGZERO",
    }
    image = described(tmp_path, entry).images[0]
    assert image.band == "r"
    np.testing.assert_allclose(image.calibration, GAIN * PER_NMGY, rtol=1e-6)
    with pytest.raises(DataError, match=r"images\[0\]: gain: got a header without EGAIN"):
        described(tmp_path, entry | {"gain": "EGAIN"})


def test_planes_of_a_cube_and_numpy_files(counts, tmp_path):
    cube = np.stack([counts, counts + 1])
    stamps = np.stack([galsim.Gaussian(sigma=s).drawImage(nx=21, ny=21, scale=1).array for s in (1.5, 2.5)])
    np.savez(tmp_path / "a.npz", images=cube, psfs=stamps, filters=np.array(["g", "y"]))
    entry = {
        "file": "a.npz", "array": "images", "band": None, "bands": {"array": "filters"},
        "psf": {"stamp": {"array": "psfs"}}, "wcs": {"pixel_scale": SCALE, "ra": 10.0, "dec": 5.0},
        **AS_COUNTS,
    }  # fmt: skip
    field = described(tmp_path, entry)
    assert field.bands == ("g", "y")
    np.testing.assert_allclose(field.images[1].nanomaggies - field.images[0].nanomaggies, 0, atol=1e-5)
    widths = [np.sqrt(image.psf.mixture(0, 0).covariances[:, 0, 0]).max() for image in field]
    assert widths[1] > 1.4 * widths[0]
    assert field.images[0].wcs.all_pix2world((SHAPE[1] - 1) / 2, (SHAPE[0] - 1) / 2, 0)[0] == pytest.approx(
        10
    )


def test_a_table_with_one_image_per_row(counts, tmp_path):
    write(tmp_path, counts)
    (tmp_path / "images.csv").write_text(
        "file,band,unit,gain,zero_point,psf.moffat.fwhm,psf.gaussians.sigmas,psf.gaussians.weights\n"
        f"a.fits,g,adu,{GAIN},{ZERO_POINT},{FWHM},,\n"
        f'a.fits,r,adu,{GAIN},{ZERO_POINT},,"[0.4, 0.8]","[0.7, 0.3]"\n'
    )
    field = read_described(tmp_path / "images.csv")
    assert field.bands == ("g", "r")
    np.testing.assert_allclose(field.images[1].psf.mixture(0, 0).weights, [0.7, 0.3])
    np.testing.assert_allclose(field.images[1].psf.mixture(0, 0).covariances[0], 4 * np.eye(2))


BAD = {
    "an unknown key": ({"gian": 2}, "the key 'gian', expected did you mean 'gain'"),
    "no band": ({"band": None}, "band or bands: got neither"),
    "no file": ({"file": "b.fits"}, r"images\[0\]: file: got no file .*b.fits"),
    "no such HDU": ({"hdu": 3}, r"a.fits: got no HDU 3"),
    "no PSF": ({"psf": None}, r"images\[0\]: psf: got nothing, expected one of stamp, psfex, gaussians"),
    "a wing of all light": (
        {"psf": {"stamp": {"file": "a.fits", "wing": {"fraction": 1.5, "sigma": 3}}}},
        r"wing: fraction: got 1.5, expected a fraction",
    ),
    "two PSFs": ({"psf": {"moffat": {"fwhm": 1}, "stamp": "a.fits"}}, "psf: got keys moffat, stamp"),
    "a width of zero": ({"psf": {"moffat": {"fwhm": 0}}}, "moffat: fwhm: got 0, expected a finite number"),
    "a zero gain": ({"gain": 0}, "gain: got 0, expected a finite number above 0"),
    "a negative calibration": ({"zero_point": None, "calibration": -1.0}, "calibration: got -1.0"),
    "a calibration of text": ({"zero_point": [1, 2]}, "zero_point: got"),
    "both": ({"calibration": 1.0}, "calibration: got a zero_point too"),
    "an unknown unit": ({"unit": "furlong"}, "unit: got 'furlong', expected a unit of pixels"),
    "a unit that says otherwise": ({"unit": "uJy"}, "by the unit"),
    "no zero point": ({"zero_point": None}, "zero_point: got none, and pixels in adu"),
    "no gain": ({"gain": None}, "gain: got none, and pixels in adu"),
    "no exposure": ({"unit": "adu/s"}, "exposure: got none in"),
    "a mask without a meaning": ({"mask": {"file": "a.fits"}}, "good or bad: got neither"),
    "a noise without a kind": ({"noise": {"file": "a.fits"}}, "noise: got keys file, expected one of sigma"),
    "a sky of text": ({"sky": True}, "sky: got True"),
    "a sky above all pixels": ({"sky": 1e6}, "most pixels .* below the sky, expected .*sky_subtracted: true"),
    "a negative sky": ({"sky": -50.0, "read_noise": 0}, "electrons, expected above zero"),
    "flags that are words": ({"sky_subtracted": "perhaps"}, "sky_subtracted: got 'perhaps', expected true"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_with_a_description_is_said(what, counts, tmp_path):
    change, message = BAD[what]
    write(tmp_path, counts)
    with pytest.raises(DataError, match=message):
        described(tmp_path, AS_COUNTS | change)


def test_files_that_are_no_description(tmp_path):
    for text, message in (
        ("images: [", "line 1"), ("images: []", "images: got"), ("3", "expected a mapping"),
        ("images: [3]", r"images\[0\]: got 3"), ("image: []", "the key 'image', expected did you mean"),
    ):  # fmt: skip
        (tmp_path / "images.yaml").write_text(text)
        with pytest.raises(DataError, match=message):
            read_described(tmp_path / "images.yaml")
    with pytest.raises(DataError, match="FileNotFound"):
        read_described(tmp_path / "absent.yaml")


def test_images_elsewhere_on_the_sky_are_refused(counts, tmp_path):
    write(tmp_path, counts)
    fits.PrimaryHDU(counts, header(CRVAL1=151.0)).writeto(tmp_path / "b.fits")
    image = {"band": "r", "psf": {"moffat": {"fwhm": FWHM}}, **AS_COUNTS}
    text = {"images": [{"file": "a.fits", **image}, {"file": "b.fits", **image, "band": "g"}]}
    (tmp_path / "images.yaml").write_text(yaml.safe_dump(text))
    with pytest.raises(DataError, match=r"image 'g-b': got columns .*expected .*same sky"):
        read_described(tmp_path / "images.yaml")


@pytest.mark.parametrize("name", ["a.fits", "a.fits.gz", "a.npy"])
def test_truncated_files_are_named(name, counts, tmp_path):
    if name.endswith("npy"):
        np.save(tmp_path / name, counts)
    else:
        write(tmp_path, counts, name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=name):
        described(tmp_path, {"file": name, "wcs": {"pixel_scale": SCALE}, **AS_COUNTS})


def test_a_noise_that_gain_and_sky_do_not_explain_is_noted(counts, tmp_path):
    write(tmp_path, counts)
    assert "check gain and sky" not in described(tmp_path, AS_COUNTS).meta["notes"]
    assert "check gain and sky" in described(tmp_path, AS_COUNTS | {"gain": 20 * GAIN}).meta["notes"]


def test_a_sky_that_was_not_subtracted_is_noted(counts, tmp_path):
    write(tmp_path, counts)
    subtracted = {**AS_COUNTS, "sky": SKY, "sky_subtracted": True}
    assert "most pixels are above it by (sigma)" in described(tmp_path, subtracted).meta["notes"]
    write(tmp_path, counts - SKY)
    assert "notes" not in described(tmp_path, subtracted).meta


def test_a_width_in_arcsec_needs_square_pixels(counts, tmp_path):
    write(tmp_path, counts)
    card = {"wcs": None, **AS_COUNTS}
    with fits.open(tmp_path / "a.fits", mode="update") as hdus:
        for name in [key for key in hdus[0].header if key.startswith(("PC", "CD1_", "CD2_"))]:
            del hdus[0].header[name]
        hdus[0].header["CDELT1"], hdus[0].header["CDELT2"] = -2 * SCALE / 3600, SCALE / 3600
    with pytest.raises(DataError, match=r"psf: moffat in arcsec: got pixels of 0\.4 x 0\.2 arcsec"):
        described(tmp_path, card)
    psf = described(tmp_path, card | {"psf": {"moffat": {"fwhm_pixels": 4.5}}}).images[0].psf
    assert psf.stamp(0, 0).sum() == pytest.approx(1)
