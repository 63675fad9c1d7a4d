"""Files of strong lenses: HST, Euclid, the GIGA-Lens demo, and our own FITS."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning
from astropy.wcs.utils import proj_plane_pixel_scales
from jaxtyping import Bool
from regions import PixCoord, PixelRegion, Regions

from astrozoo._files import replacing
from astrozoo.data.lens_image import LensImage
from astrozoo.errors import DataError

__all__ = ["LensImage", "read", "read_euclid", "read_gigalens", "read_hst", "region_mask", "write"]

_NO_DATA = 1e7  # noise from which archives mean "no data here"
_PSF_LOST = 0.1  # share of the light that a PSF stamp may have lost: readers normalise it
_FORMAT = "ASTROZOO-LENS-1"


def read(path: str | Path, *, band: str = "VIS") -> LensImage:
    """A lens from any file or folder that this module knows, recognised by what is there.

    * a FITS file of :func:`write`;
    * a folder with ``image.fits``, ``noise_map.fits``, ``psf.fits``: :func:`read_hst`;
    * a folder, or file, of ``VIS_FLUX``, ``VIS_PSF``, ``VIS_RMS`` ...: ``band`` of :func:`read_euclid`;
    * a folder with ``demo.npy`` and ``psf.npy``: :func:`read_gigalens`.

    Raises:
        DataError: there is nothing there, or nothing of these.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(str(path), "no such file or folder", "a lens")
    if path.is_file():
        names = _extensions(path)
        if "VIS_FLUX" in names:
            return _of_band(read_euclid(path), band, path)
        return _read_own(path)
    if (path / "demo.npy").is_file():
        return read_gigalens(path)
    if _find(path, "image") is not None:
        return read_hst(path)
    if _euclid_file(path) is not None:
        return _of_band(read_euclid(path), band, path)
    raise DataError(
        str(path),
        f"a folder of {sorted(p.name for p in path.iterdir())[:6]}",
        "image.fits, noise_map.fits and psf.fits; or Euclid's extensions; or demo.npy and psf.npy",
    )


def write(lens: LensImage, path: str | Path) -> Path:
    """One FITS file that :func:`read` reads back exactly, written to a temporary name first.

    Raises:
        OutputError: if it cannot be written; what stood at ``path`` is then untouched.
    """
    path = Path(path)
    header = fits.Header()
    header["FORMAT"] = _FORMAT
    header["NAME"], header["BAND"], header["BUNIT"] = lens.name, lens.band, lens.unit
    header["PIXSCALE"] = (lens.pixel_scale, "[arcsec]")
    if lens.noise is None:
        header["BACKRMS"], header["EXPOSURE"] = lens.background_rms, lens.exposure
    planes = [fits.PrimaryHDU(lens.image, header), fits.ImageHDU(lens.psf, name="PSF")]
    if lens.noise is not None:
        planes.append(fits.ImageHDU(lens.noise, name="NOISE"))
    for what in ("mask", "arc"):
        if getattr(lens, what) is not None:
            planes.append(fits.ImageHDU(getattr(lens, what).astype(np.uint8), name=what.upper()))
    with replacing(path) as partial:
        fits.HDUList(planes).writeto(partial, overwrite=True)
    return path


def _read_own(path: Path) -> LensImage:
    with _opened(path) as planes:
        header = planes[0].header
        if header.get("FORMAT") != _FORMAT:
            got = f"FITS extensions {[plane.name for plane in planes]}"
            raise DataError(
                str(path), got, "a lens written by astrozoo, or Euclid's VIS_FLUX, VIS_PSF, VIS_RMS"
            )
        held: dict[str, Any] = {plane.name: plane.data for plane in planes[1:]}
        try:
            return LensImage(
                image=planes[0].data,
                psf=held["PSF"],
                pixel_scale=header["PIXSCALE"],
                noise=held.get("NOISE"),
                background_rms=header.get("BACKRMS"),
                exposure=header.get("EXPOSURE"),
                mask=held["MASK"].astype(bool),
                arc=held["ARC"].astype(bool) if "ARC" in held else None,
                unit=header["BUNIT"],
                band=header["BAND"],
                name=header["NAME"],
            )
        except KeyError as error:
            raise DataError(
                str(path), f"no keyword or extension {error}", "a lens written by astrozoo"
            ) from error


def read_hst(folder: str | Path, *, pixel_scale: float = 0.05, unit: str = "electron/s") -> LensImage:
    """A folder of ``image.fits``, ``noise_map.fits`` and ``psf.fits`` (each may be gzipped), e.g. SLACS.

    Noise of 1e7 or more means no data. A PSF stamp that lost up to a tenth of the light is normalised.
    ``arcmask.reg`` and ``mask.reg`` (DS9 regions), where there, are what their names say.

    Args:
        folder: the folder.
        pixel_scale: [arcsec], where the image's header has no WCS; the default is that of ACS drizzles.
        unit: of the image, where its header has no ``BUNIT``.

    Raises:
        DataError: a file is missing or is no image.
        InputError: they do not make a lens image.
    """
    folder = Path(folder)
    paths = {what: _find(folder, what) for what in ("image", "noise_map", "psf")}
    missing = [f"{what}.fits" for what, found in paths.items() if found is None]
    if missing:
        raise DataError(str(folder), f"no {', '.join(missing)}", "image.fits, noise_map.fits and psf.fits")
    arrays, header = {}, fits.Header()
    for what, found in paths.items():
        assert found is not None
        with _opened(found) as planes:
            plane = next((p for p in planes if p.data is not None and p.data.ndim == 2), None)
            if plane is None:
                raise DataError(str(found), "no 2-d image", f"the {what.replace('_', ' ')}")
            arrays[what] = plane.data.astype(float)
            header = plane.header if what == "image" else header
    mask = arrays["noise_map"] < _NO_DATA
    if arrays["noise_map"].shape != arrays["image"].shape:
        mask = np.ones(arrays["image"].shape, bool)  # LensImage names the mismatch
    elif (folder / "mask.reg").is_file():
        mask &= region_mask(folder / "mask.reg", mask.shape)
    return LensImage(
        image=arrays["image"],
        noise=arrays["noise_map"],
        psf=_normalised(arrays["psf"], str(paths["psf"])),
        pixel_scale=_scale_of(header) or pixel_scale,
        mask=mask,
        arc=region_mask(folder / "arcmask.reg", mask.shape) if (folder / "arcmask.reg").is_file() else None,
        unit=header.get("BUNIT", unit),
        band=str(header.get("FILTER", "")),
        name=folder.name,
    )


def read_euclid(path: str | Path) -> dict[str, LensImage]:
    """Euclid's multi-extension cutouts, ``<BAND>_FLUX``, ``_PSF`` and ``_RMS``, by band (VIS first).

    Fluxes are turned into microjansky by each band's ``MAGZERO``, so that bands can be compared. Where a
    ``cutout.fits`` stands beside the file, all bands are cut to the part of VIS that it holds, and
    ``cutout_likelihood_mask.reg`` and ``cutout_arcmask.reg`` (DS9 regions) are masks of that part.

    Args:
        path: the FITS file, or the folder that holds it.

    Raises:
        DataError: no such file, an extension or keyword is missing, or the cutout is not a part of VIS.
        InputError: an extension does not make a lens image.
    """
    path = Path(path)
    file = _euclid_file(path) if path.is_dir() else path
    if file is None:
        raise DataError(str(path), "no file with VIS_FLUX, VIS_PSF and VIS_RMS", "a Euclid cutout")
    box = (slice(None), slice(None))
    with _opened(file) as planes:
        bands = [plane.name.removesuffix("_FLUX") for plane in planes if plane.name.endswith("_FLUX")]
        if "VIS" not in bands:
            raise DataError(str(file), f"extensions {[p.name for p in planes]}", "<BAND>_FLUX, _PSF, _RMS")
        cutout = file.with_name("cutout.fits")
        if cutout.is_file():
            with _opened(cutout) as part:
                box = _locate(np.asarray(part[0].data, float), planes["VIS_FLUX"].data, str(cutout))
        bands.sort(key=lambda band: band != "VIS")
        found = {band: _euclid_band(planes, band, file, box) for band in bands}
    masks = {"mask": "cutout_likelihood_mask.reg", "arc": "cutout_arcmask.reg"}
    shape = found["VIS"].shape
    given = {
        what: region_mask(file.with_name(name), shape)
        for what, name in masks.items()
        if cutout.is_file() and file.with_name(name).is_file()
    }
    return {
        band: replace(lens, mask=lens.mask & given.get("mask", True), arc=given.get("arc"))
        for band, lens in found.items()
    }


def _euclid_band(planes: fits.HDUList, band: str, file: Path, box: tuple[slice, slice]) -> LensImage:
    names = [f"{band}_{what}" for what in ("FLUX", "RMS", "PSF")]
    missing = [name for name in names if name not in planes]
    if missing:
        raise DataError(str(file), f"no extension {', '.join(missing)}", "<BAND>_FLUX, _PSF and _RMS")
    flux, rms, psf = (planes[name].data.astype(float) for name in names)
    header = planes[names[0]].header
    scale, zero_point = _scale_of(header), header.get("MAGZERO")
    if scale is None or zero_point is None:
        raise DataError(f"{file}[{names[0]}]", "no WCS or no MAGZERO", "both")
    microjansky = 10 ** (0.4 * (23.9 - zero_point))  # per unit of the file: AB magnitudes
    return LensImage(
        image=flux[box] * microjansky,
        noise=rms[box] * microjansky,
        psf=_normalised(psf, f"{file}[{names[2]}]"),
        pixel_scale=scale,
        mask=rms[box] < _NO_DATA,
        unit="uJy",
        band=band,
        name=file.name.split(".")[0],
    )


def read_gigalens(folder: str | Path) -> LensImage:
    """The GIGA-Lens demo, ``demo.npy`` and ``psf.npy``: 0.065 arcsec per pixel, variance 0.2^2 + model / 100.

    Raises:
        DataError: a file is missing or is no array.

    References:
        Gu et al. 2022, ApJ 935, 49.
    """
    arrays = []
    for name in ("demo.npy", "psf.npy"):
        path = Path(folder) / name
        try:
            arrays.append(np.load(path, allow_pickle=False).astype(float))
        except (OSError, ValueError) as error:
            raise DataError(str(path), f"no array ({error})", "the GIGA-Lens demo") from error
    return LensImage(
        image=arrays[0],
        psf=arrays[1],
        pixel_scale=0.065,
        background_rms=0.2,
        exposure=100.0,
        name="gigalens demo",
    )


def region_mask(path: str | Path, shape: tuple[int, int]) -> Bool[np.ndarray, "y x"]:
    """True in the regions of a DS9 file in image coordinates.

    A region marked as excluded, and one whose centre lies in a larger one, is a hole.

    Raises:
        DataError: no such file, none that ``regions`` can read, or regions in celestial coordinates.
    """
    try:
        found = Regions.read(str(path), format="ds9")
    except (OSError, ValueError) as error:
        raise DataError(str(path), f"unreadable ({error})", "DS9 regions") from error
    if not len(found) or not all(isinstance(region, PixelRegion) for region in found):
        raise DataError(str(path), [type(region).__name__ for region in found], "DS9 regions, `image` ones")
    mask = np.zeros(shape, bool)
    larger: list[Any] = []
    for region in sorted(found, key=lambda region: -region.area):
        inside = region.to_mask(mode="center").to_image(shape)
        if inside is None:
            continue  # outside the image
        row, column = region.bounding_box.center
        hole = any(outer.contains(PixCoord(column, row)) for outer in larger)
        if hole or not region.meta.get("include", True):
            mask &= ~inside.astype(bool)
        else:
            mask |= inside.astype(bool)
        larger.append(region)
    return mask


def _opened(path: Path) -> fits.HDUList:
    try:
        return fits.open(path, memmap=False)
    except OSError as error:
        raise DataError(str(path), f"unreadable ({error})", "a FITS file") from error


def _extensions(path: Path) -> list[str]:
    with _opened(path) as planes:
        return [plane.name for plane in planes]


def _find(folder: Path, stem: str) -> Path | None:
    return next((p for end in (".fits", ".fits.gz") if (p := folder / f"{stem}{end}").is_file()), None)


def _euclid_file(folder: Path) -> Path | None:
    files = sorted([*folder.glob("*.fits"), *folder.glob("*.fits.gz")])
    return next((path for path in files if "VIS_FLUX" in _extensions(path)), None)


def _of_band(bands: dict[str, LensImage], band: str, path: Path) -> LensImage:
    if band not in bands:
        raise DataError(str(path), f"band {band!r}", f"one of {', '.join(bands)}")
    return bands[band]


def _scale_of(header: fits.Header) -> float | None:
    """Pixel scale [arcsec] of a header with a celestial WCS; None without one."""
    if "CTYPE1" not in header:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)  # dates are put into today's form
        return float(np.mean(proj_plane_pixel_scales(WCS(header, naxis=2).celestial))) * 3600


def _normalised(psf: np.ndarray, what: str) -> np.ndarray:
    total = psf.sum()
    if not abs(total - 1) <= _PSF_LOST:
        raise DataError(what, f"a PSF that sums to {total:.4g}", f"1 within {_PSF_LOST:g}")
    return psf / total


def _locate(part: np.ndarray, whole: np.ndarray, what: str) -> tuple[slice, slice]:
    """Where in ``whole`` its copy ``part`` lies, by its brightest pixel."""
    peak = np.unravel_index(part.argmax(), part.shape)
    for y, x in np.argwhere(np.isclose(whole, part.max(), rtol=1e-6)) - peak:
        box = (slice(y, y + part.shape[0]), slice(x, x + part.shape[1]))
        if min(y, x) >= 0 and whole[box].shape == part.shape and np.allclose(whole[box], part, rtol=1e-5):
            return box
    raise DataError(what, f"{part.shape} pixels that are not in VIS_FLUX", "a part of it")
