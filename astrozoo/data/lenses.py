"""Readers of strong lenses (HST, Euclid, the GIGA-Lens demo), and a FITS format that astrozoo writes."""

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

_NO_DATA = 1e7
"""[unit of the image] Pixels with this much noise or more are masked: archives mark missing data so."""
_PSF_LOST = 0.1
"""Greatest difference of a PSF's sum from 1: the readers normalise such a stamp and reject any other."""
_FORMAT = "ASTROZOO-LENS-1"
"""Value of the FORMAT keyword in files of :func:`write`."""


def read(path: str | Path, *, band: str = "VIS") -> LensImage:
    """A lens from any file or folder that this module can read. The contents decide the format.

    * a FITS file of :func:`write`;
    * a folder with ``image.fits``, ``noise_map.fits``, ``psf.fits``: :func:`read_hst`;
    * a folder, or file, of ``VIS_FLUX``, ``VIS_PSF``, ``VIS_RMS`` ...: ``band`` of :func:`read_euclid`;
    * a folder with ``demo.npy`` and ``psf.npy``: :func:`read_gigalens`.

    Raises:
        DataError: the path does not exist, or holds none of these formats.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(str(path), "no such file or folder", "a lens")
    if path.is_file():
        names = _extensions(path)
        if "VIS_FLUX" in names:
            return _of_band(read_euclid(path), band, path)
        return _read_astrozoo(path)
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
    """Write one FITS file that :func:`read` reads back exactly. It is written under a temporary name first.

    Raises:
        OutputError: if it cannot be written. A file already at ``path`` is then left as it was.
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


def _read_astrozoo(path: Path) -> LensImage:
    with _opened(path) as planes:
        header = planes[0].header
        if header.get("FORMAT") != _FORMAT:
            got = f"FITS extensions {[plane.name for plane in planes]}"
            raise DataError(
                str(path), got, "a lens written by astrozoo, or Euclid's VIS_FLUX, VIS_PSF, VIS_RMS"
            )
        arrays: dict[str, Any] = {plane.name: plane.data for plane in planes[1:]}
        try:
            return LensImage(
                image=planes[0].data,
                psf=arrays["PSF"],
                pixel_scale=header["PIXSCALE"],
                noise=arrays.get("NOISE"),
                background_rms=header.get("BACKRMS"),
                exposure=header.get("EXPOSURE"),
                mask=arrays["MASK"].astype(bool),
                arc=arrays["ARC"].astype(bool) if "ARC" in arrays else None,
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
    Two DS9 region files are optional: ``arcmask.reg`` marks the arcs, ``mask.reg`` the pixels to use.

    Args:
        folder: the folder.
        pixel_scale: used if the image's header has no WCS [arcsec]. The default is that of drizzled ACS.
        unit: of the image, used if its header has no ``BUNIT``.

    Raises:
        DataError: a file is missing or is not an image.
        InputError: the files do not make a valid lens image.
    """
    folder = Path(folder)
    paths = {what: _find(folder, what) for what in ("image", "noise_map", "psf")}
    missing = [f"{what}.fits" for what, path in paths.items() if path is None]
    if missing:
        raise DataError(str(folder), f"no {', '.join(missing)}", "image.fits, noise_map.fits and psf.fits")
    arrays, header = {}, fits.Header()
    for what, path in paths.items():
        assert path is not None
        with _opened(path) as planes:
            plane = next((p for p in planes if p.data is not None and p.data.ndim == 2), None)
            if plane is None:
                raise DataError(str(path), "no 2-d image", f"the {what.replace('_', ' ')}")
            arrays[what] = plane.data.astype(float)
            header = plane.header if what == "image" else header
    mask = arrays["noise_map"] < _NO_DATA
    if arrays["noise_map"].shape != arrays["image"].shape:
        mask = np.ones(arrays["image"].shape, bool)  # LensImage then raises the error about the shapes
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

    Fluxes are converted to microjansky with each band's ``MAGZERO``, so that bands can be compared. If the
    same folder has a ``cutout.fits``, which is a part of the VIS image, all bands are cut to that part. The
    DS9 regions ``cutout_likelihood_mask.reg`` and ``cutout_arcmask.reg`` are then the masks of that part.

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
        lenses = {band: _euclid_band(planes, band, file, box) for band in bands}
    masks = {"mask": "cutout_likelihood_mask.reg", "arc": "cutout_arcmask.reg"}
    shape = lenses["VIS"].shape
    region_masks = {
        what: region_mask(file.with_name(name), shape)
        for what, name in masks.items()
        if cutout.is_file() and file.with_name(name).is_file()
    }
    return {
        band: replace(lens, mask=lens.mask & region_masks.get("mask", True), arc=region_masks.get("arc"))
        for band, lens in lenses.items()
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
    microjansky = 10 ** (
        0.4 * (23.9 - zero_point)
    )  # flux of one unit of the file; 23.9 is the AB zero point of uJy
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
    """The GIGA-Lens demo, a folder of ``demo.npy`` and ``psf.npy``.

    Pixels are 0.065 arcsec wide. The variance of a pixel is 0.2^2 + model / 100.

    Raises:
        DataError: a file is missing or is not an array.

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

    A region is a hole if it is marked as excluded, or if its centre lies in a larger region.

    Raises:
        DataError: the file does not exist, is not readable as regions, or is in celestial coordinates.
    """
    try:
        all_regions = Regions.read(str(path), format="ds9")
    except (OSError, ValueError) as error:
        raise DataError(str(path), f"unreadable ({error})", "DS9 regions") from error
    if not len(all_regions) or not all(isinstance(region, PixelRegion) for region in all_regions):
        raise DataError(
            str(path), [type(region).__name__ for region in all_regions], "DS9 regions, `image` ones"
        )
    mask = np.zeros(shape, bool)
    larger: list[Any] = []
    for region in sorted(all_regions, key=lambda region: -region.area):
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
    """Pixel scale of a header with a celestial WCS [arcsec]; None if the header has no WCS."""
    if "CTYPE1" not in header:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)  # astropy rewrites dates into the current form
        return float(np.mean(proj_plane_pixel_scales(WCS(header, naxis=2).celestial))) * 3600


def _normalised(psf: np.ndarray, what: str) -> np.ndarray:
    total = psf.sum()
    if not abs(total - 1) <= _PSF_LOST:
        raise DataError(what, f"a PSF that sums to {total:.4g}", f"1 within {_PSF_LOST:g}")
    return psf / total


def _locate(part: np.ndarray, whole: np.ndarray, what: str) -> tuple[slice, slice]:
    """The rows and columns of ``whole`` that equal ``part``. Candidates match its brightest pixel."""
    peak = np.unravel_index(part.argmax(), part.shape)
    for y, x in np.argwhere(np.isclose(whole, part.max(), rtol=1e-6)) - peak:
        box = (slice(y, y + part.shape[0]), slice(x, x + part.shape[1]))
        if min(y, x) >= 0 and whole[box].shape == part.shape and np.allclose(whole[box], part, rtol=1e-5):
            return box
    raise DataError(what, f"{part.shape} pixels that are not in VIS_FLUX", "a part of it")
