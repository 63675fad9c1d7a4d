import bz2
import gzip

import numpy as np
import pytest
from astropy.io import fits

from astrozoo.data.sdss import read_catalog, read_field, read_stamps
from astrozoo.errors import DataError, InputError

SHAPE, GAIN, DARK = (40, 48), np.array([1.6, 3.9, 4.7, 5.2, 4.8]), np.array([9.0, 1.5, 1.0, 6.0, 1.0])
NMGY, SKY = 0.005, 150.0
PLANES = ("INTERP", "SATUR", "NOTCHECKED", "OBJECT", "BRIGHTOBJECT", "BINOBJECT", "CATOBJECT", "SUBTRACTED",
          "GHOST", "CR")  # fmt: skip


def header(ra=150.0):
    cards = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": ra, "CRVAL2": 0.0, "CRPIX1": 24.0}
    cards |= {"CRPIX2": 20.0, "CD1_1": 0.0, "CD1_2": 1.1e-4, "CD2_1": 1.1e-4, "CD2_2": 0.0}
    return fits.Header(cards | {"RADECSYS": "ICRS"})


def write_frame(folder, band, flux=None, head=None, calibration=None):
    flux = np.zeros(SHAPE) if flux is None else flux
    calibration = np.full(SHAPE[1], NMGY) if calibration is None else calibration
    coarse = SKY + np.arange(6.0)[:, None] * np.ones(8)
    columns = [
        fits.Column("ALLSKY", "48E", dim="(8, 6)", array=coarse[None]),
        fits.Column("XINTERP", f"{SHAPE[1]}E", array=np.linspace(0, 7, SHAPE[1])[None]),
        fits.Column("YINTERP", f"{SHAPE[0]}E", array=np.linspace(0, 5, SHAPE[0])[None]),
    ]
    hdus = [fits.PrimaryHDU(flux.astype(np.float32), header=head or header())]
    hdus += [fits.ImageHDU(calibration.astype(np.float32)), fits.BinTableHDU.from_columns(columns)]
    fits.HDUList(hdus).writeto(folder / f"frame-{band}-000042-3-0007.fits", overwrite=True)


def write_masks(folder, band, planes):
    """``planes``: {plane: [(row, first column, last column), ...]}."""
    primary = fits.PrimaryHDU()
    primary.header["MASKROWS"], primary.header["MASKCOLS"] = SHAPE
    hdus = [primary]
    for plane in PLANES:
        spans = np.empty(len(planes.get(plane, ())), dtype=object)
        for k, span in enumerate(planes.get(plane, ())):
            spans[k] = np.frombuffer(np.array(span, ">i2").tobytes(), np.uint8)
        hdus.append(fits.BinTableHDU.from_columns([fits.Column("s", "PB()", array=spans)]))
    names = np.array([f"S_MASK_{plane}" for plane in PLANES])
    columns = [fits.Column("defname", "31A", array=np.repeat("S_MASKTYPE", len(PLANES)))]
    columns += [
        fits.Column("attr", "31A", array=names),
        fits.Column("value", "J", array=np.arange(len(PLANES))),
    ]
    fits.HDUList([*hdus, fits.BinTableHDU.from_columns(columns)]).writeto(
        folder / f"fpM-000042-{band}3-0007.fit", overwrite=True
    )


def write_psf(folder, gain=GAIN):
    y, x = np.mgrid[:11, :11] - 5
    eigen = np.exp(-(x**2 + y**2) / 4.0)
    hdus = [fits.PrimaryHDU()]
    for _ in range(5):
        images = np.empty(1, dtype=object)
        images[0] = eigen.ravel().astype(np.float32)
        coefficients = np.full((1, 5, 5), 9.0)  # beyond nrow_b, ncol_b: to be ignored
        coefficients[0, 0, 0] = 1.0
        columns = [fits.Column(name, "J", array=[1]) for name in ("nrow_b", "ncol_b")]
        columns += [fits.Column(name, "J", array=[11]) for name in ("RNROW", "RNCOL")]
        columns += [
            fits.Column("c", "25E", dim="(5, 5)", array=coefficients),
            fits.Column("RROWS", "PE()", array=images),
        ]
        hdus.append(fits.BinTableHDU.from_columns(columns))
    columns = [
        fits.Column("gain", "5E", array=gain[None]),
        fits.Column("dark_variance", "5E", array=DARK[None]),
    ]
    hdus.append(fits.BinTableHDU.from_columns(columns))
    fits.HDUList(hdus).writeto(folder / "psField-000042-3-0007.fit", overwrite=True)


@pytest.fixture
def folder(tmp_path):
    """A tiny SDSS field in g and r."""
    for band in "gr":
        write_frame(tmp_path, band)
        write_masks(tmp_path, band, {})
    write_psf(tmp_path)
    return tmp_path


def test_electrons_calibration_and_dark_variance(folder):
    flux = np.zeros(SHAPE)
    flux[10, 20] = 3.0
    write_frame(folder, "r", flux, calibration=np.linspace(0.004, 0.006, SHAPE[1]))
    field = read_field(folder, bands="gr")
    image = field.images[1]
    assert field.bands == ("g", "r")
    assert field.name == "sdss-000042-3-0007"
    noise = 1.0 * 4.7**2
    np.testing.assert_allclose(image.calibration[0], 4.7 / np.linspace(0.004, 0.006, SHAPE[1]), rtol=1e-6)
    np.testing.assert_allclose(image.sky[:, 5], (SKY + np.linspace(0, 5, SHAPE[0])) * 4.7 + noise, rtol=1e-6)
    np.testing.assert_allclose(image.nanomaggies, flux, atol=1e-9)
    assert image.counts[10, 20] == pytest.approx(image.sky[10, 20] + 3 * image.calibration[10, 20])
    assert image.valid.all()
    stamp = image.psf.stamp(3, 4)
    assert stamp.sum() == pytest.approx(1)
    assert stamp[5, 6] / stamp[5, 5] == pytest.approx(np.exp(-0.25))


def test_masks(folder):
    write_masks(folder, "r", {"SATUR": [(5, 7, 9)], "CR": [(1, 2, 2), (1, 4, 4)], "OBJECT": [(30, 0, 47)]})
    image = read_field(folder, bands="r").images[0]
    assert {(int(y), int(x)) for y, x in np.argwhere(~image.valid)} == {
        (5, 7),
        (5, 8),
        (5, 9),
        (1, 2),
        (1, 4),
    }
    assert {(int(y), int(x)) for y, x in np.argwhere(image.saturated)} == {(5, 7), (5, 8), (5, 9)}


def test_broken_pixels_are_masked_and_finite(folder):
    flux = np.zeros(SHAPE)
    flux[3, 4], flux[5, 6] = np.nan, -5.0
    write_frame(folder, "g", flux)
    image = read_field(folder, bands="g").images[0]
    assert {(int(y), int(x)) for y, x in np.argwhere(~image.valid)} == {(3, 4), (5, 6)}
    assert np.isfinite(image.counts).all()
    assert (image.counts >= 0).all()


@pytest.mark.parametrize(
    "missing", ["frame-r-000042-3-0007.fits", "fpM-000042-r3-0007.fit", "psField-000042-3-0007.fit"]
)
def test_a_missing_file_is_named(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(DataError, match=missing.rsplit(".", 1)[0]):
        read_field(folder, bands="gr")


def test_masks_can_be_done_without(folder):
    (folder / "fpM-000042-r3-0007.fit").unlink()
    assert read_field(folder, bands="r", masks=False).meta["masks"] == "False"


@pytest.mark.parametrize(
    "name", ["frame-r-000042-3-0007.fits", "psField-000042-3-0007.fit", "fpM-000042-r3-0007.fit"]
)
@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2"])
def test_a_truncated_file_is_named(folder, name, suffix):
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if suffix:
        content = {".gz": gzip, ".bz2": bz2}[suffix].compress(content)
    name += suffix
    (folder / name).write_bytes(content[: int(0.6 * len(content))])
    with pytest.raises(DataError, match=name):
        read_field(folder, bands="r")


def test_a_frame_without_calibration(folder):
    path = folder / "frame-r-000042-3-0007.fits"
    with fits.open(path) as hdus:
        fits.HDUList([hdus[0].copy()]).writeto(folder / "short.fits")
    (folder / "short.fits").rename(path)
    with pytest.raises(DataError, match=r"frame-r.*1 HDUs"):
        read_field(folder, bands="r")


def test_a_frame_that_is_not_in_nanomaggies(folder):
    head = header()
    head["BUNIT"] = "DN"
    write_frame(folder, "r", head=head)
    with pytest.raises(DataError, match=r"frame-r.*pixels in 'DN', expected .*nanomaggies"):
        read_field(folder, bands="r")


@pytest.mark.parametrize("bad", [np.nan, 0.0, -1.0])
def test_a_calibration_that_makes_no_sense(folder, bad):
    write_frame(folder, "r", calibration=np.where(np.arange(SHAPE[1]) == 3, bad, NMGY))
    with pytest.raises(DataError, match=r"frame-r.*calibration"):
        read_field(folder, bands="r")


def test_a_gain_that_makes_no_sense(folder):
    write_psf(folder, gain=-GAIN)
    with pytest.raises(DataError, match=r"psField.*gain"):
        read_field(folder, bands="r")


def test_a_wcs_without_sky(folder):
    write_frame(folder, "r", head=fits.Header({"CTYPE1": "LINEAR", "CTYPE2": "LINEAR"}))
    with pytest.raises(DataError, match=r"frame-r.*celestial"):
        read_field(folder, bands="r")


def test_bands_that_do_not_overlap(folder):
    write_frame(folder, "r", head=header(ra=150.5))
    with pytest.raises(DataError, match=r"frame-r.*same sky"):
        read_field(folder, bands="gr")


@pytest.mark.parametrize(
    "cards",
    [
        {"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-3, "B_0_2": 1e-3,
         "CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP"},
        {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_1": 1.01, "PV2_1": 1.01},
        {"LONPOLE": 150.0},
    ],
    ids=["SIP", "TPV", "LONPOLE"],
)  # fmt: skip
def test_all_wcs_cards_of_a_frame_count(folder, cards):
    plain = read_field(folder, bands="r").images[0].wcs
    write_frame(folder, "r", head=fits.Header({**header(), **cards}))
    wcs = read_field(folder, bands="r").images[0].wcs
    far = np.array([SHAPE[1] - 1.0, SHAPE[0] - 1.0])
    moved = np.hypot(*(np.subtract(wcs.all_pix2world(*far, 0), plain.all_pix2world(*far, 0)))) * 3600
    assert moved > 0.1
    crop = read_field(folder, bands="r").images[0].crop(slice(4, None), slice(3, None))
    np.testing.assert_allclose(crop.wcs.all_pix2world(*(far - [3, 4]), 0), wcs.all_pix2world(*far, 0))


def test_choices(folder):
    with pytest.raises(InputError, match="bands"):
        read_field(folder, bands="gx")
    with pytest.raises(DataError, match="run 43"):
        read_field(folder, run=43, bands="g")
    with pytest.raises(DataError, match="no such folder"):
        read_field(folder / "absent")
    (folder / "frame-g-000042-3-0008.fits").write_bytes(b"")
    with pytest.raises(InputError, match="several"):
        read_field(folder, bands="g")
    assert read_field(folder, field=7, bands="g").meta["field"] == "7"


def test_the_real_field(sdss_folder):
    image = read_field(sdss_folder, bands="r").images[0]
    assert image.shape == (1489, 2048)
    assert 0.001 < (~image.valid).mean() < 0.05
    assert image.saturated.sum() > 1000
    sparse = (slice(300, 556), slice(1400, 1656))
    residual = ((image.counts - image.sky) / np.sqrt(image.sky))[sparse]
    spread = 1.4826 * np.median(np.abs(residual - np.median(residual)))
    assert spread == pytest.approx(1, abs=0.05)  # the noise is that of the calibrated electrons


def test_stamps_agree_with_their_inverse_variance(data_root):
    folder = data_root / "sdss" / "stripe82_stamps"
    if not folder.is_dir():
        pytest.skip(f"no stamps at {folder}")
    field = read_stamps(folder, "5.0073-0.0739", bands="gr")
    assert len(field.images) == 14
    with fits.open(folder / "stamp-r-5.0073-0.0739-epochs0-6.fits.gz") as hdus:
        for epoch, image in enumerate(field.images[7:]):
            published = hdus[2 * epoch + 1].data.astype(float)
            implied = image.counts / image.calibration**2
            np.testing.assert_array_equal(image.valid, published > 0)
            assert np.median((implied * published)[image.valid]) == pytest.approx(1, abs=0.015)
            assert image.psf.mixture(0, 0).weights.sum() == pytest.approx(1)
    with pytest.raises(DataError, match="stamp-g-nowhere"):
        read_stamps(folder, "nowhere", bands="g")


def test_catalogues_share_columns(data_root):
    folder = data_root / "sdss" / "catalogs"
    if not folder.is_dir():
        pytest.skip(f"no catalogues at {folder}")
    photo, coadd = (
        read_catalog(folder / "photoObj-003900-6-0269.fits.gz"),
        read_catalog(folder / "coadd_for_3325_5_110.fit"),
    )
    assert photo.colnames == coadd.colnames
    assert (len(photo), len(coadd)) == (981, 657)
    assert photo["is_star"].sum() == 357
    # fainter than the asinh softening's zero point: flux below zero
    raw = fits.getdata(folder / "coadd_for_3325_5_110.fit")
    np.testing.assert_array_equal(coadd["psfflux_g"] < 0, raw["psfmag_g"] > 28.416)
    bright = np.argmin(raw["psfmag_r"])
    assert coadd["psfflux_r"][bright] == pytest.approx(
        10 ** (0.4 * (22.5 - raw["psfmag_r"][bright])), rel=1e-3
    )


def test_a_file_that_is_no_catalogue(tmp_path):
    fits.PrimaryHDU(np.zeros((3, 3))).writeto(tmp_path / "image.fits")
    with pytest.raises(DataError, match="no table"):
        read_catalog(tmp_path / "image.fits")
    fits.BinTableHDU.from_columns([fits.Column("ra", "D", array=[1.0])]).writeto(tmp_path / "half.fits")
    with pytest.raises(DataError, match="columns ra and dec"):
        read_catalog(tmp_path / "half.fits")
    with pytest.raises(DataError, match="no such file"):
        read_catalog(tmp_path / "absent.fits")
