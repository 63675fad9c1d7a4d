from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from astrozoo.data import lenses
from astrozoo.data.lens_image import LensImage
from astrozoo.errors import DataError, InputError, OutputError


def _psf(size: int = 5) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - size // 2
    psf = np.exp(-(x**2 + y**2) / 2.0)
    return psf / psf.sum()


def _lens(**other: object) -> LensImage:
    rng = np.random.default_rng(0)
    given = {
        "image": rng.normal(size=(11, 13)),
        "psf": _psf(),
        "pixel_scale": 0.1,
        "noise": np.ones((11, 13)),
    }
    return LensImage(**{**given, **other})


def _with(array: np.ndarray, value: float) -> np.ndarray:
    array = array.astype(float).copy()
    array[2, 3] = value
    return array


ONES = np.ones((11, 13))
BAD = {
    "no psf": ({"psf": None}, "psf"),
    "even psf": ({"psf": np.ones((4, 4)) / 16}, "odd"),
    "oblong psf": ({"psf": np.ones((3, 5)) / 15}, "square"),
    "large psf": ({"psf": np.ones((15, 15)) / 225}, "no larger"),
    "psf of sum 2": ({"psf": 2 * _psf()}, "sum of 2"),
    "psf with NaN": ({"psf": np.full((3, 3), np.nan)}, "not finite"),
    "no noise": ({"noise": None}, "neither"),
    "two noises": ({"background_rms": 1.0, "exposure": 1.0}, "both"),
    "half a noise": ({"noise": None, "background_rms": 1.0}, "exposure"),
    "negative background": ({"noise": None, "background_rms": -1.0, "exposure": 1.0}, "background_rms"),
    "noise of 0": ({"noise": _with(ONES, 0.0)}, "1 unmasked"),
    "noise below 0": ({"noise": -ONES}, "143 unmasked"),
    "noise of NaN": ({"noise": _with(ONES, np.nan)}, "1 unmasked"),
    "noise shape": ({"noise": np.ones((11, 12))}, "noise: got shape"),
    "mask shape": ({"mask": np.ones((13, 11), bool)}, "mask: got shape"),
    "mask of numbers": ({"mask": ONES}, "booleans"),
    "mask of nothing": ({"mask": np.zeros((11, 13), bool)}, "no pixel"),
    "arc shape": ({"arc": np.ones((3, 3), bool)}, "arc: got shape"),
    "image with NaN": ({"image": _with(ONES, np.nan)}, "1 unmasked pixels that are not finite"),
    "image of 3 axes": ({"image": np.ones((2, 3, 4))}, "2-d"),
    "no image": ({"image": None}, "image"),
    "image of words": ({"image": "lens.fits"}, "image"),
    "pixel scale": ({"pixel_scale": 0.0}, "pixel_scale"),
    "pixel scale NaN": ({"pixel_scale": float("nan")}, "pixel_scale"),
    "unit": ({"unit": "furlong per pint"}, "unit"),
}


@pytest.mark.parametrize(("wrong", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_named(wrong: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        _lens(**{"name": "J1430", **wrong})
    assert "J1430" in str(raised.value)


def test_masked_pixels_may_hold_anything_and_are_made_harmless() -> None:
    mask = np.ones((11, 13), bool)
    mask[2, 3] = False
    lens = _lens(image=_with(ONES, np.nan), noise=_with(ONES, -1.0), mask=mask)
    assert lens.image[2, 3] == 0
    assert lens.noise[2, 3] == 1
    assert _lens(noise=_with(ONES, 1e8)).noise[2, 3] == 1e8


def test_noise_of_the_model() -> None:
    lens = _lens(noise=None, background_rms=0.2, exposure=100.0)
    model = np.full((11, 13), 5.0)
    np.testing.assert_allclose(lens.sigma(model) ** 2, 0.2**2 + 5 / 100)
    np.testing.assert_allclose(lens.sigma(-model), 0.2)
    np.testing.assert_allclose(lens.sigma() ** 2, 0.04 + np.maximum(lens.image, 0) / 100)


def test_coordinates_have_their_origin_in_the_middle() -> None:
    x, y = _lens().coordinates()
    assert (x[5, 6], y[5, 6]) == (0, 0)
    assert (x[5, 7], y[6, 6]) == pytest.approx((0.1, 0.1))
    assert _lens().extent == pytest.approx((-0.65, 0.65, -0.55, 0.55))


def test_crop_and_trim() -> None:
    lens = _lens(arc=ONES > 0)
    cut = lens.crop(7, centre=(5, 8))
    np.testing.assert_array_equal(cut.image, lens.image[2:9, 5:12])
    assert cut.arc.shape == cut.noise.shape == (7, 7)
    assert lens.trim_psf(3).psf.sum() == pytest.approx(1)
    with pytest.raises(InputError, match="crop"):
        lens.crop(9, centre=(2, 2))
    with pytest.raises(InputError, match="no larger"):
        lens.crop(3)
    with pytest.raises(InputError, match="psf size"):
        lens.trim_psf(4)


@pytest.mark.parametrize("noise", [{}, {"noise": None, "background_rms": 0.2, "exposure": 100.0}])
def test_written_and_read_back(tmp_path: Path, noise: dict) -> None:
    mask = np.random.default_rng(1).random((11, 13)) > 0.2
    lens = _lens(mask=mask, arc=~mask, unit="uJy", band="VIS", name="a lens", **noise)
    again = lenses.read(lenses.write(lens, tmp_path / "lens.fits"))
    for what in ("image", "psf", "mask", "arc"):
        np.testing.assert_array_equal(getattr(again, what), getattr(lens, what))
    np.testing.assert_array_equal(again.sigma(), lens.sigma())
    for what in ("pixel_scale", "unit", "band", "name", "background_rms", "exposure"):
        assert getattr(again, what) == getattr(lens, what)
    assert [p.name for p in tmp_path.iterdir()] == ["lens.fits"]


def test_unwritable_is_said(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        lenses.write(_lens(), tmp_path / "nowhere" / "lens.fits")


WCS = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CDELT1": -0.05 / 3600, "CDELT2": 0.05 / 3600}


def _hst(
    folder: Path, names: tuple[str, str, str] = ("image", "noise_map", "psf"), **planes: np.ndarray
) -> Path:
    """A folder of three files, called as given."""
    given = {"image": np.ones((21, 21)), "noise_map": _with(np.ones((21, 21)), 1e8), "psf": 0.95 * _psf()}
    for name, (what, data) in zip(names, (given | planes).items(), strict=True):
        header = fits.Header(WCS if what == "image" else {})
        fits.writeto(folder / f"{name}.fits.gz", data, header)
    return folder


def test_folder_of_image_noise_and_psf(tmp_path: Path) -> None:
    (tmp_path / "arcmask.reg").write_text("image\ncircle(11,11,8)\ncircle(11,11,4)\n")
    lens = lenses.read(_hst(tmp_path))
    assert not lens.mask[2, 3]
    assert lens.mask.sum() == 21 * 21 - 1
    assert lens.psf.sum() == pytest.approx(1)
    assert lens.arc[10, 10] == lens.arc[0, 0] == False  # noqa: E712
    assert lens.arc[10, 16]
    assert lens.pixel_scale == pytest.approx(0.05)
    assert (lens.unit, lens.name, lens.provenance["pixel scale"]) == ("", tmp_path.name, "WCS")


def test_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a folder of"):
        lenses.read(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        lenses.read(tmp_path / "nothing")
    fits.writeto(tmp_path / "image.fits", np.ones((5, 5)))
    with pytest.raises(DataError, match=r"no psf among image.fits\[0\].*--psf"):
        lenses.read(tmp_path)
    (tmp_path / "text.fits").write_text("SIMPLE, not at all")
    with pytest.raises(DataError, match=r"text.fits.*complete FITS file"):
        lenses.read(tmp_path / "text.fits")


def test_noise_map_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"noise noise_map.fits.gz\[0\]: got shape"):
        lenses.read(_hst(tmp_path, noise_map=np.ones((20, 21))))


def _euclid(path: Path, bands: tuple[str, ...] = ("NIR_Y", "VIS"), **header: float) -> Path:
    planes = [fits.PrimaryHDU()]
    rng = np.random.default_rng(3)
    for band in bands:
        flux = fits.ImageHDU(rng.normal(size=(40, 40)).astype(np.float32), name=f"{band}_FLUX")
        wcs = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CDELT1": -0.1 / 3600, "CDELT2": 0.1 / 3600}
        flux.header.update({**wcs, "MAGZERO": 23.9 if band == "VIS" else 26.4, **header})
        rms = _with(np.full((40, 40), 0.1), 1e16).astype(np.float32)
        planes += [flux, fits.ImageHDU(_psf(), name=f"{band}_PSF"), fits.ImageHDU(rms, name=f"{band}_RMS")]
    fits.HDUList(planes).writeto(path)
    return path


def test_euclid_bands_in_microjansky_cut_and_masked(tmp_path: Path) -> None:
    file = _euclid(tmp_path / "euclid.fits")
    assert lenses.bands_of(file) == ["VIS", "NIR_Y"]
    whole = {band: lenses.read(file, band=band) for band in ("VIS", "NIR_Y")}
    assert whole["VIS"].pixel_scale == pytest.approx(0.1)
    with fits.open(file) as planes:
        np.testing.assert_allclose(whole["NIR_Y"].image, planes["NIR_Y_FLUX"].data / 10, rtol=1e-6)
    fits.writeto(tmp_path / "cutout.fits", whole["VIS"].image[5:25, 9:29])
    (tmp_path / "cutout_likelihood_mask.reg").write_text("image\ncircle(10,10,7)\n-circle(10,10,2)\n")
    cut = {band: lenses.read(tmp_path, band=band) for band in ("VIS", "NIR_Y")}
    np.testing.assert_array_equal(cut["NIR_Y"].image, whole["NIR_Y"].image[5:25, 9:29])
    y, x = np.mgrid[:20, :20] - 9
    distance = np.hypot(x, y)
    np.testing.assert_array_equal(cut["VIS"].mask, (distance < 7) & (distance >= 2))
    assert cut["VIS"].arc is None
    assert lenses.read(tmp_path).band == "VIS"
    with pytest.raises(DataError, match="one of VIS, NIR_Y"):
        lenses.read(file, band="NIR_K")


def test_a_cutout_that_is_no_part_of_the_image_is_refused(tmp_path: Path) -> None:
    _euclid(tmp_path / "b.fits")
    fits.writeto(tmp_path / "cutout.fits", np.ones((4, 4)))
    with pytest.raises(DataError, match="not in the image"):
        lenses.read(tmp_path)


def test_regions_that_cannot_be_masks(tmp_path: Path) -> None:
    (tmp_path / "sky.reg").write_text("icrs\ncircle(10.0,11.0,2.0)\n")
    with pytest.raises(DataError, match="CircleSkyRegion"):
        lenses.region_mask(tmp_path / "sky.reg", (20, 20))
    with pytest.raises(DataError, match="unreadable"):
        lenses.region_mask(tmp_path / "none.reg", (20, 20))


@pytest.fixture(scope="module")
def strong_lens(data_root: Path) -> Path:
    folder = data_root / "strong_lens"
    if not folder.is_dir():
        pytest.skip(f"no lenses at {folder}")
    return folder


def test_slacs(strong_lens: Path) -> None:
    with pytest.raises(DataError, match="--pixel-scale"):
        lenses.read(strong_lens / "slacs1430+4105")
    lens = lenses.read(strong_lens / "slacs1430+4105", pixel_scale=0.05)
    assert lens.shape == (281, 281)
    assert (~lens.mask).sum() == 14
    assert np.abs(lens.image[lens.mask] / lens.noise[lens.mask]).max() > 50


def test_euclid(strong_lens: Path) -> None:
    folder = strong_lens / "euclid_q1_102020532"
    bands = {band: lenses.read(folder, band=band) for band in lenses.bands_of(folder)}
    assert sorted(bands) == ["NIR_H", "NIR_J", "NIR_Y", "VIS"]
    vis = bands["VIS"]
    assert vis.shape == (60, 60)
    x, y = vis.coordinates()
    assert np.hypot(x, y)[vis.mask].max() < 2.9
    arc = (vis.image / vis.sigma())[vis.arc]
    assert np.median(arc) > 3
    assert not vis.arc[29, 29]
    for lens in bands.values():
        assert np.hypot(*(c.ravel()[lens.image.argmax()] for c in vis.coordinates())) < 0.2  # two pixels


def test_gigalens(strong_lens: Path) -> None:
    lens = lenses.read(strong_lens / "gigalens_demo")
    assert (lens.shape, lens.psf.shape, lens.pixel_scale) == ((60, 60), (13, 13), 0.065)
    assert lens.sigma(np.zeros((60, 60))).max() == 0.2
